"""The geometric mean of the losses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mtlcore.components import Weighting

if TYPE_CHECKING:
    from torch import Tensor

    from mtlcore.gradients import Gradients
    from mtlcore.run import Run


class Geometric(Weighting):
    """Minimise the geometric mean of the losses: tasks count by their relative progress (GLS).

    MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss Strategy for Multi-Task Learning
    (CVPR Workshops 2019), https://arxiv.org/abs/1904.08492

        minimise  m = (prod_t l_t)^(1/T),    w_t = m / (T l_t)

    `scale_invariant` times m / T: the same direction, with a length that stays that of a mean loss.
    m is over the present tasks, 1/T counts all of the run. LibMTL takes the same gradient, but
    reports l_t / (T prod l), which is not its weight. A loss of 0 would make every other weight 0:
    it is left out of m, and its own weight is 0. A `loss_weight` only scales all weights alike:
    differing ones are a warning.
    Shapes: losses, weights [T']. Native scale: about 1, as `equal`; it is 1 where losses are equal.
    """

    name = "geometric"
    paper = (
        "MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss Strategy for Multi-Task "
        "Learning (CVPR Workshops 2019), https://arxiv.org/abs/1904.08492"
    )
    needs = "losses"
    native_scale = "geometric over harmonic mean of the losses: at least 1, all tasks present"
    homogeneity = 0
    undoes_scale = True

    def mtlcore_weigh_tasks(self, run: Run, losses: Tensor, gradients: Gradients) -> Tensor:
        """[T'] the geometric mean over each loss, times 1/T."""
        weights = torch.zeros_like(losses)
        positive = losses > 0
        if positive.any():
            logs = losses[positive].log()
            weights[positive] = torch.exp(logs.mean() - logs) / len(self.weighed(run))
        return weights
