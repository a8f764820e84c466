"""What PCGrad and GradVac share: the random order in which a task meets the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor

    from mtlcore.run import Run


def random_order(run: Run, key: str, tasks: int) -> Tensor:
    """The others of each task [T', T'-1] in an order drawn anew each step from the run's seed."""
    if tasks <= 2:  # there is one order
        return torch.arange(tasks).flip(0)[:, None][:, : tasks - 1]
    generator = run.generator(run.step, key)
    keys = torch.rand((tasks, tasks - 1), generator=generator, dtype=torch.float64)
    order = keys.numpy().argsort(axis=1)  # of 0 .. T'-2: leave out i itself
    return torch.from_numpy(order + (order >= np.arange(tasks)[:, None]))
