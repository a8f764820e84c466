"""What UPGrad and DualProj share: projections onto the updates that harm no task."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mtlcore.ops import cone_minimum

if TYPE_CHECKING:
    from torch import Tensor


def projected(gramian: Tensor, bounds: Tensor, reg_eps: float) -> Tensor:
    """argmin v'Gv over v >= u [..., R, T'] for each row u of `bounds` [R, T'], G [..., T', T'].

    reg_eps: added to the diagonal of G / trace G.
    """
    if reg_eps:
        trace = gramian.diagonal(dim1=-2, dim2=-1).sum(dim=-1)[..., None, None]
        gramian = gramian + reg_eps * trace * torch.eye(gramian.shape[-1], dtype=gramian.dtype)
    return cone_minimum(gramian, bounds.expand(*gramian.shape[:-2], *bounds.shape))
