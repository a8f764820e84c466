"""Gradients of the log losses, all brought to the length of the longest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtlcore.components import Scope, Weighting
from mtlcore_plugins.weighting._units import inverse, norms

if TYPE_CHECKING:
    from torch import Tensor

    from mtlcore.gradients import Gradients

# What LibMTL adds to a loss before its logarithm is the least that is taken for one here.
SMALLEST_LOSS = 1e-8


class DBMTL(Weighting):
    """Balance losses by their logarithm and gradients by their length (DB-MTL).

    Dual-Balancing for Multi-Task Learning (arXiv 2023), https://arxiv.org/abs/2308.12029

        update = m sum_i h_i / |h_i|,    h_i = grad log l_i = g_i / l_i,    m = max_k |h_k|
        w_i = m / |g_i|

    Losses below 1e-8 count as 1e-8 (LibMTL adds 1e-8 to all). A zero gradient has the weight 0
    (LibMTL: 1e8 times nothing).

    The paper averages the h_i over the steps first (beta 0.9 in LibMTL). That takes another [T, P]
    of memory and of every checkpoint, and Adam averages the update anyway: it is not offered, and
    this is LibMTL's with DB_beta = 0.

    scope: where lengths are made equal: in all shared weights ("model", the paper's), or in each
        layer or LoRA factor by itself, with m of its own.
    Shapes: losses [T'], G [T', T'] or [S, T', T'], weights [T'] or [S, T'].
    Native scale: T' gradients of the length m; `loss_weight` of a task has no effect.
    """

    name = "db_mtl"
    paper = "Dual-Balancing for Multi-Task Learning (arXiv 2023), https://arxiv.org/abs/2308.12029"
    needs = "gramian"
    native_scale = "the sum of T' gradients as long as the longest gradient of a log loss"
    homogeneity = -1
    undoes_scale = True

    def __init__(self, *, scope: Scope = "model") -> None:
        self.scope = scope

    def mtlcore_weigh_tasks(self, losses: Tensor, gradients: Gradients) -> Tensor:
        """[T'] or [S, T']: m by the length of each gradient."""
        lengths = norms(gradients.gramian(self.scope))
        longest = (lengths / losses.clamp(min=SMALLEST_LOSS)).amax(dim=-1, keepdim=True)
        return longest * inverse(lengths)
