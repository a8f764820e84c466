"""What PCGrad and GradVac share: the random order in which a task meets the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mtlcore.seeds import seed_of

if TYPE_CHECKING:
    from torch import Tensor

    from mtlcore.run import Run


# Seeded for each draw: making one takes longer than the draw. The trainer asks from one thread.
_GENERATOR = torch.Generator()


def random_keys(run: Run, key: str, tasks: int) -> Tensor:
    """Keys of the others of each task [T', T'-1], drawn anew each step from the run's seed."""
    _GENERATOR.manual_seed(seed_of(run.seed, run.step, key))
    shape = (tasks, max(tasks - 1, 0))
    return torch.rand(shape, generator=_GENERATOR, dtype=torch.float64)
