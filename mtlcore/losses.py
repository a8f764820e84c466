"""Token losses, summed per task: the means are taken once, over the whole step."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from mtlcore.data.batches import Batch


class Outputs(NamedTuple):
    """What one forward pass gives.

    `loss_sums` [T] sums of the token losses of each task (differentiable); `counts` [T] the
    labelled tokens behind each sum; `token_losses` [L] in the order of the batch's labels.
    """

    loss_sums: Tensor
    counts: tuple[int, ...]
    token_losses: Tensor


def task_losses(logits: Tensor, batch: Batch) -> Outputs:
    """Cross-entropy at the labelled positions, logits [L, V], summed by task.

    In fp32 at least: a bf16 logsumexp over a large vocabulary loses two digits.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    token_losses = F.cross_entropy(logits, batch.labels, reduction="none")  # [L]
    sums = token_losses.new_zeros(len(batch.counts)).index_add(0, batch.label_tasks, token_losses)
    return Outputs(sums, batch.counts, token_losses)
