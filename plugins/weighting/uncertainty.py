"""Weights learned from the tasks' losses as noise levels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mtlcore.components import Positive
from mtlcore_plugins.weighting._adam import LIMIT, START, adam_step
from mtlcore_plugins.weighting._state import Remembering

if TYPE_CHECKING:
    from torch import Tensor

    from mtlcore.gradients import Gradients
    from mtlcore.run import Run


class Uncertainty(Remembering):
    """Weigh each task by a learned uncertainty, so that no loss is large for its units alone.

    Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics
    (CVPR 2018), https://arxiv.org/abs/1705.07115

        minimise  sum_t  1/2 exp(-s_t) l_t + 1/2 s_t    over the model and s = log sigma^2 [T]
        w_t = 1/2 exp(-s_t)

    The weights of a step use s as it is; then s takes one step of Adam (betas 0.9, 0.999, as the
    models of the field use) down its gradient 1/2 - 1/2 exp(-s_t) l_t, with the losses of the
    present tasks. An absent task keeps its s_t and moments. At rest exp(s_t) = l_t; a `loss_weight`
    then has no effect. A plain gradient step would throw s_t so far at a large loss that its weight
    is 0 for long. |s_t| stays below 69, where a loss of 0 would take it.

    learning_rate: of s, apart from the model's: about the most that s_t moves in a step (0.025).
    s starts at 0, as in TorchJD (LibMTL: -0.5).
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

    def mtlcore_weigh_tasks(self, run: Run, losses: Tensor, gradients: Gradients) -> Tensor:
        """[T'] half the precisions, then one step on s."""
        state = self.remembered(run, START)
        weights = 0.5 * torch.exp(-state[0, gradients.present])
        slopes = 0.5 - weights * losses
        adam_step(state, gradients.present, slopes, learning_rate=self.learning_rate)
        state[0].clamp_(-LIMIT, LIMIT)
        return weights
