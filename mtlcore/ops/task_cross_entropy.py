"""The token losses of many tasks over a large vocabulary, without all of its logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mtlcore.ops import backend
from mtlcore.ops.checks import autocast, check_shape, check_tensor, detached

PIECE = {"cpu": 256, "cuda": 1024}
"""Tokens whose logits are made at a time.

On a CPU of 2 cores (V = 8192 and 49152) 64 cost as much as whole logits, 256 took 0.83 to 0.93 of
their time. The number for a GPU is not measured.
"""

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def task_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    tasks: Tensor,
    task_count: int,
    *,
    bias: Tensor | None = None,
    smoothing: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Cross entropy of an output head's logits, of each label and in sum for each task.

        logits_n = cap(scale (weight hidden_n + bias))       cap(a) = softcap tanh(a / softcap)
        loss_n   = -(1 - e) log p(label_n) - e/V sum_v log p(v)       p = softmax(logits_n)
        sum_t    = sum_{n of t} loss_n                        e: the smoothing of n's task

    e as in torch's `label_smoothing` (Szegedy et al., CVPR 2016, https://arxiv.org/abs/1512.00567),
    the cap as in Gemma 2 (https://arxiv.org/abs/2408.00118). The logits [L, V] never exist as a
    whole: they are made `PIECE` tokens at a time, and the gradient of each piece with them, in the
    forward pass. A token's gradient is linear in what arrives for its loss, so the backward pass
    only multiplies (the order of work of Liger Kernel, Hsu et al. 2024,
    https://arxiv.org/abs/2410.10989). Products run in hidden's dtype, under autocast in autocast's,
    the rest in float32 at least: a bf16 logsumexp over a large vocabulary loses two digits.

    Args:
        hidden: [L, d] float32, float64, bfloat16 or float16: hidden states at labelled positions.
        weight, bias: [V, d] and [V] of hidden's dtype (under autocast any), both frozen.
        labels: [L] int64 in [0, V).
        tasks: [L] int64 below T: the task of each label. A label of a task below 0 counts in no
            sum and is not smoothed.
        task_count: T.
        smoothing: [T] float64 in [0, 1], the share e of each task.
        softcap: above 0, or None for none.
        scale: what the head's product is multiplied with, above 0.

    Returns:
        losses [L] and sums [T] of float32, or of float64 for float64 hidden states; both
        differentiable once, in `hidden`. Sums are accumulated in float64, and a loss that is not
        finite spoils that of its own task alone. No atomics: as deterministic as torch's products.

    Raises:
        TypeError, ValueError: an argument has another dtype, shape, device or range, or weight or
            bias wants a gradient: take `mtlcore.losses.cross_entropy` of whole logits. Ranges are
            checked on the CPU alone: to read them on a GPU would wait for it.
    """
    if isinstance(hidden, Tensor) and isinstance(weight, Tensor):  # else `_check` tells
        hidden, weight = autocast(hidden), autocast(weight)  # once, not once a piece
    bias = autocast(bias) if isinstance(bias, Tensor) else bias
    _check(hidden, weight, bias, labels, tasks, task_count, smoothing)
    _check_frozen(weight, bias)
    for name, number in (("scale", scale), ("softcap", softcap)):
        if number is not None and not (isinstance(number, int | float) and 0 < number < math.inf):
            raise ValueError(f"{name} must be a number above 0, found {number!r}")
    wants_grad = hidden.requires_grad and torch.is_grad_enabled()
    apply: Callable[..., tuple[Tensor, Tensor]] = _TaskCrossEntropy.apply  # torch: untyped
    given = (hidden, weight, bias, labels, tasks, smoothing)
    return apply(*given, task_count, softcap, float(scale), wants_grad)


def sum_by_task(losses: Tensor, tasks: Tensor, task_count: int) -> Tensor:
    """[T] sums of losses [L] by task [L], below 0 for none; in float64, then as the losses are.

    Not `index_add`, whose order on a GPU is that of its atomics.
    """
    of_task = tasks == torch.arange(task_count, device=tasks.device)[:, None]  # [T, L]
    return torch.where(of_task, losses.double(), 0.0).sum(1).to(losses.dtype)


class _TaskCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        tasks: Tensor,
        smoothing: Tensor | None,
        task_count: int,
        softcap: float | None,
        scale: float,
        wants_grad: bool,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        losses = hidden.new_empty(len(labels), dtype=wide)
        sums = hidden.new_empty(task_count, dtype=wide)
        grad = torch.empty_like(hidden) if wants_grad else hidden.new_empty(0)
        raw_task_cross_entropy(
            hidden, weight, bias, labels, tasks, smoothing, softcap, scale, losses, sums, grad
        )
        ctx.save_for_backward(grad, tasks)
        return losses, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_losses: Tensor, of_sums: Tensor) -> tuple[Tensor | None, ...]:
        grad, tasks = ctx.saved_tensors
        # Behind the last: what arrives for the labels of no task, whose number is below 0.
        by_task = F.pad(of_sums, (0, 1))[tasks.clamp(min=-1)]
        upstream = of_losses + by_task  # [L]
        return (grad * upstream[:, None].to(grad.dtype), *[None] * 9)


