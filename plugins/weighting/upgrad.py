"""The mean of the task gradients, each projected to conflict with none, found exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mtlcore_plugins.weighting._cone import Projecting

if TYPE_CHECKING:
    from torch import Tensor

    from mtlcore.gradients import Gradients
    from mtlcore.run import Run


class UPGrad(Projecting):
    """Project each task gradient onto the directions that harm no task, then take their mean.

    Jacobian Descent for Multi-Objective Optimization (arXiv 2024),
    https://arxiv.org/abs/2406.16232

        w = 1/T sum_i v_i,     v_i = argmin v'Gv  over  v >= e_i

    Jᵀ v_i is the projection of gradient i onto the cone of all d with J d >= 0, so the update
    raises the loss of no task, to first order. Each problem is solved exactly (to rounding; see
    `mtlcore.ops.cone_minimum`). A zero gradient has the weight 1/T and changes no other.

    reg_eps: added to the diagonal of G / trace G, as TorchJD does (1e-4 there). 0 solves the
        problem as it is written; above 0 weights stay small when tasks nearly oppose each other,
        and the update may then harm a task a little.
    scope: where conflicts are looked for: in all shared weights ("model", the paper's), or in each
        layer or LoRA factor by itself.
    Shapes: G [T', T'] or [S, T', T'], weights [T'] or [S, T'].
    Native scale: that of the mean of the gradients: without conflicts every weight is 1/T, T all
        tasks of the run.
    """

    name = "upgrad"
    paper = (
        "Jacobian Descent for Multi-Objective Optimization (arXiv 2024), "
        "https://arxiv.org/abs/2406.16232"
    )
    native_scale = "T'/T without conflicts, more with them: the mean of projected gradients"

    def mtlcore_weigh_tasks(self, run: Run, gradients: Gradients) -> Tensor:
        """[T'] or [S, T']: the v_i, summed, times 1/T."""
        gramian = gradients.gramian(self.scope)
        each = torch.eye(gramian.shape[-1], dtype=torch.float64)
        return self.projected(gramian, each).sum(dim=-2) / len(self.weighed(run))
