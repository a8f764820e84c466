"""The weighted sum of the task gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlcore.ops import backend
from mtlcore.ops.checks import check_dense_rows, check_shape, check_tensor

_FLOATS = (torch.float32, torch.float64)


def combine(J: Tensor, w: Tensor, *, out: Tensor | None = None) -> Tensor:
    """The update direction that the task weights make of the task gradients.

        g = Jᵀ w,    g[p] = Σ_t w[t] J[t, p]

    Args:
        J: [T, P] float32 or float64, without grad. Rows must be dense, but may lie further apart
            than P: a column slice `J[:, a:b]` is read in place.
        w: [T] float32 or float64 on J's device; rounded to J's dtype.
        out: [P] contiguous, of J's dtype: filled instead of a new tensor, so that a trainer writes
            every step into the same gradient buffer.

    Returns:
        g [P] in J's dtype (`out`, if given); the sum runs in J's dtype, in the order of the tasks.
        The compiled kernels give the same bits in every run, with any number of threads.

    Raises:
        TypeError: an argument is no tensor, or of another dtype.
        ValueError: an argument has another shape or device, requires grad, or is not dense.
    """
    check_tensor("J", J, ndim=2, dtypes=_FLOATS, like=J)
    check_dense_rows("J", J)
    check_tensor("w", w, ndim=1, dtypes=_FLOATS, like=J)
    check_shape("w", w, J.shape[:1], "[T]")
    if out is None:
        out = J.new_empty(J.shape[1])  # [P]
    else:
        check_tensor("out", out, ndim=1, dtypes=(J.dtype,), like=J)
        check_shape("out", out, J.shape[1:], "[P]")
        check_dense_rows("out", out)
    raw_combine(J, w.to(J.dtype).contiguous(), out)
    return out


@torch.library.custom_op("mtlcore::combine", mutates_args=("out",))
def raw_combine(J: Tensor, w: Tensor, out: Tensor) -> None:
    """`combine` without checks, all of one dtype, into `out` [P]; opaque to torch.compile."""
    backend.kernel("combine", J.device)(J, w, out)


@raw_combine.register_fake
def _fake(J: Tensor, w: Tensor, out: Tensor) -> None:
    return None


def _reference(J: Tensor, w: Tensor, out: Tensor) -> None:
    from mtlcore.ops.reference.combine import combine

    out.copy_(combine(J, w))


def _compiled(J: Tensor, w: Tensor, out: Tensor) -> None:
    backend.core().combine(J, w, out, torch.get_num_threads())


def _triton(J: Tensor, w: Tensor, out: Tensor) -> None:
    from mtlcore.ops.triton.combine import combine

    combine(J, w, out)


backend.declare("combine", reference=_reference, cpp=_compiled, cuda=_compiled, triton=_triton)
