"""What PCGrad and GradVac share: the random order in which a task meets the others."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch

from mtlcore.seeds import seed_of

if TYPE_CHECKING:
    from torch import Tensor

    from mtlcore.run import Run


# Seeded for each draw: making one takes longer than the draw. The trainer asks from one thread.
_GENERATOR = torch.Generator()


@functools.cache
def _others(tasks: int) -> Tensor:
    """[T', T'-1] the others of each task, in their own order."""
    others = [[j for j in range(tasks) if j != i] for i in range(tasks)]
    return torch.tensor(others, dtype=torch.long).view(tasks, max(tasks - 1, 0))


def random_order(run: Run, key: str, tasks: int) -> Tensor:
    """The others of each task [T', T'-1] in an order drawn anew each step from the run's seed."""
    if tasks <= 2:  # there is one order
        return _others(tasks).clone()
    _GENERATOR.manual_seed(seed_of(run.seed, run.step, key))
    keys = torch.rand((tasks, tasks - 1), generator=_GENERATOR, dtype=torch.float64)
    return _others(tasks).gather(1, keys.argsort(dim=1))
