"""Losses of tokens and of head rows, summed per task: the means are taken once, over the step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

if TYPE_CHECKING:
    from mtlcore.data.batches import Batch


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


PIECE = {"cpu": 256, "cuda": 1024}
"""Tokens whose logits `linear_cross_entropy` makes at a time.

On a CPU of 2 cores (V = 8192 and 49152) 64 cost as much as whole logits, 256 took 0.83 to 0.93 of
their time. The number for a GPU is not measured.
"""


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    smoothing: Tensor | None = None,
) -> Tensor:
    """`cross_entropy` [L] of the logits ``hidden weightᵀ + bias``, which never exist as a whole.

    hidden [L, d], weight [V, d], bias [V], both frozen; labels [L], smoothing [L]. The logits are
    made piece by piece, and each piece's gradient with them, in the forward pass: the gradient of
    a token's loss is linear in what arrives for it, so the backward pass only multiplies (the
    order of work of Liger Kernel, Hsu et al. 2024, https://arxiv.org/abs/2410.10989).
    Differentiable once, in `hidden`: ValueError if weight or bias wants a gradient.
    """
    given = {"weight": weight, "bias": bias}
    trained = [name for name, one in given.items() if one is not None and one.requires_grad]
    if trained and torch.is_grad_enabled():
        raise ValueError(
            f"linear_cross_entropy gives no gradient to {' and '.join(trained)}: "
            "take cross_entropy of whole logits"
        )
    hidden, weight = _autocast(hidden), _autocast(weight)  # once, not once a piece
    bias = None if bias is None else _autocast(bias)
    apply: Any = _LinearCrossEntropy.apply  # torch leaves it untyped
    losses: Tensor = apply(hidden, weight, bias, labels, smoothing)
    return losses


def _autocast(tensor: Tensor) -> Tensor:
    """The tensor as torch's autocast hands it to a linear layer: fp64 stays."""
    device = tensor.device.type
    if tensor.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return tensor
    return tensor.to(torch.get_autocast_dtype(device))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        smoothing: Tensor | None,
    ) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        losses = torch.empty(len(labels), dtype=wide, device=hidden.device)
        grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        size = PIECE.get(hidden.device.type, PIECE["cuda"])
        for start in range(0, len(labels), size):
            part = slice(start, start + size)
            target, share = labels[part, None], None if smoothing is None else smoothing[part, None]
            logs = F.linear(hidden[part], weight, bias).to(wide).log_softmax(-1)  # [n, V]
            picked = -logs.gather(1, target)  # [n, 1]
            if share is not None:
                share = share.to(wide)
                picked = (1 - share) * picked - share * logs.mean(1, keepdim=True)
            losses[part] = picked[:, 0]
            if grad is None:
                continue
            slope = logs.exp_()  # of the losses in the logits: p - (1 - e) onehot - e / V
            kept = torch.full_like(picked, -1.0) if share is None else share - 1
            slope.scatter_add_(1, target, kept)
            if share is not None:
                slope -= share / len(weight)
            grad[part] = slope.to(weight.dtype) @ weight
            del logs, slope  # or the next piece is made beside them
        ctx.save_for_backward(grad)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return (grad * upstream[:, None].to(grad.dtype), None, None, None, None)


def sum_by_task(losses: Tensor, batch: Batch) -> Tensor:
    """[T] the sums of losses [L + H]."""
    return losses.new_zeros(len(batch.counts)).index_add(0, batch.label_tasks, losses)
