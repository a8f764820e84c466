"""The mean of the task gradients, projected to conflict with none, found exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mtlcore_plugins.weighting._cone import Projecting

if TYPE_CHECKING:
    from torch import Tensor

    from mtlcore.gradients import Gradients
    from mtlcore.run import Run


class DualProj(Projecting):
    """Project the mean gradient onto the directions that harm no task.

    Gradient Episodic Memory for Continual Learning (NeurIPS 2017),
    https://arxiv.org/abs/1706.08840; for the tasks of one step as in Jacobian Descent for
    Multi-Objective Optimization (arXiv 2024), https://arxiv.org/abs/2406.16232

        w = argmin v'Gv  over  v >= 1/T

    Jᵀ w is the projection of the mean gradient onto the cone of all d with J d >= 0: one problem,
    where `upgrad` has one for each task. Solved exactly (to rounding; see
    `mtlcore.ops.cone_minimum`). GEM's margin and Avalanche's 1e-3 on the diagonal are left out. A
    zero gradient has the weight 1/T and changes no other; opposed gradients stand still.

    reg_eps: added to the diagonal of G / trace G, as TorchJD does (1e-4 there). 0 solves the
        problem as it is written; above 0 weights stay small when tasks nearly oppose each other,
        and the update may then harm a task a little.
    scope: where conflicts are looked for: in all shared weights ("model", the paper's), or in each
        layer or LoRA factor by itself.
    Shapes: G [T', T'] or [S, T', T'], weights [T'] or [S, T'].
    Native scale: that of the mean of the gradients: without conflicts every weight is 1/T, T all
        tasks of the run.
    """

    name = "dualproj"
    paper = (
        "Gradient Episodic Memory for Continual Learning (NeurIPS 2017), "
        "https://arxiv.org/abs/1706.08840"
    )
    native_scale = "T'/T without conflicts, more with them: the projected mean gradient"

    def mtlcore_weigh_tasks(self, run: Run, gradients: Gradients) -> Tensor:
        """[T'] or [S, T']: the one row of the solution."""
        gramian = gradients.gramian(self.scope)
        mean = torch.full((1, gramian.shape[-1]), 1 / len(self.weighed(run)), dtype=torch.float64)
        return self.projected(gramian, mean)[..., 0, :]
