"""Low-rank adapters for tokens of many tasks at once: forward, and a gradient for each task.

The tokens of a batch lie in segments of one task each. Every task has up to K slots; slot k of task
t is the rank row ``rows[t, k]`` of the factors A [R, in] and B [R, out], which hold all adapters of
a layer side by side. So a task's shared, group and own adapters are slots like any others.

Layers that read one x (q, k, v; gate, up) run as one: A [R, in] holds the rank rows of all of them,
layer by layer, and each has a B [R_p, out_p] of its own, sum R_p = R. Then x is read once and dx
written once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mtlcore.ops import backend
from mtlcore.ops.checks import check_dense_rows, check_shape, check_tensor, detached

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Slots(NamedTuple):
    """Which rank rows the tokens of a batch use.

    segments [S, 3] int64: (task, start, stop), tokens [start, stop) of one task, none in two.
    rows [T, K] int32: rank rows of each task, below 0 behind its last; of several layers those of
    the first come first, and so on.
    scales [T, K]: what their products are multiplied with; float64 for float64 factors, else
    float32.

    All three are on the CPU for CPU tensors, else on the device of x.
    """

    segments: Tensor
    rows: Tensor
    scales: Tensor


@dataclass(frozen=True)
class Dropout:
    """Masks of the adapters' input, out of counters alone: nothing is stored.

    An element of x is kept, times 1 / (1 - share), if its 32-bit word of Philox 4x32-10 (Salmon et
    al., SC 2011, https://doi.org/10.1145/2063384.2063405) is at least share * 2^32. The word
    depends on the task's key, the layer, the token's position within its task, and the column: see
    csrc/common/philox.h.

    shares [T] float64 in [0, 1); keys [T] int64; positions [N] int32, below 0 for tokens that are
    never masked (padding); layer: any 63-bit number.
    """

    shares: Tensor
    keys: Tensor
    positions: Tensor
    layer: int


@dataclass(frozen=True)
class Places:
    """Where the gradients of a task's slots are added: rows of a flat memory.

    memory [M] contiguous, of the factors' dtype: row k of A's gradient for task t is added to
    ``memory[a_offsets[t, k] :][:in]``, B's likewise; below 0 it is not wanted. Tasks may have the
    same place for a row (a gradient over all tasks). offsets [T, K] int64; weights [T, K] of the
    factors' dtype: what the gradient of each slot is multiplied with. `square` adds the square of
    each segment's gradient instead, for the Fisher information of single rows.
    """

    memory: Tensor
    a_offsets: Tensor
    b_offsets: Tensor
    weights: Tensor
    square: bool = False


def lora_forward(
    x: Tensor,
    A: Tensor,
    B: Tensor | Sequence[Tensor],
    slots: Slots,
    y: Tensor | Sequence[Tensor],
    dropout: Dropout | None = None,
    *,
    check: bool = True,
) -> Tensor:
    """Add the adapters' part to the output of a frozen linear layer, or of several that read x.

        z[n, k] = drop(x)_n . A[rows[t, k]]      t: the task of token n
        y_n    += sum_k scales[t, k] z[n, k] B[rows[t, k]]      of each layer over its own rows

    LoRA (Hu et al., ICLR 2022, https://arxiv.org/abs/2106.09685) with B transposed, each token with
    the adapters of its task.

    Args:
        x: [N, in] float32, float64, bfloat16 or float16, rows dense.
        A, B: [R, in] and [R, out] contiguous; float64 for float64 x, else float32. Of several
            layers a B [R_p, out_p] each.
        y: [N, out] of x's dtype, rows dense; changed in place. Of several layers one each.
        check: False leaves out the checks of a caller whose arguments always fit; it saves as much
            time as a small product takes. The C++ kernels check for themselves.

    Returns:
        z [N, K] of the factors' dtype, which the backward needs; 0 in slots that a task lacks.
        Tokens of no segment keep their y. The same bits in every run, with any number of threads.

    Raises:
        TypeError, ValueError: an argument has another dtype, shape or device.
    """
    B, y = _several(B), _several(y)
    if check:
        _check(x, slots, dropout, A=A, B=B)
        _check_outputs("y", y, x, B)
    z = A.new_empty(x.shape[0], slots.rows.shape[1])
    _kernel("lora_forward", x)(x, A, B, *slots, *_spread(dropout, x), y, z)
    return z


def lora_backward(
    dy: Tensor | Sequence[Tensor],
    x: Tensor,
    z: Tensor,
    A: Tensor,
    B: Tensor | Sequence[Tensor],
    slots: Slots,
    places: Places,
    dx: Tensor | None = None,
    dropout: Dropout | None = None,
    *,
    check: bool = True,
) -> Tensor:
    """Backward of `lora_forward`, with one gradient of A and B per segment.

        dz[n, k] = scales[t, k] dy_n . B[rows[t, k]]
        dx_n    += mask_n * sum_k dz[n, k] A[rows[t, k]]
        dA[t, k] = weights[t, k] sum_{n of t} dz[n, k] drop(x)_n
        dB[t, k] = weights[t, k] scales[t, k] sum_{n of t} z[n, k] dy_n

    Args:
        dy: [N, out] the gradient of y, of several layers one each; x, z, A, B, slots, dropout as
            they were in the forward.
        places: where dA and dB are added.
        dx: [N, in] of x's dtype, rows dense; changed in place, unless None.
        check: as in the forward.

    Returns:
        dz [N, K] of the factors' dtype. Nothing is added by atomics: the same bits in every run.

    Raises:
        TypeError, ValueError: an argument has another dtype, shape or device.
    """
    dy, B = _several(dy), _several(B)
    if check:
        _check(x, slots, dropout, A=A, B=B)
        _check_backward(dy, x, z, A, B, slots, places, dx)
    dz = torch.empty_like(z)
    _kernel("lora_backward", x)(
        dy, x, z, A, B, *slots, *_spread(dropout, x), places.a_offsets, places.b_offsets,
        places.weights, places.square, x.new_empty(0) if dx is None else dx, dz, places.memory,
    )  # fmt: skip
    return dz


def lora_shrink(x: Tensor, A: Tensor, slots: Slots, dropout: Dropout | None = None) -> Tensor:
    """Tokens into rank space, each by the rank rows of its task.

        z[n, k] = drop(x)_n . A[rows[t, k]]      t: the task of token n

    With `lora_expand` and any mix of z between them this is every adapter that works in rank space:
    transforms by task (MTL-LoRA, https://arxiv.org/abs/2410.09437), routers (HydraLoRA, NeurIPS
    2024, https://arxiv.org/abs/2404.19245). In plain autograd, once differentiable; where z is only
    scaled, `lora_forward` does both at once. `slots.scales` is not read.

    Args:
        x: [N, in] float32, float64, bfloat16 or float16, rows dense.
        A: [R, in] contiguous; float64 for float64 x, else float32.

    Returns:
        z [N, K] of A's dtype; 0 in slots that a task lacks and for tokens of no segment.

    Raises:
        TypeError, ValueError: an argument has another dtype, shape or device.
    """
    _check(detached(x), slots, dropout, A=detached(A))
    apply: Callable[..., Tensor] = _Shrink.apply  # torch leaves it untyped
    return apply(x, A, *slots, *_spread(dropout, x))


def lora_expand(z: Tensor, B: Tensor, slots: Slots, *, dtype: torch.dtype | None = None) -> Tensor:
    """Out of rank space: the other half of `lora_shrink`, in plain autograd.

        y_n = sum_k z[n, k] B[rows[t, k]]

    Args:
        z: [N, K] and B: [R, out] contiguous, of one dtype: float32 or float64.
        dtype: of y; default that of z. For float32 also bfloat16 or float16.

    Returns:
        y [N, out]; 0 for tokens of no segment.

    Raises:
        TypeError, ValueError: an argument has another dtype, shape or device.
    """
    check_tensor("z", detached(z), ndim=2, dtypes=(torch.float32, torch.float64), like=z)
    y = z.new_zeros(0, 0, dtype=dtype)
    _check(y, slots, None, B=[detached(B)])
    check_shape("z", z, (z.shape[0], slots.rows.shape[1]), "[N, K]")
    apply: Callable[..., Tensor] = _Expand.apply
    return apply(z.contiguous(), B, y.dtype, *slots, *_spread(None, z))


class _Shrink(torch.autograd.Function):
    """z = drop(x) Aᵀ by slots."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, *table: Any) -> Tensor:
        ctx.save_for_backward(x, A, *table[:-1])
        ctx.layer = table[-1]
        z = A.new_empty(x.shape[0], table[1].shape[1])
        _kernel("lora_shrink", x)(x.detach(), A.detach(), *table, z)
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, ...]:
        x, A, *tensors = map(torch.detach, ctx.saved_tensors)
        table = (*tensors, ctx.layer)
        dx, dA = None, None
        dz = dz.contiguous()
        if ctx.needs_input_grad[0]:
            dx = torch.zeros_like(x)
            _kernel("lora_expand", x)(dz, A, *table, dx)
        if ctx.needs_input_grad[1]:
            dA = _factor_grad(dz, x, A, table)
        return (dx, dA, *[None] * len(table))


class _Expand(torch.autograd.Function):
    """y = z B by slots."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, B: Tensor, dtype: torch.dtype, *table: Any) -> Tensor:
        ctx.save_for_backward(z, B, *table[:-1])
        ctx.layer = table[-1]
        y = z.new_zeros(z.shape[0], B.shape[1], dtype=dtype)
        _kernel("lora_expand", y)(z.detach(), B.detach(), *table, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        z, B, *tensors = map(torch.detach, ctx.saved_tensors)
        table = (*tensors, ctx.layer)
        dz, dB = None, None
        dy = dy.contiguous()
        if ctx.needs_input_grad[0]:
            dz = torch.empty_like(z)
            _kernel("lora_shrink", dy)(dy, B, *table, dz)
        if ctx.needs_input_grad[1]:
            dB = _factor_grad(z, dy, B, table)
        return (dz, dB, None, *[None] * len(table))


def _factor_grad(z: Tensor, x: Tensor, factor: Tensor, table: tuple[Any, ...]) -> Tensor:
    """The gradient of a factor over all tasks: zᵀ x, each slot at its rank row."""
    rows = table[1]
    offsets = torch.where(rows >= 0, rows.long() * factor.shape[1], -1)
    grad = torch.zeros_like(factor)
    ones = torch.ones_like(table[2])
    _kernel("lora_grads", x)(z, x, *table, offsets, ones, grad.view(-1))
    return grad


# Raw ops: no checks, no autograd, opaque to torch.compile. Not `torch.library.custom_op`, whose
# care for mutated arguments costs 20 times as much per call (12 tensors: 170 us against 8 us).
_library = torch.library.Library("mtlcore", "FRAGMENT")
_TABLE = (
    "Tensor segments, Tensor rows, Tensor scales, "
    "Tensor shares, Tensor keys, Tensor positions, int layer"
)
_library.define(
    f"lora_forward(Tensor x, Tensor A, Tensor[] B, {_TABLE}, Tensor(a!)[] y, Tensor(b!) z) -> ()"
)
_library.define(
    f"lora_backward(Tensor[] dy, Tensor x, Tensor z, Tensor A, Tensor[] B, {_TABLE}, "
    "Tensor a_offsets, Tensor b_offsets, Tensor weights, bool square, "
    "Tensor(a!) dx, Tensor(b!) dz, Tensor(c!) memory) -> ()"
)
_library.define(f"lora_shrink(Tensor x, Tensor A, {_TABLE}, Tensor(a!) z) -> ()")
_library.define(f"lora_expand(Tensor z, Tensor B, {_TABLE}, Tensor(a!) y) -> ()")
_library.define(
    f"lora_grads(Tensor z, Tensor x, {_TABLE}, Tensor offsets, Tensor weights, "
    "Tensor(a!) memory) -> ()"
)


def _dispatch(op: str) -> None:
    """Let torch call the kernel of the tensors' device, and know that it returns nothing."""

    def run(*arguments: Any) -> None:
        # Inductor takes our calls of `detach` for nothing and leaves them out.
        first, *rest = (
            [detached(one) for one in argument]
            if isinstance(argument, list)
            else detached(argument)
            for argument in arguments
        )
        backend.kernel(op, _several(first)[0].device)(first, *rest)

    _library.impl(op, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"mtlcore::{op}", lambda *arguments: None, lib=_library)


OPS = ("lora_forward", "lora_backward", "lora_shrink", "lora_expand", "lora_grads")
for _op in OPS:
    _dispatch(_op)
RAW: dict[str, Callable[..., None]] = {op: getattr(torch.ops.mtlcore, op).default for op in OPS}


def _kernel(op: str, x: Tensor) -> Callable[..., None]:
    """The op for torch's tracers, else the kernel that it would call, without torch's dispatch."""
    if type(x) is not Tensor or torch.compiler.is_compiling():
        return RAW[op]
    return backend.kernel(op, x.device)


def _names(name: str, tensors: Sequence[Tensor]) -> list[str]:
    """What errors call each: by number if there are several."""
    return [name] if len(tensors) == 1 else [f"{name}[{i}]" for i in range(len(tensors))]


def _several(tensor: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return (tensor,) if isinstance(tensor, Tensor) else tensor


def _spread(dropout: Dropout | None, x: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    if dropout is None:
        none = _NONE.get(x.device)
        if none is None:  # three: dynamo traces no Function that gets a tensor twice
            with torch.inference_mode(mode=False):  # a later call may want gradients
                shares, keys, positions = (torch.empty(0, device=x.device) for _ in range(3))
            none = _NONE.setdefault(x.device, (shares, keys, positions))
        return (*none, 0)
    return dropout.shares, dropout.keys, dropout.positions, dropout.layer


_NONE: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}


def _gathered(shares: Tensor, keys: Tensor, positions: Tensor, layer: int) -> Dropout | None:
    return Dropout(shares, keys, positions, layer) if len(shares) else None


def _check(
    x: Tensor,
    slots: Slots,
    dropout: Dropout | None,
    *,
    A: Tensor | None = None,
    B: Sequence[Tensor] = (),
) -> None:
    check_tensor("x", x, ndim=2, dtypes=FLOATS, like=x)
    check_dense_rows("x", x)
    wide = torch.promote_types(x.dtype, torch.float32)
    for name, factor in [*([] if A is None else [("A", A)]), *zip(_names("B", B), B, strict=True)]:
        check_tensor(name, factor, ndim=2, dtypes=(wide,), like=x)
        _check_contiguous(name, factor)
    if A is not None:
        check_shape("A", A, (A.shape[0], x.shape[1]), "[R, in]")
        if B and A.shape[0] != (ranks := sum(one.shape[0] for one in B)):
            raise ValueError(f"B must have {A.shape[0]} rows, as A has, found {ranks}")
    check_tensor("segments", slots.segments, ndim=2, dtypes=(torch.int64,), like=x)
    check_shape("segments", slots.segments, (slots.segments.shape[0], 3), "[S, 3]")
    check_tensor("rows", slots.rows, ndim=2, dtypes=(torch.int32,), like=x)
    check_tensor("scales", slots.scales, ndim=2, dtypes=(wide,), like=x)
    check_shape("scales", slots.scales, slots.rows.shape, "[T, K]")
    tasks = slots.rows.shape[0]
    if dropout is not None:
        for name, tensor, dtype, size in (
            ("shares", dropout.shares, torch.float64, tasks),
            ("keys", dropout.keys, torch.int64, tasks),
            ("positions", dropout.positions, torch.int32, x.shape[0]),
        ):
            check_tensor(name, tensor, ndim=1, dtypes=(dtype,), like=x)
            check_shape(name, tensor, (size,), "[N]" if name == "positions" else "[T]")


def _check_outputs(name: str, outputs: Sequence[Tensor], x: Tensor, B: Sequence[Tensor]) -> None:
    if len(outputs) != len(B):
        raise ValueError(f"{name} must be as many tensors as B, {len(B)}, found {len(outputs)}")
    for one, output, up in zip(_names(name, outputs), outputs, B, strict=True):
        check_tensor(one, output, ndim=2, dtypes=(x.dtype,), like=x)
        check_shape(one, output, (x.shape[0], up.shape[1]), "[N, out]")
        check_dense_rows(one, output)


def _check_backward(
    dy: Sequence[Tensor], x: Tensor, z: Tensor, A: Tensor, B: Sequence[Tensor],
    slots: Slots, places: Places, dx: Tensor | None,
) -> None:  # fmt: skip
    _check_outputs("dy", dy, x, B)
    check_tensor("z", z, ndim=2, dtypes=(A.dtype,), like=x)
    check_shape("z", z, (x.shape[0], slots.rows.shape[1]), "[N, K]")
    _check_places(places, A, slots)
    if dx is not None:
        check_tensor("dx", dx, ndim=2, dtypes=(x.dtype,), like=x)
        check_shape("dx", dx, x.shape, "[N, in]")
        check_dense_rows("dx", dx)


def _check_places(places: Places, A: Tensor, slots: Slots) -> None:
    check_tensor("memory", places.memory, ndim=1, dtypes=(A.dtype,), like=A)
    _check_contiguous("memory", places.memory)
    check_tensor("weights", places.weights, ndim=2, dtypes=(A.dtype,), like=A)
    check_shape("weights", places.weights, slots.rows.shape, "[T, K]")
    for name, offsets in (("a_offsets", places.a_offsets), ("b_offsets", places.b_offsets)):
        check_tensor(name, offsets, ndim=2, dtypes=(torch.int64,), like=A)
        check_shape(name, offsets, slots.rows.shape, "[T, K]")


def _check_contiguous(name: str, tensor: Tensor) -> None:
    if not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous")


# -- backends ------------------------------------------------------------------------------------


def _reference_forward(
    x: Tensor, A: Tensor, B: Sequence[Tensor], segments: Tensor, rows: Tensor, scales: Tensor,
    shares: Tensor, keys: Tensor, positions: Tensor, layer: int, y: Sequence[Tensor], z: Tensor,
) -> None:  # fmt: skip
    from mtlcore.ops.reference import lora as reference

    slots, dropout = Slots(segments, rows, scales), _gathered(shares, keys, positions, layer)
    found = reference.shrink(x, A, slots, dropout=dropout)
    z.copy_(found)
    for output, (factor, _) in zip(y, reference.layers(B, rows), strict=True):
        output.copy_(output.double() + reference.expand(found, factor, slots, scaled=True))


def _reference_backward(
    dy: Sequence[Tensor], x: Tensor, z: Tensor, A: Tensor, B: Sequence[Tensor],
    segments: Tensor, rows: Tensor, scales: Tensor,
    shares: Tensor, keys: Tensor, positions: Tensor, layer: int,
    a_offsets: Tensor, b_offsets: Tensor, weights: Tensor, square: bool,
    dx: Tensor, dz: Tensor, memory: Tensor,
) -> None:  # fmt: skip
    from mtlcore.ops.reference import lora as reference

    slots, dropout = Slots(segments, rows, scales), _gathered(shares, keys, positions, layer)
    found, total = torch.zeros_like(dz, dtype=torch.float64), memory.double()
    for grad, (factor, mine) in zip(dy, reference.layers(B, rows), strict=True):
        found += reference.shrink(grad, factor, slots, scaled=True)
        offsets = torch.where(mine, b_offsets, -1)
        total = reference.add_grads(
            z, grad, slots, offsets, weights, total, scaled=True, square=square
        )
    dz.copy_(found)
    if dx.ndim == 2:
        dx.copy_(dx.double() + reference.expand(found, A, slots, dropout=dropout))
    memory.copy_(
        reference.add_grads(
            found, x, slots, a_offsets, weights, total, square=square, dropout=dropout
        )
    )


def _reference_shrink(
    x: Tensor, A: Tensor, segments: Tensor, rows: Tensor, scales: Tensor,
    shares: Tensor, keys: Tensor, positions: Tensor, layer: int, z: Tensor,
) -> None:  # fmt: skip
    from mtlcore.ops.reference import lora as reference

    slots, dropout = Slots(segments, rows, scales), _gathered(shares, keys, positions, layer)
    z.copy_(reference.shrink(x, A, slots, dropout=dropout))


def _reference_expand(
    z: Tensor, B: Tensor, segments: Tensor, rows: Tensor, scales: Tensor,
    shares: Tensor, keys: Tensor, positions: Tensor, layer: int, y: Tensor,
) -> None:  # fmt: skip
    from mtlcore.ops.reference import lora as reference

    slots, dropout = Slots(segments, rows, scales), _gathered(shares, keys, positions, layer)
    y.copy_(y.double() + reference.expand(z, B, slots, dropout=dropout))


def _reference_grads(
    z: Tensor, x: Tensor, segments: Tensor, rows: Tensor, scales: Tensor,
    shares: Tensor, keys: Tensor, positions: Tensor, layer: int,
    offsets: Tensor, weights: Tensor, memory: Tensor,
) -> None:  # fmt: skip
    from mtlcore.ops.reference import lora as reference

    slots, dropout = Slots(segments, rows, scales), _gathered(shares, keys, positions, layer)
    memory.copy_(reference.add_grads(z, x, slots, offsets, weights, memory, dropout=dropout))


def _compiled(op: str) -> Callable[..., None]:
    def run(*arguments: object) -> None:
        getattr(backend.core(), op)(*arguments, torch.get_num_threads())

    return run


def _triton(op: str) -> Callable[..., None]:
    def run(*arguments: object) -> None:
        from mtlcore.ops.triton import lora

        getattr(lora, op)(*arguments)

    return run


_REFERENCES: tuple[Callable[..., None], ...] = (
    _reference_forward, _reference_backward, _reference_shrink, _reference_expand, _reference_grads
)  # fmt: skip
for _op, _reference in zip(OPS, _REFERENCES, strict=True):
    backend.declare(_op, reference=_reference, cpp=_compiled(_op), triton=_triton(_op))
