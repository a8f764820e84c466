"""Specification of `mtlcore.ops.gramian`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


def gramian(J: Tensor) -> Tensor:
    """G = J Jᵀ in float64, symmetric to the last bit. J [T, P] -> G [T, T]."""
    J = J.double()
    upper = (J @ J.T).triu()  # a BLAS may round G[s, t] and G[t, s] differently
    return upper + upper.triu(1).T


def gramian_by_slice(J: Tensor, starts: Sequence[int]) -> Tensor:
    """The Gramian of each J[:, starts[s]:starts[s + 1]]. J [T, P] -> G [S, T, T]."""
    empty = J.new_empty((0, len(J), len(J)), dtype=torch.float64)  # of no slice
    parts = [gramian(J[:, start:stop])[None] for start, stop in pairwise(starts)]
    return torch.cat([empty, *parts])


def cross_gramian(J: Tensor, V: Tensor) -> Tensor:
    """C = J Vᵀ in float64. J [T, P], V [M, P] -> C [T, M]."""
    return J.double() @ V.double().T
