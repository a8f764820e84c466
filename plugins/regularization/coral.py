"""Alignment of what the tasks' texts look like inside the model."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import torch

from mtlcore.components import NotNegative, Penalty, Regularizer
from mtlcore.errors import UserError, require_tasks

if TYPE_CHECKING:
    from torch import Tensor

    from mtlcore.data.batches import Batch
    from mtlcore.errors import Problem
    from mtlcore.losses import Outputs
    from mtlcore.recipe import Recipe
    from mtlcore.run import Run


class Coral(Regularizer):
    """Align the hidden states of tasks from different domains by their covariances (CORAL).

    Deep CORAL: Correlation Alignment for Deep Domain Adaptation (ECCV Workshops 2016),
    https://arxiv.org/abs/1607.01719

        penalty = strength * mean over pairs (s, t) of  1 / (4 d²) || C_s - C_t ||²_F
        C = (Hᵀ H - 1/n (1ᵀ H)ᵀ (1ᵀ H)) / (n - 1),   H [n, d]

    H are the pooled hidden states of a task's rows in the micro-batch: the mean over the prompt's
    tokens in the last layer. It acts on the batch: one gradient over all rows, in neither J nor G,
    added after Jᵀw.

    strength: 1.0. tasks: those to align, at least two; all by default. A pair counts in a
    micro-batch where both have two rows or more; n is small there, so that C is a rough estimate,
    and cutting a step into more micro-batches or processes changes it.
    """

    name = "coral"
    paper = (
        "Deep CORAL: Correlation Alignment for Deep Domain Adaptation (ECCV Workshops 2016), "
        "https://arxiv.org/abs/1607.01719"
    )
    acts_on = "batch"
    needs_pooled = True

    def __init__(self, *, strength: NotNegative = 1.0, tasks: list[str] | None = None) -> None:
        if tasks is not None and len(set(tasks)) < 2:
            raise ValueError(f"tasks must name two or more to align, found {tasks}")
        self.strength = strength
        self.names = tasks

    def mtlcore_check(self, recipe: Recipe) -> list[Problem]:
        """Refuse tasks that are not there."""
        require_tasks(self.names or (), recipe.tasks, "regularization.tasks")
        if len(recipe.tasks) < 2:
            raise UserError(
                f"{self.name} aligns tasks, and there is one", fix="remove it, or add a task"
            )
        return []

    def mtlcore_penalties(
        self, run: Run, batch: Batch | None, outputs: Outputs | None
    ) -> list[Penalty]:
        """One penalty per micro-batch that has a pair of tasks."""
        if batch is None or outputs is None:
            return []
        assert outputs.pooled is not None  # `needs_pooled`
        wanted = {t.index for t in run.tasks if self.names is None or t.name in self.names}
        covariances = [
            covariance(outputs.pooled[start:stop])
            for task, start, stop in batch.rows
            if task in wanted and stop - start > 1
        ]
        pairs = [coral_distance(s, t) for s, t in combinations(covariances, 2)]
        if not pairs:
            return []
        return [Penalty(self.name, "batch", self.strength * torch.stack(pairs).mean())]


def covariance(states: Tensor) -> Tensor:
    """C [d, d] of rows [n, d], n > 1; in fp32 at least."""
    with torch.autocast(states.device.type, enabled=False):
        states = states.to(torch.promote_types(states.dtype, torch.float32))
        centred = states - states.mean(0)
        return centred.t() @ centred / (len(states) - 1)


def coral_distance(source: Tensor, target: Tensor) -> Tensor:
    """1 / (4 d²) of the squared Frobenius distance of two covariances [d, d]."""
    return (source - target).square().sum() / (4 * source.shape[0] ** 2)
