"""Learned scales that bring the losses of all tasks to one size."""

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


class IMTLL(Remembering):
    """Scale each loss by a learned factor, until all scaled losses are 1 (IMTL-L).

    Towards Impartial Multi-task Learning (ICLR 2021), https://openreview.net/forum?id=IMPnRXEWpvr

        minimise  sum_t  exp(s_t) l_t - s_t    over the model and s [T]
        w_t = exp(s_t)

    The weights of a step use s as it is; then s takes one step of Adam (betas 0.9, 0.999) down its
    gradient exp(s_t) l_t - 1, with the losses of the present tasks. An absent task keeps its s_t
    and moments. At rest w_t = 1 / l_t, what `scale_invariant` takes at once; a `loss_weight` then
    has no effect. It is `uncertainty` times 2, with s of the other sign. |s_t| stays below 69,
    where a loss of 0 would take it. TorchJD and LibMTL leave the step to the model's optimizer.

    learning_rate: of s, apart from the model's: about the most that s_t moves in a step (0.025, as
        for `uncertainty`).
    s starts at 0, as in TorchJD and LibMTL.
    Shapes: losses, weights [T'], s [T] float64. Native scale: 1 per task at the start.
    """

    name = "imtl_l"
    paper = (
        "Towards Impartial Multi-task Learning (ICLR 2021), "
        "https://openreview.net/forum?id=IMPnRXEWpvr"
    )
    needs = "losses"
    native_scale = "T at the start, then sum of 1 / l_t"

    def __init__(self, *, learning_rate: Positive = 0.025) -> None:
        self.learning_rate = learning_rate

    def mtlcore_weigh_tasks(self, run: Run, losses: Tensor, gradients: Gradients) -> Tensor:
        """[T'] the scales, then one step on s."""
        state = self.remembered(run, START)
        weights = torch.exp(state[0, gradients.present])
        slopes = weights * losses - 1
        adam_step(state, gradients.present, slopes, learning_rate=self.learning_rate)
        state[0].clamp_(-LIMIT, LIMIT)
        return weights
