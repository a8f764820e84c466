"""The Gramian of the task gradients, whole or by slice, and their products with other vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlcore.ops import backend
from mtlcore.ops.checks import check_dense_rows, check_tensor
from mtlcore.ops.slices import check_starts, cut, one_slice

_FLOATS = (torch.float32, torch.float64)


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
    _check_rows("J", J, like=J)
    return _gramian(J, one_slice(J.shape[1]))[0]


def gramian_by_slice(J: Tensor, starts: Tensor | Sequence[int]) -> Tensor:
    """One Gramian for each slice of columns, in one pass: by layer, or by factor.

        G[s] = J[:, a:b] J[:, a:b]ᵀ,    a = starts[s], b = starts[s + 1]

    Args:
        J: [T, P], as in `gramian`.
        starts: the S + 1 borders of the slices, ascending within [0, P]: int64 on the CPU, or
            whole numbers. A slice may be empty.

    Returns:
        G [S, T, T] float64, symmetric, zeros for an empty slice; summed as in `gramian`. On the CPU
        G[s] has the bits of `gramian(J[:, a:b])`.

    Raises:
        TypeError: J as in `gramian`; starts are no whole numbers, or not int64.
        ValueError: J as in `gramian`; starts do not ascend within [0, P].
    """
    _check_rows("J", J, like=J)
    return _gramian(J, check_starts(starts, J.shape[1]))


def cross_gramian(J: Tensor, v: Tensor) -> Tensor:
    """Inner products of the task gradients with other vectors: a probe's gradient, an update.

        C = J Vᵀ,    C[t, m] = Σ_p J[t, p] V[m, p]

    Args:
        J: [T, P], as in `gramian`.
        v: [M, P], or one vector [P], of J's dtype and device, dense like J.

    Returns:
        C [T, M], or [T] for one vector, float64; summed as in `gramian`.

    Raises:
        TypeError: an argument is no tensor, or of another dtype.
        ValueError: an argument has another shape or device, requires grad, or is not dense.
    """
    _check_rows("J", J, like=J)
    single = isinstance(v, Tensor) and v.ndim == 1
    V = v[None] if single else v  # [M, P]
    _check_rows("v", V, like=J, dtypes=(J.dtype,))
    if V.shape[1] != J.shape[1]:
        raise ValueError(f"v must have P = {J.shape[1]} columns, found shape {list(v.shape)}")
    out = J.new_empty((1, J.shape[0], V.shape[0]), dtype=torch.float64)  # [1, T, M]
    raw_cross_gramian(J, V, out)
    return out[0, :, 0] if single else out[0]


def _check_rows(
    name: str, rows: Tensor, *, like: Tensor, dtypes: Sequence[torch.dtype] = _FLOATS
) -> None:
    check_tensor(name, rows, ndim=2, dtypes=dtypes, like=like)
    check_dense_rows(name, rows)


def _gramian(J: Tensor, starts: Tensor) -> Tensor:
    tasks = J.shape[0]
    out = J.new_empty((len(starts) - 1, tasks, tasks), dtype=torch.float64)  # [S, T, T]
    raw_gramian(J, starts, out)
    return out


@torch.library.custom_op("mtlcore::gramian", mutates_args=("out",))
def raw_gramian(J: Tensor, starts: Tensor, out: Tensor) -> None:
    """`gramian_by_slice` without checks, into `out` [S, T, T] float64; opaque to torch.compile, no
    autograd."""
    backend.kernel("gramian", J.device)(J, starts, out)


@torch.library.custom_op("mtlcore::cross_gramian", mutates_args=("out",))
def raw_cross_gramian(J: Tensor, V: Tensor, out: Tensor) -> None:
    """`cross_gramian` without checks, V [M, P], into `out` [1, T, M] float64; likewise."""
    backend.kernel("cross_gramian", J.device)(J, V, out)


@raw_gramian.register_fake
def _fake(J: Tensor, starts: Tensor, out: Tensor) -> None:
    return None


@raw_cross_gramian.register_fake
def _fake_cross(J: Tensor, V: Tensor, out: Tensor) -> None:
    return None


def _reference(J: Tensor, starts: Tensor, out: Tensor) -> None:
    from mtlcore.ops.reference.gramian import gramian_by_slice

    out.copy_(gramian_by_slice(J, starts.tolist()))


def _reference_cross(J: Tensor, V: Tensor, out: Tensor) -> None:
    from mtlcore.ops.reference.gramian import cross_gramian

    out.copy_(cross_gramian(J, V))


def _compiled(J: Tensor, starts: Tensor, out: Tensor) -> None:
    chunks, firsts = cut(starts, J.device)
    # One partial Gramian per chunk of columns; added up in order at the end.
    partials = out.new_empty((len(chunks), *out.shape[1:]))
    backend.core().gramian(J, chunks, firsts, partials, out, torch.get_num_threads())


def _compiled_cross(J: Tensor, V: Tensor, out: Tensor) -> None:
    chunks, firsts = cut(one_slice(J.shape[1]), J.device)
    partials = out.new_empty((len(chunks), *out.shape[1:]))
    backend.core().cross_gramian(J, V, chunks, firsts, partials, out, torch.get_num_threads())


def _triton(J: Tensor, starts: Tensor, out: Tensor) -> None:
    from mtlcore.ops.triton.gramian import products

    products(J, J, cut(starts, J.device), out, symmetric=True)


def _triton_cross(J: Tensor, V: Tensor, out: Tensor) -> None:
    from mtlcore.ops.triton.gramian import products

    products(J, V, cut(one_slice(J.shape[1]), J.device), out, symmetric=False)


for _op in ("gramian", "gramian_by_slice"):  # the first is the case of one slice
    backend.declare(_op, reference=_reference, cpp=_compiled, cuda=_compiled, triton=_triton)
backend.declare(
    "cross_gramian",
    reference=_reference_cross,
    cpp=_compiled_cross,
    cuda=_compiled_cross,
    triton=_triton_cross,
)
