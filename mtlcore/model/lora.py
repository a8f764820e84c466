"""Rank-space LoRA: all adapters of a layer side by side, per-task gradients in one backward."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from mtlcore import ops
from mtlcore.model.layers import AdapterLayer
from mtlcore.seeds import seed_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from mtlcore.model.layout import Routing


class MultiTaskLora(AdapterLayer):
    """A frozen linear layer plus its adapters of the layout: ``y = x Wᵀ + mix(x Aᵀ) Bᵀ``.

    LoRA (Hu et al., ICLR 2022, https://arxiv.org/abs/2106.09685), many adapters in one batch.
    Each adapter's ``lora_A[name]`` [r, in] and ``lora_B[name]`` [r, out] (B transposed) is a
    parameter of its own and a contiguous view of one buffer per factor, [R, in] and [R, out], so
    that optimizer groups and freezing go by adapter while a kernel sees one matrix.

    Input [..., in], output [..., out]. `name` is the module's path, which decides on adapters that
    lie in some blocks only. With `routing.sink` set, a backward pass puts the gradients of A and B
    there, task by task, and autograd sees none; else ordinary autograd.
    """

    factors = ("lora_A", "lora_B")
    lora_A: nn.ParameterDict  # noqa: N815
    lora_B: nn.ParameterDict  # noqa: N815

    def __init__(
        self,
        base: nn.Linear | Conv1D,
        routing: Routing,
        *,
        name: str = "",
        generator: Callable[[str], torch.Generator] | None = None,
    ) -> None:
        super().__init__(routing, name, "lora")
        self.number = seed_of(name)  # of its dropout masks
        self.base = base.requires_grad_(False)
        self.transposed = isinstance(base, Conv1D)
        out_features, in_features = base.weight.shape[:: -1 if self.transposed else 1]
        self.in_features, self.out_features = in_features, out_features
        # Adapters train in fp32 (or fp64) even over a half-precision base.
        dtype = torch.promote_types(base.weight.dtype, torch.float32)
        for adapter in self.adapters:
            down = torch.empty(adapter.r, in_features, dtype=dtype)
            nn.init.kaiming_uniform_(
                down, a=math.sqrt(5), generator=generator(adapter.name) if generator else None
            )
            up = torch.zeros(adapter.r, out_features, dtype=dtype)
            self._set(adapter, (down.to(base.weight.device), up.to(base.weight.device)))
        self._gather()

    def forward(self, x: Tensor) -> Tensor:
        flat = _dense(x.reshape(-1, self.in_features))
        base = self.base
        weight: Tensor = base.weight
        bias: Tensor | None = base.bias
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            flat, weight = flat.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        if self.transposed:
            weight = weight.t()
        y: Tensor
        if not self.adapters:
            y = F.linear(flat, weight, bias)
        elif self.routing.sink is None and torch.is_grad_enabled():
            y = self._plain(flat, weight, bias)
        else:
            apply: Callable[..., Tensor] = _LoraLinear.apply  # torch leaves it untyped
            slots = self.routing.slots(self.places, flat, self.down.dtype)
            dropout = self.routing.dropout_of(self.number, flat) if self.training else None
            y = apply(flat, weight, bias, self, slots, dropout, *self._trained)
        return y.view(*x.shape[:-1], self.out_features)

    def _plain(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The specification: dense rank space, ordinary autograd."""
        factors = [factor.to(x.dtype) for factor in self._weights()]
        scales = self.layout.scales(self.adapters).to(x)  # [T + 1, R]
        mix = scales[self.routing.token_tasks(x.shape[0], x.device)]  # [N, R]
        # One mask for all adapters of the layer: they read the same input.
        mask = self.routing.keep_mask(self.name, x) if self.training else None
        z = (x if mask is None else x * mask) @ torch.cat(factors[0::2]).t()  # [N, R]
        return F.linear(x, weight, bias) + (z * mix) @ torch.cat(factors[1::2])

    def _gather(self) -> None:
        """Lay the parameters of each factor side by side in one buffer and make them views."""
        for factor in (self.lora_A, self.lora_B) if self.adapters else ():
            buffer = torch.cat([parameter.data for parameter in factor.values()])
            for parameter, part in zip(
                factor.values(), buffer.split([p.shape[0] for p in factor.values()]), strict=True
            ):
                parameter.data = part
            if factor is self.lora_A:
                self.down = buffer
            else:
                self.up = buffer
        weights = self._weights()
        # One that is trained, if any is; in a tuple, past the registry of nn.Module.
        self._trained = tuple([w for w in weights if w.requires_grad][:1] or weights[:1])

    def _apply(self, *args: Any, **kwargs: Any) -> MultiTaskLora:
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._gather()  # a move to a device or dtype copies each parameter for itself
        return self

    def extra_repr(self) -> str:
        ranks = ", ".join(f"{adapter.name}={adapter.r}" for adapter in self.adapters)
        return f"{self.in_features} -> {self.out_features}, ranks {ranks}"


class _LoraLinear(torch.autograd.Function):
    """The frozen linear and its adapters by segments; gradients of A and B go to the sink."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        layer: MultiTaskLora,
        slots: ops.Slots,
        dropout: ops.Dropout | None,
        trained: Tensor,  # only that autograd comes by, even if x wants no gradient
    ) -> Tensor:
        y = F.linear(x, weight, bias)  # [N, out]
        # z [N, K] is small, so kept. All shapes follow from the layer's, so none is checked.
        z = ops.lora_forward(x.detach(), layer.down, layer.up, slots, y, dropout, check=False)
        ctx.layer, ctx.slots, ctx.dropout = layer, slots, dropout
        ctx.save_for_backward(x, weight, z, layer.down, layer.up)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, z, down, up = ctx.saved_tensors
        dx = dy @ weight if ctx.needs_input_grad[0] else None
        places = ctx.layer.sink().places(ctx.layer)
        ops.lora_backward(
            _dense(dy), x.detach(), z, down, up, ctx.slots, places, dx, ctx.dropout, check=False
        )
        return (dx, None, None, None, None, None, None)


def _dense(rows: Tensor) -> Tensor:
    """With each row in one piece, as the ops read it: that of a sum's gradient is one element."""
    return rows if rows.stride(-1) == 1 else rows.contiguous()
