"""Triton kernels of `mtlcore.ops.lora`: tiles of tokens that lie in one segment.

Each program finds its tile in the table of segments on the device, so that a launch needs no copy
to the host, and one that was captured in a graph is right for any other segments: the grid has room
for every cut of the tokens into as many segments, and programs beyond the last tile do nothing.

Forward and backward of the tokens are one kernel: rows of `source` into rank space through one
factor, out of it into `target` through the other. Gradients are summed by chunks of tokens, then
the chunks in their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from mtlcore.ops.triton import LAUNCH_OPTIONS

_TILE = 32  # tokens of a program that reads and writes tokens
_CHUNK = 512  # tokens of a program that sums gradients
_RANKS = 64  # rank rows at a time, at most
_EVERY = 2**31 - 1  # rank rows


@triton.jit
def find_tile(segments, count, tile, SEGMENTS: tl.constexpr, SIZE: tl.constexpr):
    """Task and tokens [first, stop) of the tile of that number; none (stop = 0) beyond the last."""
    index = tl.arange(0, SEGMENTS)
    there = index < count
    start = tl.load(segments + index * 3 + 1, there, 0)
    end = tl.load(segments + index * 3 + 2, there, 0)
    tiles = (end - start + SIZE - 1) // SIZE
    behind = tl.cumsum(tiles, 0)
    mine = (behind > tile) & (behind - tiles <= tile)
    task = tl.sum(tl.where(mine, tl.load(segments + index * 3, there, 0), 0), 0)
    first = tl.sum(tl.where(mine, start + (tile - behind + tiles) * SIZE, 0), 0)
    stop = tl.minimum(tl.sum(tl.where(mine, end, 0), 0), first + SIZE)
    return task, first, stop


@triton.jit
def find_slots(rows, task, width, first, stop, WIDTH: tl.constexpr):
    """The slots [begin, end) of a task whose rank rows are [first, stop)."""
    slot = tl.arange(0, WIDTH)
    row = tl.load(rows + task * width + slot, slot < width, -1)
    begin = tl.sum(((row >= 0) & (row < first)).to(tl.int32), 0)
    return begin, begin + tl.sum(((row >= first) & (row < stop)).to(tl.int32), 0)


@triton.jit
def keep(key, layer, position, column, share, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """[ROWS, COLUMNS] bool: what dropout keeps of these tokens, in columns from `column` on (a
    multiple of 64); the words of csrc/common/philox.h."""
    lane = tl.arange(0, COLUMNS // 4)
    counter = (column // 4 + lane).to(tl.uint32)[None, :] + tl.zeros([ROWS, 1], tl.uint32)
    same = tl.zeros([ROWS, COLUMNS // 4], tl.uint32)
    number = tl.cast(layer, tl.int64)
    w0, w1, w2, w3 = tl.philox(
        key,
        counter,
        position.to(tl.uint32)[:, None] + same,
        (number & 0xFFFFFFFF).to(tl.uint32) + same,
        (number >> 32).to(tl.uint32) + same,
    )
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))  # [ROWS, COLUMNS / 4, 2, 2]
    words = tl.reshape(words, [ROWS, COLUMNS // 64, 16, 4])
    words = tl.reshape(tl.permute(words, [0, 1, 3, 2]), [ROWS, COLUMNS])
    threshold = (share * 4294967296.0).to(tl.int64).to(tl.uint32)
    return (words >= threshold) | (position < 0)[:, None]


@triton.jit
def kept_factor(position, share, dtype: tl.constexpr):
    """What the kept elements of each token are multiplied with: 1 / (1 - share), or 1."""
    return tl.where(position < 0, 1.0, 1.0 / (1.0 - share)).to(dtype)


@triton.jit
def tokens_kernel(
    source,
    source_stride,
    source_columns,
    down,  # [stop_row - first_row, source_columns]
    up,  # [stop_row - first_row, target_columns]
    target,
    target_stride,
    target_columns,
    reduced,  # [N, K]
    segments,
    segment_count,
    rows,
    scales,
    width,  # K
    first_row,
    stop_row,
    shares,
    keys,
    positions,
    layer,
    SEGMENTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    SCALED: tl.constexpr,  # "no", "on use", or "stored": reduced is stored with the scales
    DROP_SOURCE: tl.constexpr,
    DROP_TARGET: tl.constexpr,
    HAS_SOURCE: tl.constexpr,
    HAS_TARGET: tl.constexpr,
):
    """reduced = source downᵀ (else it is given) and target += (scales * reduced) up, for one tile
    of tokens and the slots of the rank rows that down and up have."""
    task, first, stop = find_tile(segments, segment_count, tl.program_id(0), SEGMENTS, BLOCK_M)
    if stop > first:
        token = first + tl.arange(0, BLOCK_M).to(tl.int64)
        there = token < stop
        wide = reduced.dtype.element_ty
        narrow = source.dtype.element_ty
        if DROP_SOURCE or DROP_TARGET:
            share = tl.load(shares + task)
            key = tl.load(keys + task)
            position = tl.load(positions + token, there, -1)
            factor = kept_factor(position, share, wide)
        slots, end = find_slots(rows, task, width, first_row, stop_row, WIDTH)
        for begin in range(slots, end, BLOCK_K):
            rank = begin + tl.arange(0, BLOCK_K)
            used = rank < end
            row = tl.load(rows + task * width + rank, used, 0).to(tl.int64) - first_row
            scale = tl.load(scales + task * width + rank, used, 0.0)
            place = reduced + token[:, None] * width + rank[None, :]
            cell = there[:, None] & used[None, :]
            if HAS_SOURCE:
                z = tl.zeros([BLOCK_M, BLOCK_K], wide)
                for column in range(0, source_columns, BLOCK_C):
                    c = column + tl.arange(0, BLOCK_C)
                    inside = (c < source_columns)[None, :]
                    x = tl.load(
                        source + token[:, None] * source_stride + c[None, :],
                        there[:, None] & inside,
                        0.0,
                    )
                    if DROP_SOURCE:
                        kept = keep(key, layer, position, column, share, BLOCK_M, BLOCK_C)
                        x = tl.where(kept, x, 0.0)
                    a = tl.load(
                        down + row[:, None] * source_columns + c[None, :],
                        used[:, None] & inside,
                        0.0,
                    )
                    # ieee: TF32 would keep 3 of float32's 7 digits
                    z = tl.dot(x, tl.trans(a.to(narrow)), z, input_precision="ieee")
                if DROP_SOURCE:
                    z *= factor[:, None]
                if SCALED == "stored":
                    z *= scale[None, :]
                tl.store(place, z, cell)
            else:
                z = tl.load(place, cell, 0.0)
            if SCALED == "on use":
                z *= scale[None, :]
            if HAS_TARGET:
                z = z.to(narrow)
                for column in range(0, target_columns, BLOCK_C):
                    c = column + tl.arange(0, BLOCK_C)
                    inside = (c < target_columns)[None, :]
                    b = tl.load(
                        up + row[:, None] * target_columns + c[None, :], used[:, None] & inside, 0.0
                    )
                    part = tl.dot(z, b.to(narrow), input_precision="ieee")
                    if DROP_TARGET:
                        kept = keep(key, layer, position, column, share, BLOCK_M, BLOCK_C)
                        part = tl.where(kept, part * factor[:, None], 0.0)
                    out = target + token[:, None] * target_stride + c[None, :]
                    y = tl.load(out, there[:, None] & inside, 0.0)
                    tl.store(out, (y.to(wide) + part).to(narrow), there[:, None] & inside)


@triton.jit
def chunks_kernel(
    source,
    source_stride,
    columns,
    reduced,  # [N, K]
    partials,  # [chunks, most, columns]
    most,  # slots of rank rows [first_row, stop_row) that a task has, at most
    segments,
    segment_count,
    rows,
    width,
    first_row,
    stop_row,
    shares,
    keys,
    positions,
    layer,
    SEGMENTS: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """partials = reducedᵀ source of one chunk of tokens, in BLOCK_C columns."""
    chunk = tl.program_id(0).to(tl.int64)
    task, first, stop = find_tile(segments, segment_count, tl.program_id(0), SEGMENTS, CHUNK)
    column = tl.program_id(1) * BLOCK_C
    c = column + tl.arange(0, BLOCK_C)
    slots, end = find_slots(rows, task, width, first_row, stop_row, WIDTH)
    begin = tl.program_id(2) * BLOCK_K
    if (stop > first) & (begin < end - slots):
        rank = begin + tl.arange(0, BLOCK_K)
        used = rank < end - slots
        wide = reduced.dtype.element_ty
        narrow = source.dtype.element_ty
        total = tl.zeros([BLOCK_K, BLOCK_C], wide)
        if DROPOUT:
            share = tl.load(shares + task)
            key = tl.load(keys + task)
        for begin_m in range(0, CHUNK, BLOCK_M):
            token = first + begin_m + tl.arange(0, BLOCK_M).to(tl.int64)
            there = token < stop
            z = tl.load(
                reduced + token[:, None] * width + (slots + rank)[None, :],
                there[:, None] & used[None, :],
                0.0,
            )
            x = tl.load(
                source + token[:, None] * source_stride + c[None, :],
                there[:, None] & (c < columns)[None, :],
                0.0,
            )
            if DROPOUT:
                position = tl.load(positions + token, there, -1)
                kept = keep(key, layer, position, column, share, BLOCK_M, BLOCK_C)
                x = tl.where(kept, x, 0.0)
                z *= kept_factor(position, share, wide)[:, None]
            total = tl.dot(tl.trans(z.to(narrow)), x, total, input_precision="ieee")
        out = partials + (chunk * most + rank[:, None]) * columns + c[None, :]
        tl.store(out, total, used[:, None] & (c < columns)[None, :])


@triton.jit
def sum_kernel(
    partials,  # [chunks, most, columns]
    most,
    columns,
    memory,
    offsets,
    weights,
    scales,
    segments,
    segment_count,
    rows,
    width,
    first_row,
    stop_row,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    SCALED: tl.constexpr,
    SQUARE: tl.constexpr,
):
    """Add each segment's chunks at the places of its task, segment by segment: tasks may share a
    place, so only one program ever writes to a column."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    rank = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    chunk = tl.cast(0, tl.int64)
    for segment in range(segment_count):
        task = tl.load(segments + segment * 3)
        slots, end = find_slots(rows, task, width, first_row, stop_row, WIDTH)
        used = rank < end - slots
        inside = used[:, None] & (c < columns)[None, :]
        tokens = tl.load(segments + segment * 3 + 2) - tl.load(segments + segment * 3 + 1)
        total = tl.zeros([BLOCK_K, BLOCK_C], memory.dtype.element_ty)
        for _ in range((tokens + CHUNK - 1) // CHUNK):
            place = partials + (chunk * most + rank[:, None]) * columns + c[None, :]
            total += tl.load(place, inside, 0.0)
            chunk += 1
        slot = task * width + slots + rank
        factor = tl.load(weights + slot, used, 0.0)
        if SCALED:
            factor *= tl.load(scales + slot, used, 0.0)
        total *= factor[:, None]
        if SQUARE:
            total *= total
        offset = tl.load(offsets + slot, used, -1)
        out = memory + offset[:, None] + c[None, :]
        wanted = inside & (offset >= 0)[:, None]
        tl.store(out, tl.load(out, wanted, 0.0) + total, wanted)
        tl.debug_barrier()  # the next segment may add to what this one wrote


def lora_forward(
    x: Tensor, A: Tensor, B: Sequence[Tensor], segments: Tensor, rows: Tensor, scales: Tensor,
    shares: Tensor, keys: Tensor, positions: Tensor, layer: int, y: Sequence[Tensor], z: Tensor,
) -> None:  # fmt: skip
    """Fill z and add to y; see `mtlcore.ops.lora.lora_forward`."""
    z.zero_()  # the slots that a task lacks, and tokens of no segment
    table = segments, rows, scales, shares, keys, positions, layer
    alone = len(B) == 1
    if not alone:
        _tokens(z, *table, source=x, down=A, drops="source")
    source = x if alone else None
    for target, up, first in zip(y, B, _first_rows(B), strict=True):
        _tokens(
            z, *table, source=source, down=A, target=target, up=up,
            scaled="on use", drops="source", first=first,
        )  # fmt: skip


def lora_backward(
    dy: Sequence[Tensor], x: Tensor, z: Tensor, A: Tensor, B: Sequence[Tensor],
    segments: Tensor, rows: Tensor, scales: Tensor,
    shares: Tensor, keys: Tensor, positions: Tensor, layer: int,
    a_offsets: Tensor, b_offsets: Tensor, weights: Tensor, square: bool,
    dx: Tensor, dz: Tensor, memory: Tensor,
) -> None:  # fmt: skip
    """Fill dz, add to dx (unless it is empty) and to memory; see `mtlcore.ops.lora`."""
    dz.zero_()
    table = segments, rows, scales, shares, keys, positions, layer
    target = dx if dx.ndim == 2 else None
    alone = len(B) == 1
    for source, down, first in zip(dy, B, _first_rows(B), strict=True):
        _tokens(
            dz, *table, source=source, down=down, target=target if alone else None, up=A,
            scaled="stored", drops="target", first=first,
        )  # fmt: skip
    if target is not None and not alone:
        _tokens(dz, *table, target=target, up=A, drops="target")
    batch, places = (segments, rows, scales), (weights, memory)
    masks, none = (shares, keys, positions, layer), (shares[:0], keys, positions, layer)
    _grads(x, dz, *batch, masks, a_offsets, *places, 0, len(A), scaled=False, square=square)
    for source, up, first in zip(dy, B, _first_rows(B), strict=True):
        _grads(
            source, z, *batch, none, b_offsets, *places, first, len(up), scaled=True, square=square
        )


def lora_shrink(
    x: Tensor, A: Tensor, segments: Tensor, rows: Tensor, scales: Tensor,
    shares: Tensor, keys: Tensor, positions: Tensor, layer: int, z: Tensor,
) -> None:  # fmt: skip
    """Fill z; see `mtlcore.ops.lora.lora_shrink`."""
    z.zero_()
    table = segments, rows, scales, shares, keys, positions, layer
    _tokens(z, *table, source=x, down=A, drops="source")


def lora_expand(
    z: Tensor, B: Tensor, segments: Tensor, rows: Tensor, scales: Tensor,
    shares: Tensor, keys: Tensor, positions: Tensor, layer: int, y: Tensor,
) -> None:  # fmt: skip
    """Add to y; see `mtlcore.ops.lora.lora_expand`."""
    table = segments, rows, scales, shares, keys, positions, layer
    _tokens(z, *table, target=y, up=B, drops="target")


def lora_grads(
    z: Tensor, x: Tensor, segments: Tensor, rows: Tensor, scales: Tensor,
    shares: Tensor, keys: Tensor, positions: Tensor, layer: int,
    offsets: Tensor, weights: Tensor, memory: Tensor,
) -> None:  # fmt: skip
    """Add zᵀ x of each segment to memory: the gradient of either factor in plain autograd."""
    masks = shares, keys, positions, layer
    batch, places = (segments, rows, scales), (offsets, weights, memory)
    _grads(x, z, *batch, masks, *places, 0, _EVERY, scaled=False, square=False)


def _tokens(
    reduced: Tensor, segments: Tensor, rows: Tensor, scales: Tensor,
    shares: Tensor, keys: Tensor, positions: Tensor, layer: int, *,
    source: Tensor | None = None, down: Tensor | None = None,
    target: Tensor | None = None, up: Tensor | None = None,
    scaled: Literal["no", "on use", "stored"] = "no", drops: Literal["source", "target"],
    first: int = 0,
) -> None:  # fmt: skip
    count, width = len(segments), rows.shape[1]
    if not (len(reduced) and count and width):
        return
    has_source, has_target, dropout = source is not None, target is not None, len(shares) > 0
    given, factor = (target, up) if source is None else (source, down)
    assert given is not None
    assert factor is not None
    stop = first + len(factor)
    # The kernel does not touch what is not there.
    source, target = given if source is None else source, given if target is None else target
    down, up = reduced if down is None else down, reduced if up is None else up
    tokens_kernel[(count + triton.cdiv(len(reduced), _TILE),)](
        source, source.stride(0), source.shape[1], down, up,
        target, target.stride(0), target.shape[1], reduced,
        segments, count, rows, scales, width, first, stop, shares, keys, positions, layer,
        triton.next_power_of_2(count), triton.next_power_of_2(width), _TILE,
        _rank_block(min(width, stop - first)), _column_block(given),
        scaled, dropout and drops == "source", dropout and drops == "target",
        has_source, has_target, **LAUNCH_OPTIONS,
    )  # fmt: skip


def _grads(
    source: Tensor, reduced: Tensor, segments: Tensor, rows: Tensor, scales: Tensor,
    dropout: tuple[Tensor, Tensor, Tensor, int],
    offsets: Tensor, weights: Tensor, memory: Tensor, first: int, count_rows: int, *,
    scaled: bool, square: bool,
) -> None:  # fmt: skip
    tokens, columns = source.shape
    count, width = len(segments), offsets.shape[1]
    most = min(width, count_rows)
    if not (tokens and count and most and columns):
        return
    ranks, block = _rank_block(most), _column_block(source)
    chunks = count + triton.cdiv(tokens, _CHUNK)
    partials = reduced.new_empty((chunks, most, columns))
    tiles = triton.cdiv(columns, block), triton.cdiv(most, ranks)
    table = rows, width, first, min(first + count_rows, _EVERY)
    chunks_kernel[chunks, tiles[0], tiles[1]](
        source, source.stride(0), columns, reduced, partials, most, segments, count, *table,
        *dropout, triton.next_power_of_2(count), triton.next_power_of_2(width),
        _CHUNK, _TILE, ranks, block, len(dropout[0]) > 0, **LAUNCH_OPTIONS,
    )  # fmt: skip
    sum_kernel[tiles](
        partials, most, columns, memory, offsets, weights, scales, segments, count, *table,
        triton.next_power_of_2(width), _CHUNK, ranks, block, scaled, square, **LAUNCH_OPTIONS,
    )  # fmt: skip


def _first_rows(factors: Sequence[Tensor]) -> list[int]:
    """The first rank row of each factor."""
    return [0, *accumulate(map(len, factors[:-1]))]


def _rank_block(width: int) -> int:
    return min(max(1 << (width - 1).bit_length(), 16), _RANKS)


def _column_block(source: Tensor) -> int:
    """Columns at a time: as many as 256 bytes hold, in whole blocks of the mask."""
    return 128 if source.dtype in (torch.float16, torch.bfloat16) else 64
