"""Specification of `mtlcore.ops.lora`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mtlcore.ops.lora import Dropout, Slots

_WORD = (1 << 32) - 1


def shrink(
    x: Tensor, factor: Tensor, slots: Slots, *, scaled: bool = False, dropout: Dropout | None = None
) -> Tensor:
    """z [N, K] float64: z[n, k] = x_n . factor[row of slot k], times the scale if `scaled`."""
    z = x.new_zeros(len(x), slots.rows.shape[1], dtype=torch.float64)
    source = x.double() if dropout is None else x.double() * keep_mask(x, slots, dropout)
    for tokens, rows, scales, _ in _tasks(slots):
        part = source[tokens] @ factor[rows].double().t()
        z[tokens, : len(rows)] = part * scales if scaled else part
    return z


def expand(
    z: Tensor, factor: Tensor, slots: Slots, *, scaled: bool = False, dropout: Dropout | None = None
) -> Tensor:
    """[N, columns of factor] float64: sum_k z[n, k] factor[row of slot k], masked by dropout."""
    y = z.new_zeros(len(z), factor.shape[1], dtype=torch.float64)
    for tokens, rows, scales, _ in _tasks(slots):
        part = z[tokens, : len(rows)].double()
        y[tokens] = (part * scales if scaled else part) @ factor[rows].double()
    return y if dropout is None else y * keep_mask(y, slots, dropout)


def add_grads(
    z: Tensor,
    x: Tensor,
    slots: Slots,
    offsets: Tensor,
    weights: Tensor,
    memory: Tensor,
    *,
    scaled: bool = False,
    square: bool = False,
    dropout: Dropout | None = None,
) -> Tensor:
    """A copy of `memory` in float64 with the gradient of every segment added at its place."""
    total = memory.double().clone()
    source = x.double() if dropout is None else x.double() * keep_mask(x, slots, dropout)
    for tokens, rows, scales, task in _tasks(slots):
        grad = z[tokens, : len(rows)].double().t() @ source[tokens]
        grad *= weights[task, : len(rows), None].double()
        if scaled:
            grad *= scales[:, None]
        for row, offset in zip(grad, offsets[task].tolist(), strict=False):
            if offset >= 0:
                total[offset : offset + len(row)] += row.square() if square else row
    return total


def layers(B: Sequence[Tensor], rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each layer its B, 0 in the rank rows of the others, and [T, K] which slots are its own."""
    first, ranks = 0, sum(map(len, B))
    for factor in B:
        stop = first + len(factor)
        whole = factor.new_zeros(ranks, factor.shape[1])
        whole[first:stop] = factor
        yield whole, (rows >= first) & (rows < stop)
        first = stop


def keep_mask(x: Tensor, slots: Slots, dropout: Dropout) -> Tensor:
    """[N, columns] float64: 0, or 1 / (1 - share); see csrc/common/philox.h for its words."""
    mask = x.new_ones(x.shape, dtype=torch.float64)
    for tokens, _, _, task in _tasks(slots):
        share = float(dropout.shares[task])
        places = dropout.positions[tokens].long()
        if not share:
            continue
        words = _words(int(dropout.keys[task]), dropout.layer, places, x.shape[1])
        kept = (words >= int(share * 2**32)).double() / (1 - share)
        mask[tokens] = torch.where(places[:, None] >= 0, kept, 1.0)
    return mask


def _words(key: int, layer: int, positions: Tensor, columns: int) -> Tensor:
    """[n, columns] int64: the word of each element of x."""
    column = torch.arange(columns, device=positions.device)
    shape = (len(positions), columns)
    counters = (
        (column // 64 * 16 + column % 16).expand(shape),
        (positions & _WORD)[:, None].expand(shape),
        torch.full(shape, layer & _WORD, device=positions.device),
        torch.full(shape, layer >> 32 & _WORD, device=positions.device),
    )
    words = torch.stack(_philox(*counters, key & _WORD, key >> 32 & _WORD))
    return words.gather(0, (column % 64 // 16).expand(shape)[None])[0]


def _philox(
    c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, k0: int, k1: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox 4x32-10 of counters and a key of 32-bit words."""
    for _ in range(10):
        first, second = _product(0xD2511F53, c0), _product(0xCD9E8D57, c2)
        c0, c1, c2, c3 = second[0] ^ c1 ^ k0, second[1], first[0] ^ c3 ^ k1, first[1]
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return c0, c1, c2, c3


def _product(constant: int, value: Tensor) -> tuple[Tensor, Tensor]:
    """High and low word of a product of 32-bit words, within int64."""
    low = (constant & 0xFFFF) * value
    high = (constant >> 16) * value + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def _tasks(slots: Slots) -> Iterator[tuple[slice, Tensor, Tensor, int]]:
    """Each segment's tokens, the rank rows of its task, their scales, and the task."""
    for task, start, stop in slots.segments.tolist():
        rows = slots.rows[task]
        count = int((rows >= 0).sum())
        yield slice(start, stop), rows[:count].long(), slots.scales[task, :count].double(), task
