"""Each loss in units of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mtlcore.components import Weighting

if TYPE_CHECKING:
    from torch import Tensor

    from mtlcore.gradients import Gradients
    from mtlcore.run import Run


class ScaleInvariant(Weighting):
    """Minimise the sum of the log losses, so that no loss leads because its numbers are large.

    Multi-Task Learning as a Bargaining Game (ICML 2022), https://arxiv.org/abs/2202.01017, the
    baseline "scale-invariant" (SI)

        minimise  sum_t log l_t,    w_t = 1 / l_t

    The sum, as in the authors' code (https://github.com/AvivNavon/nash-mtl), not the mean. A loss
    of 0 has no logarithm and no gradient: its weight is 0, and the others do not see it. The scale
    of a loss cancels, and with it a `loss_weight`: differing ones are a warning.
    Shapes: losses, weights [T']. Native scale: sum of 1 / l_t, which grows as the losses fall.
    """

    name = "scale_invariant"
    paper = "Multi-Task Learning as a Bargaining Game (ICML 2022), https://arxiv.org/abs/2202.01017"
    needs = "losses"
    native_scale = "sum of 1 / l_t of the present tasks: larger as the losses fall"
    homogeneity = -1
    undoes_scale = True

    def mtlcore_weigh_tasks(self, run: Run, losses: Tensor, gradients: Gradients) -> Tensor:
        """[T'] one over each loss."""
        smallest = torch.finfo(losses.dtype).tiny  # 1 / l overflows below it
        return torch.where(losses > 0, 1 / losses.clamp(min=smallest), 0)
