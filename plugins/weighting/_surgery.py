"""What PCGrad and GradVac share: the random order in which a task meets the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mtlcore.seeds import seed_of

if TYPE_CHECKING:
    from torch import Tensor

    from mtlcore.run import Run


_GENERATOR = torch.Generator()  # seeded for each draw: making one takes longer than the draw


def random_order(run: Run, key: str, tasks: int) -> Tensor:
    """The others of each task [T', T'-1] in an order drawn anew each step from the run's seed."""
    if tasks <= 2:  # there is one order
        return torch.arange(tasks).flip(0)[:, None][:, : tasks - 1]
    _GENERATOR.manual_seed(seed_of(run.seed, run.step, key))
    keys = torch.rand((tasks, tasks - 1), generator=_GENERATOR, dtype=torch.float64)
    order = keys.argsort(dim=1)  # of 0 .. T'-2: leave out i itself
    return order + (order >= torch.arange(tasks)[:, None])
