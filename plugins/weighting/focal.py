"""Attention to the tasks that are done badly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch
from annotated_types import Ge, Lt

from mtlcore.components import NotNegative
from mtlcore_plugins.weighting._state import Remembering

if TYPE_CHECKING:
    from torch import Tensor

    from mtlcore.gradients import Gradients
    from mtlcore.run import Run

# The least k: a loss of 23. Below it a weight would grow by a loss that says nothing more.
LEAST = 1e-10


class Focal(Remembering):
    """Weigh tasks up while they are done badly: focal loss over tasks (task prioritization).

    Dynamic Task Prioritization for Multitask Learning (ECCV 2018),
    https://doi.org/10.1007/978-3-030-01270-0_17

        w_t = -(1 - k_t)^gamma log k_t,    k_t <- smoothing k_t + (1 - smoothing) exp(-l_t)

    k_t in (0, 1] says how well task t is done. In the paper it is a score such as the accuracy;
    here it is exp(-l_t), the geometric mean of the probabilities that the model gives the labels,
    which every task has in every step. The authors published no code. The first loss of a task
    starts its k_t; an absent task keeps it. k_t counts as at least 1e-10, so that a weight is at
    most 23. A task without loss has the weight 0. A `loss_weight` above 1 makes a task look harder.

    gamma: how fast done tasks lose weight (2.0, that of Focal Loss for Dense Object Detection,
        https://arxiv.org/abs/1708.02002; the paper gives each task one); 0 is -log k_t.
    smoothing: share of the past in k_t (0.9: a step's loss is one of few rows); 0 has none. It is 1
        less the paper's discount factor.
    Shapes: losses, weights [T']. Native scale: about the sum of the losses, less as they fall.
    """

    name = "focal"
    paper = (
        "Dynamic Task Prioritization for Multitask Learning (ECCV 2018), "
        "https://doi.org/10.1007/978-3-030-01270-0_17"
    )
    needs = "losses"
    native_scale = "sum of (1 - k_t)^gamma times -log k_t: falls with the losses, to 0"

    def __init__(
        self, *, gamma: NotNegative = 2.0, smoothing: Annotated[float, Ge(0), Lt(1)] = 0.9
    ) -> None:
        self.gamma = gamma
        self.smoothing = smoothing

    def mtlcore_weigh_tasks(self, run: Run, losses: Tensor, gradients: Gradients) -> Tensor:
        """[T'] the focal loss of each k, with this step's loss in it."""
        [failure] = self.remembered(run, [torch.nan])  # 1 - k [T]: keeps the digits of tiny losses
        now = -torch.expm1(-losses)
        past = failure[gradients.present]
        failure[gradients.present] = torch.where(
            past.isnan(), now, torch.lerp(now, past, self.smoothing)
        )
        rest = failure[gradients.present].clamp(max=1 - LEAST)
        weights: Tensor = rest**self.gamma * -torch.log1p(-rest)
        return weights
