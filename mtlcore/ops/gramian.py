"""The Gramian of the task gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlcore.ops import backend
from mtlcore.ops.checks import check_dense_rows, check_tensor


def gramian(J: Tensor) -> Tensor:
    """Inner products of all pairs of task gradients: norms, conflicts, affinities.

        G = J Jᵀ,    G[s, t] = Σ_p J[s, p] J[t, p]

    Args:
        J: [T, P] float32 or float64, without grad. Rows must be dense, but may lie further apart
            than P: a column slice `J[:, a:b]` is read in place.

    Returns:
        G [T, T] float64, symmetric; zeros when P = 0. float32 products are summed in float32 over
        at most 1,024 columns, then in float64, so entries of J between 1e-18 and 1e18 in size are
        safe. The compiled kernels give the same bits in every run; on the CPU, with any number of
        threads too.

    Raises:
        TypeError: J is no tensor, or of another dtype.
        ValueError: J is no matrix, requires grad, or its rows are not dense.
    """
    check_tensor("J", J, ndim=2, dtypes=(torch.float32, torch.float64), like=J)
    check_dense_rows("J", J)
    out = J.new_empty((J.shape[0], J.shape[0]), dtype=torch.float64)  # [T, T]
    raw_gramian(J, out)
    return out


@torch.library.custom_op("mtlcore::gramian", mutates_args=("out",))
def raw_gramian(J: Tensor, out: Tensor) -> None:
    """`gramian` without checks, into `out` [T, T] float64; opaque to torch.compile, no autograd."""
    backend.kernel("gramian", J.device)(J, out)


@raw_gramian.register_fake
def _fake(J: Tensor, out: Tensor) -> None:
    return None


def _reference(J: Tensor, out: Tensor) -> None:
    from mtlcore.ops.reference.gramian import gramian

    out.copy_(gramian(J))


def _compiled(J: Tensor, out: Tensor) -> None:
    core = backend.core()
    tasks, columns = J.shape
    # One partial Gramian per chunk of columns; added up in order at the end.
    partials = out.new_empty((core.gramian_chunks(columns), tasks, tasks))
    core.gramian(J, partials, out, torch.get_num_threads())


def _triton(J: Tensor, out: Tensor) -> None:
    from mtlcore.ops.triton.gramian import gramian

    gramian(J, out)


backend.declare("gramian", reference=_reference, cpp=_compiled, cuda=_compiled, triton=_triton)
