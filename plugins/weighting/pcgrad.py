"""Gradient surgery, in coefficients of the task gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtlcore.components import Scope, Weighting
from mtlcore.ops import pcgrad
from mtlcore_plugins.weighting._surgery import random_keys

if TYPE_CHECKING:
    from torch import Tensor

    from mtlcore.gradients import Gradients
    from mtlcore.run import Run


class PCGrad(Weighting):
    """Project each task gradient away from those it conflicts with, then add them up.

    Gradient Surgery for Multi-Task Learning (NeurIPS 2020), https://arxiv.org/abs/2001.06782

        for each i:  v_i = g_i;  for j != i in a random order:  if <v_i, g_j> < 0:
                     v_i <- v_i - <v_i, g_j> / |g_j|^2  g_j
        update = sum_i v_i

    Every v_i stays a combination of the g_j, v_i = sum_j C_ij g_j, so all of it is done on C with
    the Gramian G: <v_i, g_j> = (C G)_ij. The order is drawn anew each step from the run's seed.
    LibMTL's code meets g_i itself, too; the paper's algorithm, TorchJD's and this do not. A zero
    gradient changes no other, and has the weight 1.

    scope: where conflicts are looked for: in all shared weights ("model", the paper's), or in each
        layer or LoRA factor by itself; scopes share the order.
    Shapes: G [T', T'] or [S, T', T'], weights [T'] or [S, T'].
    Native scale: that of the sum of the gradients: without conflicts all weights are 1.
    """

    name = "pcgrad"
    paper = (
        "Gradient Surgery for Multi-Task Learning (NeurIPS 2020), https://arxiv.org/abs/2001.06782"
    )
    needs = "gramian"
    native_scale = "T' without conflicts: the sum of the (projected) task gradients"
    symmetric = False
    homogeneity = 0

    def __init__(self, *, scope: Scope = "model") -> None:
        self.scope = scope

    def mtlcore_weigh_tasks(self, run: Run, gradients: Gradients) -> Tensor:
        """[T'] or [S, T']: the columns of C, summed."""
        gramian = gradients.gramian(self.scope)
        return pcgrad(gramian, random_keys(run, self.name, gramian.shape[-1]))
