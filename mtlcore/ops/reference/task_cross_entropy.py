"""Specification of `mtlcore.ops.task_cross_entropy`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def task_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    tasks: Tensor,
    task_count: int,
    smoothing: Tensor | None,
    softcap: float | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses [L], sums [T], and the gradient [L, d] of each loss in its own hidden state; float64.

    All logits at once; arguments as there.
    """
    weight = weight.double()
    logits = scale * F.linear(hidden.double(), weight, None if bias is None else bias.double())
    bend = torch.ones_like(logits)  # the slope of the cap
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
        bend = 1 - (logits / softcap) ** 2
    count = len(weight)
    kept = F.one_hot(labels, count).double()
    if smoothing is not None:
        share = smoothing.double()[tasks.clamp(min=0)] * (tasks >= 0)
        kept = (1 - share[:, None]) * kept + share[:, None] / count
    logs = logits.log_softmax(1)
    losses = -(kept * logs).sum(1)
    sums = losses.new_zeros(task_count).index_add(0, tasks[tasks >= 0], losses[tasks >= 0])
    return losses, sums, scale * ((logs.exp() - kept) * bend) @ weight
