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

    The weights of a step use s as it is; then s takes one step of Adam (betas 0.9, 0.999, as the
    models of the field use) along its gradient 1/2 - 1/2 exp(-s_t) l_t, with the losses of the
    present tasks. An absent task keeps its s_t and moments. At rest exp(s_t) = l_t. A plain
    gradient step would throw s_t so far at a large loss that its weight is 0 for long.

    learning_rate: of s, apart from the model's: about the most that s_t moves in a step (0.025).
    s starts at 0.
    Shapes: losses, weights [T'], s [T] float64. Native scale: 1/2 per task at the start.
    """

    name = "uncertainty"
    paper = (
        "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics "
        "(CVPR 2018), https://arxiv.org/abs/1705.07115"
    )
    needs = "losses"
    native_scale = "T/2 at the start, then sum of 1 / (2 l_t)"

    BETAS = (0.9, 0.999)

    def __init__(self, *, learning_rate: Positive = 0.025) -> None:
        self.learning_rate = learning_rate
        # By row: s, its two moments and its number of steps, each [T].
        self.state: Tensor | None = None

    def mtlcore_weigh_tasks(self, run: Run, losses: Tensor, gradients: Gradients) -> Tensor:
        """[T'] half the precisions, then one step on s."""
        if self.state is None:
            self.state = torch.zeros(4, len(run.tasks), dtype=torch.float64)
        present = torch.as_tensor(gradients.present, dtype=torch.long)
        s, first, second, steps = self.state[:, present]  # [T'] each
        weights = 0.5 * torch.exp(-s)
        slope = 0.5 - weights * losses
        steps = steps + 1
        first = torch.lerp(slope, first, self.BETAS[0])
        second = torch.lerp(slope.square(), second, self.BETAS[1])
        size = (second / (1 - self.BETAS[1] ** steps)).sqrt() + 1e-8
        s = s - self.learning_rate * first / (1 - self.BETAS[0] ** steps) / size
        self.state[:, present] = torch.stack([s, first, second, steps])
        return weights

    def state_dict(self) -> dict[str, Any]:
        """s, moments and steps [4, T], once a step was taken."""
        return {} if self.state is None else {"state": self.state.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        saved = state.get("state")
        self.state = None if saved is None else saved.clone()
