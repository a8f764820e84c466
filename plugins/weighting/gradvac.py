"""Gradient surgery towards the usual angles between the tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mtlcore.components import Scope, Share, Weighting
from mtlcore.ops import gradvac
from mtlcore_plugins.weighting._surgery import random_keys

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from mtlcore.gradients import Gradients
    from mtlcore.run import Run


class GradVac(Weighting):
    """Turn each task gradient until it is as near to the others as it usually is, then add them up.

    Gradient Vaccine: Investigating and Improving Multi-task Optimization in Massively Multilingual
    Models (ICLR 2021), https://arxiv.org/abs/2010.05874

        for each i:  v_i = g_i;  for j != i in a random order, t = target_ij, phi = cos(v_i, g_j):
          if phi < t:  v_i += |v_i| (t sqrt(1 - phi²) - phi sqrt(1 - t²)) / (|g_j| sqrt(1 - t²)) g_j
          target_ij <- (1 - beta) t + beta phi
        update = sum_i v_i

    Done in coefficients of the g_j, like `pcgrad`, which it equals while the targets are 0, as they
    are in the first step. The order is drawn anew each step from the run's seed.

    beta: how fast a target follows the cosines seen. 1e-2 as in the paper; TorchJD and LibMTL
        have 0.5, which takes in the noise of single steps.
    scope: where angles are measured, and targets kept: in all shared weights ("model"), or in each
        layer or LoRA factor by itself, nearest to the paper, which does so by layer.

    A target is kept while one of the two tasks is absent or has a zero gradient; such a gradient
    changes no other, and has the weight 1. Targets above 1 - 1e-6 count as that.
    Shapes: G [T', T'] or [S, T', T'], targets [T, T] or [S, T, T], weights [T'] or [S, T'].
    Native scale: that of the sum of the gradients: without a cosine below its target all are 1.
    """

    name = "gradvac"
    paper = (
        "Gradient Vaccine: Investigating and Improving Multi-task Optimization in Massively "
        "Multilingual Models (ICLR 2021), https://arxiv.org/abs/2010.05874"
    )
    needs = "gramian"
    native_scale = "T' while no cosine is below its target: the sum of the (turned) task gradients"
    symmetric = False
    homogeneity = 0

    def __init__(self, *, beta: Share = 0.01, scope: Scope = "model") -> None:
        self.beta = beta
        self.scope = scope
        self.targets: Tensor | None = None  # [..., T, T]

    def mtlcore_weigh_tasks(self, run: Run, gradients: Gradients) -> Tensor:
        """[T'] or [S, T']: the columns of the coefficients, summed."""
        gramian = gradients.gramian(self.scope)
        if self.targets is None:
            shape = (*gramian.shape[:-2], len(run.tasks), len(run.tasks))
            self.targets = torch.zeros(shape, dtype=torch.float64)
        keys = random_keys(run, self.name, len(gradients.present))
        if [*gradients.present] == [*range(len(run.tasks))]:
            weights, self.targets = gradvac(gramian, self.targets, keys, self.beta)
            return weights
        present = torch.tensor(gradients.present, dtype=torch.long)
        pairs = (..., present[:, None], present)
        weights, self.targets[pairs] = gradvac(gramian, self.targets[pairs], keys, self.beta)
        return weights

    def state_dict(self) -> dict[str, Any]:
        """The targets [..., T, T], once a step was taken."""
        return {} if self.targets is None else {"targets": self.targets.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        saved = state.get("targets")
        self.targets = None if saved is None else saved.clone()