@torch.library.custom_op("mtlcore::task_cross_entropy", mutates_args=("losses", "sums", "grad"))
def raw_task_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    tasks: Tensor,
    smoothing: Tensor | None,
    softcap: float | None,
    scale: float,
    losses: Tensor,
    sums: Tensor,
    grad: Tensor,
) -> None:
    """`task_cross_entropy` without checks, into losses [L] and sums [T]; no autograd.

    grad [L, d]: gets the gradient of each loss in its hidden state; empty [0] if it is not wanted.
    """
    run = backend.kernel("task_cross_entropy", hidden.device)
    run(hidden, weight, bias, labels, tasks, smoothing, softcap, scale, losses, sums, grad)


@raw_task_cross_entropy.register_fake
def _fake(*arguments: object) -> None:
    return None


def _check_frozen(weight: Tensor, bias: Tensor | None) -> None:
    given = {"weight": weight, "bias": bias}
    trained = [name for name, one in given.items() if one is not None and one.requires_grad]
    if trained and torch.is_grad_enabled():
        raise ValueError(
            f"task_cross_entropy gives no gradient to {' and '.join(trained)}: "
            "take cross_entropy of whole logits"
        )


def _check(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    tasks: Tensor,
    task_count: int,
    smoothing: Tensor | None,
) -> None:
    hidden = detached(hidden)
    check_tensor("hidden", hidden, ndim=2, dtypes=_FLOATS, like=hidden)
    count, width = hidden.shape
    check_tensor("weight", detached(weight), ndim=2, dtypes=(hidden.dtype,), like=hidden)
    check_shape("weight", weight, (weight.shape[0], width), "[V, d]")
    if bias is not None:
        check_tensor("bias", detached(bias), ndim=1, dtypes=(hidden.dtype,), like=hidden)
        check_shape("bias", bias, weight.shape[:1], "[V]")
    for name, indices in (("labels", labels), ("tasks", tasks)):
        check_tensor(name, indices, ndim=1, dtypes=(torch.int64,), like=hidden)
        check_shape(name, indices, (count,), "[L]")
    _check_range("labels", labels, 0, len(weight) - 1)
    _check_range("tasks", tasks, None, task_count - 1)
    if smoothing is not None:
        check_tensor("smoothing", smoothing, ndim=1, dtypes=(torch.float64,), like=hidden)
        check_shape("smoothing", smoothing, (task_count,), "[T]")
        _check_range("smoothing", smoothing, 0, 1)


def _check_range(name: str, values: Tensor, low: int | None, high: int) -> None:
    if values.device.type != "cpu" or torch.compiler.is_compiling() or not len(values):
        return
    least, most = (value.item() for value in values.aminmax())
    if (low is not None and not least >= low) or not most <= high:
        bounds = f"at most {high}" if low is None else f"in [{low}, {high}]"
        raise ValueError(f"{name} must be {bounds}, found {least} .. {most}")


# -- backends ------------------------------------------------------------------------------------


def _reference(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, tasks: Tensor,
    smoothing: Tensor | None, softcap: float | None, scale: float,
    losses: Tensor, sums: Tensor, grad: Tensor,
) -> None:  # fmt: skip
    from mtlcore.ops.reference.task_cross_entropy import task_cross_entropy

    found = task_cross_entropy(
        hidden, weight, bias, labels, tasks, len(sums), smoothing, softcap, scale
    )
    for out, value in zip((losses, sums, grad), found, strict=True):
        if out is not grad or grad.ndim == 2:
            out.copy_(value)


def _torch(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, tasks: Tensor,
    smoothing: Tensor | None, softcap: float | None, scale: float,
    losses: Tensor, sums: Tensor, grad: Tensor,
) -> None:  # fmt: skip
    shares = None
    if smoothing is not None:
        shares = F.pad(smoothing, (0, 1))[tasks.clamp(min=-1)].to(losses.dtype)[:, None]  # [L, 1]
    size = PIECE.get(hidden.device.type, PIECE["cuda"])
    for start in range(0, len(labels), size):
        part = slice(start, start + size)
        share = None if shares is None else shares[part]
        _piece(
            hidden[part], weight, bias, labels[part, None], share, softcap, scale,
            losses[part], grad[part] if grad.ndim == 2 else None,
        )  # fmt: skip
    sums.copy_(sum_by_task(losses, tasks, len(sums)))


def _piece(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, share: Tensor | None,
    softcap: float | None, scale: float, losses: Tensor, grad: Tensor | None,
) -> None:  # fmt: skip
    """Fill losses [n] and grad [n, d]; target and share are [n, 1]. Never more than two [n, V]."""
    logits = F.linear(hidden, weight, bias).to(losses.dtype)  # [n, V]
    if scale != 1:
        logits *= scale
    if softcap is not None:
        logits.div_(softcap).tanh_().mul_(softcap)
    logs = logits.log_softmax(1)
    picked = -logs.gather(1, target)  # [n, 1]
    if share is not None:
        picked = (1 - share) * picked - share * logs.mean(1, keepdim=True)
    losses.copy_(picked[:, 0])
    if grad is None:
        return
    slope = logs.exp_()  # of the losses in the logits: p - (1 - e) onehot - e / V
    slope.scatter_add_(1, target, torch.full_like(picked, -1.0) if share is None else share - 1)
    if share is not None:
        slope -= share / len(weight)
    if softcap is not None:  # that of the cap is 1 - tanh^2
        slope *= logits.div_(softcap).square_().neg_().add_(1)
    if scale != 1:
        slope *= scale
    del logits
    grad.copy_(slope.to(weight.dtype) @ weight)


backend.declare("task_cross_entropy", reference=_reference, torch=_torch)
