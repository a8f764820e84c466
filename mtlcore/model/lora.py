"""Rank-space LoRA: all adapters of a layer side by side, per-task gradients in one backward."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from mtlcore.model.layers import AdapterLayer

if TYPE_CHECKING:
    from collections.abc import Callable

    from mtlcore.model.layout import AdapterPlan, Routing


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
        flat = x.reshape(-1, self.in_features)
        weight: Tensor = self.base.weight
        bias: Tensor | None = self.base.bias
        factors = self._weights()
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            flat, weight = flat.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        factors = [factor.to(flat.dtype) for factor in factors]
        if self.transposed:
            weight = weight.t()
        # One mask for all adapters of the layer: they read the same input.
        mask = self.routing.keep_mask(self.name, flat) if self.training else None
        dropped = flat if mask is None else flat * mask
        y: Tensor
        if self.routing.sink is None and torch.is_grad_enabled():
            y = self._plain(flat, dropped, weight, bias, factors)
        else:
            plans = self._plans(flat.shape[0])
            apply: Callable[..., Tensor] = _LoraLinear.apply  # torch leaves it untyped
            y = apply(flat, dropped, weight, bias, self, plans, *factors)
        return y.view(*x.shape[:-1], self.out_features)

    def _plain(
        self, x: Tensor, dropped: Tensor, weight: Tensor, bias: Tensor | None, factors: list[Tensor]
    ) -> Tensor:
        """The specification: dense rank space, ordinary autograd."""
        scales = self.layout.scales(self.adapters).to(x)  # [T + 1, R]
        mix = scales[self.routing.token_tasks(x.shape[0], x.device)]  # [N, R]
        z = dropped @ torch.cat(factors[0::2]).t()  # [N, R]
        return F.linear(x, weight, bias) + (z * mix) @ torch.cat(factors[1::2])

    def _gather(self) -> None:
        """Lay the parameters of each factor side by side in one buffer and make them views."""
        for factor in (self.lora_A, self.lora_B) if self.adapters else ():
            buffer = torch.cat([parameter.data for parameter in factor.values()])
            for parameter, part in zip(
                factor.values(), buffer.split([p.shape[0] for p in factor.values()]), strict=True
            ):
                parameter.data = part

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
        dropped: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        layer: MultiTaskLora,
        plans: tuple[AdapterPlan, ...],
        *factors: Tensor,
    ) -> Tensor:
        y = F.linear(x, weight, bias)  # [N, out]
        reduced = []  # z = x Aᵀ of each run, [n, r]: small, so kept for the gradient of B
        for index, (adapter, plan) in enumerate(zip(layer.adapters, plans, strict=True)):
            down, up = factors[2 * index], factors[2 * index + 1]
            for start, stop in plan.runs:
                z = dropped[start:stop] @ down.t()
                y[start:stop].addmm_(z, up, alpha=adapter.scale)
                reduced.append(z)
        ctx.layer, ctx.plans, ctx.same_input = layer, plans, dropped is x
        ctx.save_for_backward(x if dropped is x else dropped, weight, *factors, *reduced)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dropped, weight, *rest = ctx.saved_tensors
        layer = ctx.layer
        sink, adapters = layer.sink(), layer.adapters
        factors, reduced = rest[: 2 * len(adapters)], iter(rest[2 * len(adapters) :])
        dx = dy @ weight if ctx.needs_input_grad[0] else None
        wants_input = ctx.needs_input_grad[0 if ctx.same_input else 1]
        dropped_dx = dx if ctx.same_input else (torch.zeros_like(dropped) if wants_input else None)
        for index, (adapter, plan) in enumerate(zip(adapters, ctx.plans, strict=True)):
            down, up = factors[2 * index], factors[2 * index + 1]
            segments = iter(plan.segments)
            for start, stop in plan.runs:
                z = next(reduced)
                if adapter.frozen and dropped_dx is None:
                    continue
                dz = (dy[start:stop] @ up.t()).mul_(adapter.scale)  # [n, r]
                if dropped_dx is not None:
                    dropped_dx[start:stop].addmm_(dz, down)
                if adapter.frozen:
                    continue
                position = start
                while position < stop:
                    task, position, end = next(segments)
                    rows = slice(position, end)
                    inner = slice(position - start, end - start)
                    sink.add(layer, index, 0, task, dz[inner], dropped[rows], 1.0)
                    sink.add(layer, index, 1, task, z[inner], dy[rows], adapter.scale)
                    position = end
        input_grads = (dx, None) if ctx.same_input else (dx, dropped_dx)
        return (*input_grads, None, None, None, None, *([None] * len(factors)))
