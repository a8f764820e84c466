"""What UPGrad and DualProj share: projections onto the updates that harm no task."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mtlcore.components import NotNegative, Scope, Weighting
from mtlcore.ops import cone_minimum

if TYPE_CHECKING:
    from torch import Tensor


class Projecting(Weighting):
    """A weighting made of projections of gradients onto the updates that harm no task."""

    needs = "gramian"
    homogeneity = 0

    def __init__(self, *, reg_eps: NotNegative = 0.0, scope: Scope = "model") -> None:
        self.reg_eps = reg_eps
        self.scope = scope

    def projected(self, gramian: Tensor, bounds: Tensor) -> Tensor:
        """argmin v'Gv over v >= u [..., R, T'] for each row u [T'] of `bounds` [R, T'].

        `reg_eps` is added to the diagonal of G / trace G, G [..., T', T'].
        """
        if self.reg_eps:
            trace = gramian.diagonal(dim1=-2, dim2=-1).sum(dim=-1)[..., None, None]
            eye = torch.eye(gramian.shape[-1], dtype=gramian.dtype)
            gramian = gramian + self.reg_eps * trace * eye
        return cone_minimum(gramian, bounds.expand(*gramian.shape[:-2], *bounds.shape))
