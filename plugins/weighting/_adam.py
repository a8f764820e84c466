"""One learned scalar for each task, moved by Adam."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

START = (0.0, 0.0, 0.0, 0.0)
"""A scalar of 0, its two moments and its number of steps: the rows of the state."""
LIMIT = 69.0
"""Of the logarithm of a weight, 1e-30 .. 1e30: a loss of 0 would move it in every step."""


def adam_step(
    state: Tensor,
    present: Sequence[int],
    slopes: Tensor,
    *,
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
) -> None:
    """Move the scalars of the `present` tasks against their `slopes` [T'], in place.

    Adam: A Method for Stochastic Optimization (ICLR 2015), https://arxiv.org/abs/1412.6980, as
    torch.optim.Adam takes it (eps 1e-8; weight decay is added to the slope), except that each task
    counts its own steps: an absent one keeps its scalar and its moments.

    state: [4, T] float64: scalar, first and second moment, steps (see `START`).
    """
    value, first, second, steps = state[:, present]  # [T'] each
    slopes = slopes + weight_decay * value
    steps = steps + 1
    first = torch.lerp(slopes, first, betas[0])
    second = torch.lerp(slopes.square(), second, betas[1])
    size = (second / (1 - betas[1] ** steps)).sqrt() + 1e-8
    value = value - learning_rate * first / (1 - betas[0] ** steps) / size
    state[:, present] = torch.stack([value, first, second, steps])
