"""Rank-space LoRA: all adapters of a layer side by side, per-task gradients in one backward."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from mtlcore import ops
from mtlcore.model.layers import AdapterLayer
from mtlcore.seeds import seed_of

if TYPE_CHECKING:
    from mtlcore.model.layout import Adapter, Layout, Routing


class MultiTaskLora(AdapterLayer):
    """A frozen linear layer plus its adapters of the layout: ``y = x Wᵀ + mix(x Aᵀ) Bᵀ``.

    LoRA (Hu et al., ICLR 2022, https://arxiv.org/abs/2106.09685), many adapters in one batch.
    Each adapter's ``lora_A[name]`` [r, in] and ``lora_B[name]`` [r, out] (B transposed) is a
    parameter of its own and a contiguous view of one buffer per factor, [R, in] and [R, out], so
    that optimizer groups and freezing go by adapter while a kernel sees one matrix.

    Layers that read the same input may form a `pack`: its first layer then runs them all at once
    and the others take what it made for them, if they are called with that very input. Where
    dropout is active every layer runs `alone`: each has masks of its own.

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
        self.alone = self.pack = Pack([self])

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        dtype = None
        if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
            dtype = torch.get_autocast_dtype(device)
        # In inference mode a tensor does not tell whether it was changed in place.
        pack, packed = self.alone, self.pack is not self.alone and not x.is_inference()
        kept = self.routing.kept if packed else None
        if kept is not None and x is kept.x and self._state(x, dtype) == kept.state:
            y = kept.outputs.pop(self, None)
            if not kept.outputs:
                self.routing.kept = None
            if y is not None:
                return y.view(*x.shape[:-1], self.out_features)
        flat = _dense(x.reshape(-1, self.in_features))
        if dtype is not None:
            flat = flat.to(dtype)
        if not self.adapters:
            y = F.linear(flat, *self.base_weights(dtype))
        elif self.routing.sink is None and torch.is_grad_enabled():
            y = self._plain(flat, *self.base_weights(dtype))
        else:
            dropout = self.routing.dropout_of(self.number, flat) if self.training else None
            if packed and dropout is None and self.pack.layers[0] is self:
                pack = self.pack
            y, *others = pack.run(flat, dtype, dropout)
            if others:
                outputs = dict(zip(pack.layers[1:], others, strict=True))
                self.routing.kept = Kept(x, self._state(x, dtype), outputs)
        return y.view(*x.shape[:-1], self.out_features)

    def _state(self, x: Tensor, dtype: torch.dtype | None) -> tuple[object, ...]:
        """What a pack's outputs depend on beside the identity of x, and the weights, which stay as
        they are within a forward pass."""
        return x._version, dtype, self.training, torch.is_grad_enabled()

    def base_weights(self, dtype: torch.dtype | None) -> tuple[Any, ...]:
        """The frozen weight [out, in] and bias, in another dtype if one is given."""
        base = self.base
        weight: Tensor = base.weight
        bias: Tensor | None = base.bias
        if dtype is not None:
            weight = weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        return weight.t() if self.transposed else weight, bias

    def _plain(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The specification: dense rank space, ordinary autograd."""
        factors = [factor.to(x.dtype) for factor in self._weights()]
        scales = self.layout.scales(self.adapters).to(x)  # [T + 1, R]
        mix = scales[self.routing.token_tasks(x.shape[0], x.device)]  # [N, R]
        # One mask for all adapters of the layer: they read the same input.
        mask = self.routing.keep_mask(self.name, x) if self.training else None
        z = (x if mask is None else x * mask) @ torch.cat(factors[0::2]).t()  # [N, R]
        return F.linear(x, weight, bias) + (z * mix) @ torch.cat(factors[1::2])

    def _apply(self, *args: Any, **kwargs: Any) -> MultiTaskLora:
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        self.pack.scatter()  # a move to a device or dtype copies each parameter for itself
        return self

    def extra_repr(self) -> str:
        ranks = ", ".join(f"{adapter.name}={adapter.r}" for adapter in self.adapters)
        return f"{self.in_features} -> {self.out_features}, ranks {ranks}"


class Pack:
    """LoRA layers that read one input and run as one; of a layer by itself, a pack of one.

    To routing and sinks it is like a layer with the adapters of all, layer by layer: `adapters`,
    `places` and `parameter` are theirs side by side (see `AdapterLayer`). So are their A in one
    buffer [R, in], laid at first use and again after a copy or a move; each B [R_p, out_p] has its
    own.
    """

    def __init__(self, layers: Sequence[MultiTaskLora]) -> None:
        self.layers = tuple(layers)
        self.adapters: tuple[Adapter, ...] = sum((layer.adapters for layer in layers), ())
        self.places: tuple[int, ...] = sum((layer.places for layer in layers), ())
        self._weights = [(one, i) for one in layers for i in range(len(one.adapters))]
        self.down: Tensor | None = None
        self.up: list[Tensor] = []
        self.trained: Tensor  # one weight that is, if any is

    @property
    def layout(self) -> Layout:
        return self.layers[0].layout

    def parameter(self, adapter: int, factor: int) -> nn.Parameter:
        """One weight: `adapter` counts in `adapters`, `factor` in `MultiTaskLora.factors`."""
        layer, index = self._weights[adapter]
        return layer.parameter(index, factor)

    def run(
        self, x: Tensor, dtype: torch.dtype | None, dropout: ops.Dropout | None
    ) -> tuple[Tensor, ...]:
        """The output [tokens, out_p] of each layer for one input [tokens, in]."""
        if self.down is None:
            self.layers[0].pack.gather()
        assert self.down is not None
        apply: Callable[..., tuple[Tensor, ...]] = _LoraLinears.apply  # torch leaves it untyped
        if not self.trained.requires_grad:
            self.trained = self._one_trained()
        slots = self.layers[0].routing.slots(self.places, x, self.down.dtype)
        first, *others = self.layers
        frozen = first.base_weights(dtype)
        for layer in others:
            frozen += layer.base_weights(dtype)
        return apply(x, self, slots, dropout, self.trained, *frozen)

    @torch.inference_mode(mode=False)  # its tensors could not be trained later
    def gather(self) -> None:
        """Lay the weights side by side in buffers and make the parameters views of them."""
        self.down = _side_by_side([p for one in self.layers for p in one.lora_A.values()])
        self.up = [_side_by_side(list(layer.lora_B.values())) for layer in self.layers]
        ranks = [len(up) for up in self.up]
        parts = zip(self.layers, self.down.split(ranks), self.up, strict=True)
        for layer, down, up in parts:
            layer.alone.down, layer.alone.up = down, [up]
        for pack in (self, *(layer.alone for layer in self.layers)):
            pack.trained = pack._one_trained()

    def _one_trained(self) -> nn.Parameter:
        weights = [self.parameter(i, f) for i in range(len(self.adapters)) for f in (0, 1)]
        return next((weight for weight in weights if weight.requires_grad), weights[0])

    def scatter(self) -> None:
        """Forget the buffers: parameters may no longer be views of them."""
        for pack in (self, *(layer.alone for layer in self.layers)):
            pack.down, pack.up = None, []

    def __getstate__(self) -> dict[str, Any]:  # copies of parameters are no views
        return {**self.__dict__, "down": None, "up": []}


class Kept(NamedTuple):
    """What the first layer of a pack made of x for the others; `Routing.kept` holds it."""

    x: Tensor
    state: tuple[object, ...]
    outputs: dict[MultiTaskLora, Tensor]


@contextmanager
def finding_packs(layers: Iterable[MultiTaskLora]) -> Iterator[None]:
    """Pack the layers that the forward passes in the `with` block call one after another with the
    same tensor, always the same layers in the same order."""
    calls: list[tuple[MultiTaskLora, Tensor]] = []

    def before(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(layer, MultiTaskLora)
        calls.append((layer, inputs[0]))  # held, so that no other tensor gets its id

    handles = [layer.register_forward_pre_hook(before) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    groups = [tuple([one for one, _ in some]) for _, some in groupby(calls, lambda c: id(c[1]))]
    for group in dict.fromkeys(groups):
        alone = any(other != group and not set(group).isdisjoint(other) for other in groups)
        if not all(layer.adapters for layer in group):
            continue
        dtypes = {layer.parameter(0, 0).dtype for layer in group}
        if len(group) > 1 and len(set(group)) == len(group) and len(dtypes) == 1 and not alone:
            pack = Pack(group)
            for layer in group:
                layer.pack = pack
            pack.scatter()


def _side_by_side(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The rows of all in one buffer, of which the parameters become views."""
    buffer = torch.cat([parameter.data for parameter in parameters])
    for parameter, part in zip(parameters, buffer.split([len(p) for p in parameters]), strict=True):
        parameter.data = part
    return buffer


class _LoraLinears(torch.autograd.Function):
    """Frozen linears of one input and their adapters by segments; gradients of A and B go to the
    sink."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        pack: Pack,
        slots: ops.Slots,
        dropout: ops.Dropout | None,
        trained: Tensor,  # only that autograd comes by, even if x wants no gradient
        *frozen: Any,  # weight and bias of each
    ) -> tuple[Tensor, ...]:
        outputs = [F.linear(x, *frozen[i : i + 2]) for i in range(0, len(frozen), 2)]
        # z [N, K] is small, so kept. All shapes follow from the layers', so none is checked.
        down, up = pack.down, pack.up
        assert down is not None
        z = ops.lora_forward(x.detach(), down, up, slots, outputs, dropout, check=False)
        ctx.pack, ctx.slots, ctx.dropout = pack, slots, dropout
        ctx.save_for_backward(x, z, down, *frozen[0::2], *up)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, z, down, *rest = ctx.saved_tensors
        dy = [_dense(grad) for grad in grads]
        dx = None
        if ctx.needs_input_grad[0]:
            dx = dy[0] @ rest[0]
            for i in range(1, len(dy)):  # in one buffer, so that autograd has nothing to add
                dx.addmm_(dy[i], rest[i])
        pack = ctx.pack
        places = pack.layers[0].sink().places(pack)
        ops.lora_backward(
            dy, x.detach(), z, down, rest[len(dy) :], ctx.slots, places, dx, ctx.dropout,
            check=False,
        )  # fmt: skip
        return (dx, *[None] * (4 + 2 * len(dy)))


def _dense(rows: Tensor) -> Tensor:
    """With each row in one piece, as the ops read it: that of a sum's gradient is one element."""
    return rows if rows.stride(-1) == 1 else rows.contiguous()
