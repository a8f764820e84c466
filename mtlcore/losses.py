"""Losses of tokens and of head rows, summed per task: the means are taken once, over the step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Outputs(NamedTuple):
    """What one forward pass gives.

    `loss_sums` [T] sums of the losses of each task (differentiable); `counts` [T] the labels behind
    each sum; `token_losses` [L + H] of the labelled tokens, then of the rows that a head answers,
    as in `batch.label_rows`. `pooled` [rows, d]: the mean of the last hidden states of each row's
    prompt tokens (of all its tokens without a prompt), differentiable; None unless a component
    has `needs_pooled`. `head_logits`: one [rows, options] per segment that a head answers.
    `logits` [L, V] of the labelled tokens, differentiable; None unless `keep_logits` asked for it.
    """

    loss_sums: Tensor
    counts: tuple[int, ...]
    token_losses: Tensor
    pooled: Tensor | None = None
    head_logits: tuple[Tensor, ...] = ()
    logits: Tensor | None = None


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: Tensor | None = None) -> Tensor:
    """[L] losses of logits [L, V] for labels [L]; `smoothing` [L] is the share e of each label.

    (1 - e) * -log p_label + e * mean over V of -log p, as torch's `label_smoothing` (Szegedy et
    al., CVPR 2016, https://arxiv.org/abs/1512.00567). In fp32 at least: a bf16 logsumexp over a
    large vocabulary loses two digits.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(logits, labels, reduction="none")
    if smoothing is None:
        return losses
    # The log of the sum is in both terms, so only the logits differ.
    gap = logits.gather(1, labels[:, None]).squeeze(1) - logits.mean(1)
    return losses + smoothing.to(losses) * gap
