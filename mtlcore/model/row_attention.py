"""Causal attention of each row of a flat batch to itself alone, with no padding and no mask."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mtlcore.ops.checks import autocast


def by_length(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Sequence[int],
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """One call for each stretch of rows of one length: any device, dtype and feature.

    query [H, N, d], key and value [H_kv, N, d] of rows of the given lengths -> [N, H, d].
    `scaling` of the scores, d^-0.5 without it; `window`: a token sees itself and the window - 1
    before it; `softcap` c bends scores a to c tanh(a / c).
    """
    buckets = [(length, len(list(same))) for length, same in groupby(lengths)]
    sizes = [length * count for length, count in buckets]
    parts = [tensor.split(sizes, dim=1) for tensor in (query, key, value)]
    outputs = []
    for (length, count), *heads in zip(buckets, *parts, strict=True):
        # Neighbours of one length go together: [H, count * length, d] -> [count, H, length, d].
        q, k, v = (part.unflatten(1, (count, length)).transpose(0, 1) for part in heads)
        output = _rows(q, k, v, scaling, dropout, window, softcap)
        outputs.append(output.transpose(1, 2).flatten(0, 1))  # [count * length, H, d]
    return torch.cat(outputs)


def _rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scaling: float | None,
    dropout: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Causal attention of rows of one length, [rows, H, length, d]."""
    length = q.shape[2]
    if window is not None and window >= length:
        window = None
    if window is None and softcap is None:
        return F.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=True
        )
    ones = torch.ones(length, length, dtype=torch.bool, device=q.device)
    mask = ones.tril()
    if window is not None:
        mask &= ones.triu(1 - window)  # a token sees itself and the window - 1 before it
    if softcap is None:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, scale=scaling, enable_gqa=True
        )
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    # fp32 at least, as the models' own eager attention has it
    chances = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(q.dtype)
    return F.dropout(chances, dropout) @ v


def at_once(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Tensor,
    longest: int,
    *,
    scaling: float | None = None,
    window: int | None = None,
) -> Tensor:
    """All rows in one call of torch's flash attention for rows of any lengths, on an NVIDIA GPU.

    As `by_length`, for what `why_not_at_once` finds nothing against. bounds [rows + 1] int32: where
    each row starts, and the number of tokens; longest: the tokens of the longest row. Its backward
    adds up dq by atomics where a row has several blocks of keys, as that of torch's
    `scaled_dot_product_attention` does, unless `torch.use_deterministic_algorithms` is on.
    """
    varlen = _varlen()
    q, k, v = (autocast(tensor).transpose(0, 1) for tensor in (query, key, value))  # [N, H, d]
    options = {}
    if "enable_gqa" in _parameters():
        options["enable_gqa"] = True
    else:  # torch 2.11
        k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], 1) for part in (k, v))
    before = -1 if window is None else window - 1
    return varlen(
        q, k, v, bounds, bounds, longest, longest,
        scale=scaling, window_size=(before, 0), **options,
    )  # fmt: skip


def why_not_at_once(
    query: Tensor, value: Tensor, *, dropout: float = 0.0, softcap: float | None = None
) -> str | None:
    """Why `at_once` cannot serve; None where it can."""
    if query.device.type != "cuda":
        return f"the tensors are on {query.device.type}"
    if softcap is not None:
        return "it has no soft cap"
    if dropout:
        return "it has no dropout"
    dtype = autocast(query[:0]).dtype
    if dtype not in (torch.float16, torch.bfloat16) or autocast(value[:0]).dtype != dtype:
        return f"it takes float16 and bfloat16, found {str(dtype).removeprefix('torch.')}"
    widths = {query.shape[-1], value.shape[-1]}
    if len(widths) > 1 or max(widths) > 256 or max(widths) % 8:
        return f"its heads are up to 256 wide and a multiple of 8, found {sorted(widths)}"
    return _missing(query.device)


@cache
def _missing(device: torch.device) -> str | None:
    """What this machine lacks for it."""
    try:
        parameters = _parameters()
    except ImportError as error:
        return f"torch {torch.__version__} has none: {error}"
    if not {"scale", "window_size"} <= parameters:
        return f"that of torch {torch.__version__} takes no window (2.11 does)"
    if not torch.backends.cuda.is_flash_attention_available():
        return "this torch was built without flash attention"
    major, minor = torch.cuda.get_device_capability(device)
    return None if major >= 8 else f"it needs compute capability 8.0, found {major}.{minor}"


@cache
def _parameters() -> frozenset[str]:
    return frozenset(inspect.signature(_varlen()).parameters)


def _varlen() -> Callable[..., Tensor]:
    """Imported at need: it brings torch's compiler along."""
    from torch.nn.attention.varlen import varlen_attn

    kernel: Callable[..., Any] = varlen_attn
    return kernel
