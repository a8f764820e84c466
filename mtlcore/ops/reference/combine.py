"""Specification of `mtlcore.ops.combine`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def combine(J: Tensor, w: Tensor) -> Tensor:
    """g = Jᵀ w, summed in float64. J [T, P], w [T] -> g [P] in J's dtype."""
    return (w.double() @ J.double()).to(J.dtype)


def combine_by_slice(J: Tensor, W: Tensor, starts: Sequence[int]) -> Tensor:
    """The same with W[s] in the columns from starts[s] to starts[s + 1]. W [S, T] -> g [P]."""
    slices = zip(W, starts, starts[1:], strict=False)
    return torch.cat([J.new_empty(0), *(combine(J[:, a:b], w) for w, a, b in slices)])
