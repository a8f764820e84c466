"""Specification of `mtlcore.ops.combine`."""

from __future__ import annotations

from torch import Tensor


def combine(J: Tensor, w: Tensor) -> Tensor:
    """g = Jᵀ w, summed in float64. J [T, P], w [T] -> g [P] in J's dtype."""
    return (w.double() @ J.double()).to(J.dtype)
