"""The weighted sum of the task gradients, with one weight per task or one per slice of columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mtlcore.ops import backend
from mtlcore.ops.checks import check_dense_rows, check_shape, check_tensor
from mtlcore.ops.gramian import gramian
from mtlcore.ops.slices import check_starts, cut, one_slice

_FLOATS = (torch.float32, torch.float64)


def combine(J: Tensor, w: Tensor, *, out: Tensor | None = None) -> Tensor:
    """The update direction that the task weights make of the task gradients.

        g = Jᵀ w,    g[p] = Σ_t w[t] J[t, p]

    Args:
        J: [T, P] float32 or float64, without grad. Rows must be dense, but may lie further apart
            than P: a column slice `J[:, a:b]` is read in place.
        w: [T] float32 or float64 on J's device; rounded to J's dtype.
        out: [P] contiguous, of J's dtype, apart from J: filled instead of a new tensor, so that a
            trainer writes every step into the same gradient buffer.

    Returns:
        g [P] in J's dtype (`out`, if given); the sum runs in J's dtype, in the order of the tasks.
        The compiled kernels give the same bits in every run, with any number of threads.

    Raises:
        TypeError: an argument is no tensor, or of another dtype.
        ValueError: an argument has another shape or device, requires grad, or is not dense.
    """
    _check_J(J)
    check_tensor("w", w, ndim=1, dtypes=_FLOATS, like=J)
    check_shape("w", w, J.shape[:1], "[T]")
    return _combine(J, w[None], one_slice(J.shape[1]), out)


def combine_by_slice(
    J: Tensor, W: Tensor, starts: Tensor | Sequence[int], *, out: Tensor | None = None
) -> Tensor:
    """The update direction of weights by slice of the columns: by layer, or by factor.

        g[p] = Σ_t W[s, t] J[t, p]    for starts[s] <= p < starts[s + 1]

    Args:
        J: [T, P], as in `combine`.
        W: [S, T] float32 or float64 on J's device; rounded to J's dtype.
        starts: the S + 1 borders of the slices, ascending from 0 to P: int64 on the CPU, or whole
            numbers. A slice may be empty.
        out: [P], as in `combine`.

    Returns:
        g [P], as in `combine`.

    Raises:
        TypeError: an argument is no tensor, or of another dtype; starts are no whole numbers.
        ValueError: an argument has another shape or device, requires grad, or is not dense; starts
            do not ascend from 0 to P.
    """
    _check_J(J)
    borders = check_starts(starts, J.shape[1], whole=True)
    check_tensor("W", W, ndim=2, dtypes=_FLOATS, like=J)
    check_shape("W", W, (len(borders) - 1, J.shape[0]), "[S, T]")
    return _combine(J, W, borders, out)


def project_task_gradients(
    J: Tensor, weights_of: Callable[[Tensor], Tensor], *, out: Tensor | None = None
) -> Tensor:
    """The update direction that a weighting makes of the task gradients: Gramian, solve, combine.

        g = Jᵀ w(J Jᵀ)

    Args:
        J: [T, P], as in `combine`.
        weights_of: the weighting, from the Gramian [T, T] float64 on the CPU to weights [T] float32
            or float64, on any device.
        out: [P], as in `combine`.

    Returns:
        g [P], as in `combine`.

    Raises:
        TypeError, ValueError: as `gramian` of J, and `combine` of J, the weights and `out`.
    """
    w = weights_of(gramian(J).cpu())  # [T]
    return combine(J, w.to(J.device) if isinstance(w, Tensor) else w, out=out)


def _check_J(J: Tensor) -> None:
    check_tensor("J", J, ndim=2, dtypes=_FLOATS, like=J)
    check_dense_rows("J", J)


def _combine(J: Tensor, W: Tensor, starts: Tensor, out: Tensor | None) -> Tensor:
    if out is None:
        out = J.new_empty(J.shape[1])  # [P]
    else:
        check_tensor("out", out, ndim=1, dtypes=(J.dtype,), like=J)
        check_shape("out", out, J.shape[1:], "[P]")
        check_dense_rows("out", out)
        if not torch.compiler.is_compiling() and _overlap(out, J):
            raise ValueError("out must not overlap J: its columns are filled while J is read")
    raw_combine(J, W.to(J.dtype).contiguous(), starts, out)
    return out


def _overlap(out: Tensor, J: Tensor) -> bool:
    """Whether the memory between the first and the last element of both meets."""
    if not out.numel() or not J.numel():
        return False
    size = J.element_size()
    stop = J.data_ptr() + size * ((J.shape[0] - 1) * J.stride(0) + J.shape[1])
    return out.data_ptr() < stop and J.data_ptr() < out.data_ptr() + size * out.numel()


@torch.library.custom_op("mtlcore::combine", mutates_args=("out",))
def raw_combine(J: Tensor, W: Tensor, starts: Tensor, out: Tensor) -> None:
    """`combine_by_slice` without checks, all of one dtype, into `out` [P]; opaque to
    torch.compile."""
    backend.kernel("combine", J.device)(J, W, starts, out)


@raw_combine.register_fake
def _fake(J: Tensor, W: Tensor, starts: Tensor, out: Tensor) -> None:
    return None


def _reference(J: Tensor, W: Tensor, starts: Tensor, out: Tensor) -> None:
    from mtlcore.ops.reference.combine import combine_by_slice

    out.copy_(combine_by_slice(J, W, starts.tolist()))


def _compiled(J: Tensor, W: Tensor, starts: Tensor, out: Tensor) -> None:
    chunks, firsts = cut(starts, J.device)
    backend.core().combine(J, W, chunks, firsts, out, torch.get_num_threads())


def _triton(J: Tensor, W: Tensor, starts: Tensor, out: Tensor) -> None:
    from mtlcore.ops.triton.combine import combine

    combine(J, W, cut(starts, J.device), out)


for _op in ("combine", "combine_by_slice"):  # the first is the case of one slice
    backend.declare(_op, reference=_reference, cpp=_compiled, cuda=_compiled, triton=_triton)
