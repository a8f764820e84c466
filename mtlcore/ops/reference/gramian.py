"""Specification of `mtlcore.ops.gramian`."""

from __future__ import annotations

from torch import Tensor


def gramian(J: Tensor) -> Tensor:
    """G = J Jᵀ in float64, symmetric to the last bit. J [T, P] -> G [T, T]."""
    J = J.double()
    upper = (J @ J.T).triu()  # a BLAS may round G[s, t] and G[t, s] differently
    return upper + upper.triu(1).T
