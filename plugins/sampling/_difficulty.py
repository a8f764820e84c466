"""What curricula share: how much is let in when, and the model's own losses."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from annotated_types import Gt, Le

from mtlcore.distributed import all_reduce_sum, rank, world_size
from mtlcore.evaluation.predictions import sum_losses

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtlcore.data.example import Example
    from mtlcore.data.tasks import Task
    from mtlcore.run import Run

PositiveShare = Annotated[float, Gt(0), Le(1)]
Schedule = Literal["sqrt", "linear"]


def competence(progress: float, start: float, schedule: Schedule) -> float:
    """The share c that is let in, from `start` at progress 0 to 1 at progress 1 and after.

    Competence-based Curriculum Learning for Neural Machine Translation (NAACL 2019),
    https://arxiv.org/abs/1903.09848, equations 7 (linear) and 8 (sqrt).
    """
    if schedule == "linear":
        return min(1.0, progress * (1 - start) + start)
    return min(1.0, math.sqrt(progress * (1 - start**2) + start**2))


def own_losses(run: Run, task: Task, rows: Sequence[Example]) -> torch.Tensor:
    """[n] the loss sum of each row by the weights of now, the same bits in all processes."""
    losses = torch.zeros(len(rows), dtype=torch.float64)
    mine = slice(rank(), None, world_size())
    losses[mine] = torch.tensor(sum_losses(run, task, rows[mine]), dtype=torch.float64)
    return all_reduce_sum(losses)
