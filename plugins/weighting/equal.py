"""The same weight for every task."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mtlcore.components import Weighting

if TYPE_CHECKING:
    from torch import Tensor

    from mtlcore.gradients import Gradients
    from mtlcore.run import Run


class Equal(Weighting):
    """Give every task the weight 1/T (the mean of the task losses).

    In Defense of the Unitary Scalarization for Deep Multi-Task Learning (NeurIPS 2022),
    https://arxiv.org/abs/2201.04122

        w_t = 1 / T

    T counts all tasks of the run: when some are absent from a step, the others keep 1/T.
    Shapes: weights [T']. Native scale: the weights sum to T'/T.
    """

    name = "equal"
    paper = (
        "In Defense of the Unitary Scalarization for Deep Multi-Task Learning (NeurIPS 2022), "
        "https://arxiv.org/abs/2201.04122"
    )
    needs = "nothing"
    native_scale = "sum 1 when all tasks are present, T'/T otherwise"
    homogeneity = 0

    def mtlcore_weigh_tasks(self, run: Run, gradients: Gradients) -> Tensor:
        """[T'] times 1/T."""
        return torch.full(
            (len(gradients.present),), 1 / len(self.weighed(run)), dtype=torch.float64
        )
