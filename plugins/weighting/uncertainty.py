"""Weights learned from the tasks' losses as noise levels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mtlcore.components import Positive, Weighting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from mtlcore.gradients import Gradients
    from mtlcore.run import Run


class Uncertainty(Weighting):
    """Weigh each task by a learned uncertainty, so that no loss is large for its units alone.

    Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics
    (CVPR 2018), https://arxiv.org/abs/1705.07115

        minimise  sum_t  1/2 exp(-s_t) l_t + 1/2 s_t    over the model and s = log sigma^2 [T]
        w_t = 1/2 exp(-s_t)

    The weights of a step use s as it is; then s takes one plain gradient step
    s_t <- s_t - learning_rate (1/2 - 1/2 exp(-s_t) l_t) with the losses of the present tasks.
    The s_t of an absent task is kept. At rest exp(s_t) = l_t.

    learning_rate: of s, apart from the model's. s starts at 0.
    Shapes: losses, weights [T'], s [T] float64. Native scale: 1/2 per task at the start.
    """

    name = "uncertainty"
    paper = (
        "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics "
        "(CVPR 2018), https://arxiv.org/abs/1705.07115"
    )
    needs = "losses"
    native_scale = "T/2 at the start, then sum of 1 / (2 l_t)"

    def __init__(self, *, learning_rate: Positive = 0.025) -> None:
        self.learning_rate = learning_rate
        self.log_variances: Tensor | None = None  # s [T]

    def mtlcore_weigh_tasks(self, run: Run, losses: Tensor, gradients: Gradients) -> Tensor:
        """[T'] half the precisions, then one step on s."""
        if self.log_variances is None:
            self.log_variances = torch.zeros(len(run.tasks), dtype=torch.float64)
        present = torch.as_tensor(gradients.present, dtype=torch.long)
        weights = 0.5 * torch.exp(-self.log_variances[present])  # [T']
        self.log_variances[present] -= self.learning_rate * (0.5 - weights * losses)
        return weights

    def state_dict(self) -> dict[str, Any]:
        """s [T], once a step was taken."""
        return {} if self.log_variances is None else {"log_variances": self.log_variances.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back s."""
        saved = state.get("log_variances")
        self.log_variances = None if saved is None else saved.clone()
