"""The norms of gradients, from their Gramian."""

from __future__ import annotations

import torch
from torch import Tensor


def norms(gramian: Tensor) -> Tensor:
    """|g_i| [..., T] from G [..., T, T]."""
    return gramian.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()


def inverse(values: Tensor) -> Tensor:
    """1 / values, and 0 for 0."""
    return torch.where(values > 0, 1 / values, 0)
