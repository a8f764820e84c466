"""A smooth maximum of the losses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mtlcore.components import Positive, Weighting

if TYPE_CHECKING:
    from torch import Tensor

    from mtlcore.gradients import Gradients
    from mtlcore.run import Run


class STCH(Weighting):
    """Minimise a smooth maximum of the losses: the worst task leads (smooth Tchebycheff).

    Smooth Tchebycheff Scalarization for Multi-Objective Optimization (ICML 2024),
    https://arxiv.org/abs/2402.19078

        minimise  mu log sum_t exp(l_t / (T mu)),    w = 1/T softmax(l / (T mu))

    The paper's form with equal preferences 1/T and the ideal point 0, as TorchJD has it. A task's
    preference is its `loss_weight`. LibMTL, after the authors' code, differs: it puts
    log(l_t / n_t) for l_t / T, with n_t the mean loss of a warm-up epoch in which it minimises the
    sum of the log losses, and multiplies by T. The softmax is over the present tasks.

    mu: near 0 the worst task alone counts, far above the losses / T all alike. The paper tries
        0.01, 0.1, 0.5 and 1 and names none best; TorchJD asks for it; 1.0 is LibMTL's.
    Shapes: losses, weights [T']. Native scale: 1/T, T times smaller than `equal`.
    """

    name = "stch"
    paper = (
        "Smooth Tchebycheff Scalarization for Multi-Objective Optimization (ICML 2024), "
        "https://arxiv.org/abs/2402.19078"
    )
    needs = "losses"
    native_scale = "1/T: the gradient of a weighted maximum with preferences 1/T"

    def __init__(self, *, mu: Positive = 1.0) -> None:
        self.mu = mu

    def mtlcore_weigh_tasks(self, run: Run, losses: Tensor, gradients: Gradients) -> Tensor:
        """[T'] the softmax of the losses, times 1/T."""
        tasks = len(self.weighed(run))
        # From the largest down: a small mu would overflow.
        return torch.softmax((losses - losses.max()) / tasks / self.mu, dim=0) / tasks
