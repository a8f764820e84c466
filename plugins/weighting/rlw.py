"""Weights by chance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mtlcore.components import Weighting

if TYPE_CHECKING:
    from torch import Tensor

    from mtlcore.gradients import Gradients
    from mtlcore.run import Run


class RLW(Weighting):
    """Draw new weights in every step (random loss weighting): the bar for methods that adapt.

    Reasonable Effectiveness of Random Weighting: A Litmus Test for Multi-Task Learning
    (TMLR 2022), https://arxiv.org/abs/2111.10603

        w = softmax(z),    z ~ N(0, 1)^T anew in each step

    Drawn from the run's seed and the step, for all tasks of the run: a weight does not depend on
    who else is present. TorchJD and LibMTL agree with it where all tasks are present.
    Shapes: weights [T'] float64, on average 1/T each. Native scale: 1 when all tasks are present.
    """

    name = "rlw"
    paper = (
        "Reasonable Effectiveness of Random Weighting: A Litmus Test for Multi-Task Learning "
        "(TMLR 2022), https://arxiv.org/abs/2111.10603"
    )
    needs = "nothing"
    native_scale = "1 when all tasks are present, T'/T on average otherwise"
    symmetric = False
    homogeneity = 0

    def mtlcore_weigh_tasks(self, run: Run, gradients: Gradients) -> Tensor:
        """[T'] the softmax of normal draws."""
        generator = run.generator(run.step, self.name)
        drawn = torch.randn(len(run.tasks), generator=generator, dtype=torch.float64)
        weighed, weights = self.weighed(run), torch.zeros_like(drawn)
        weights[weighed] = torch.softmax(drawn[weighed], dim=0)
        return weights[gradients.present]
