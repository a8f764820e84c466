"""Triton kernels of `mtlcore.ops.lora`: tiles of tokens that lie in one segment.

Each program finds its tile in the table of segments on the device, so that a launch needs no copy
to the host, and one that was captured in a graph is right for any other segments: the grid has room
for every cut of the tokens into as many segments, and programs beyond the last tile do nothing.

Forward and backward of the tokens are one kernel: rows of `source` into rank space through one
factor, out of it into `target` through the other. Gradients are summed by chunks of tokens, then
the chunks in their order.
"""

from __future__ import annotations

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from mtlcore.ops.triton import LAUNCH_OPTIONS

_TILE = 32  # tokens of a program that reads and writes tokens
_CHUNK = 512  # tokens of a program that sums gradients
_RANKS = 64  # rank rows at a time, at most


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
    down,  # [R, source_columns]
    up,  # [R, target_columns]
    target,
    target_stride,
    target_columns,
    reduced,  # [N, K]
    segments,
    segment_count,
    rows,
    scales,
    width,  # K
    shares,
    keys,
    positions,
    layer,
    SEGMENTS: tl.constexpr,
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
    of tokens."""
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
        for begin in range(0, width, BLOCK_K):
            rank = begin + tl.arange(0, BLOCK_K)
            row = tl.load(rows + task * width + rank, rank < width, -1).to(tl.int64)
            scale = tl.load(scales + task * width + rank, rank < width, 0.0)
            used = row >= 0
            place = reduced + token[:, None] * width + rank[None, :]
            cell = there[:, None] & (rank < width)[None, :]
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
    partials,  # [chunks, K, columns]
    segments,
    segment_count,
    width,
    shares,
    keys,
    positions,
    layer,
    SEGMENTS: tl.constexpr,
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
    rank = tl.program_id(2) * BLOCK_K + tl.arange(0, BLOCK_K)
    if stop > first:
        wide = reduced.dtype.element_ty
        narrow = source.dtype.element_ty
        total = tl.zeros([BLOCK_K, BLOCK_C], wide)
        if DROPOUT:
            share = tl.load(shares + task)
            key = tl.load(keys + task)
        for begin in range(0, CHUNK, BLOCK_M):
            token = first + begin + tl.arange(0, BLOCK_M).to(tl.int64)
            there = token < stop
            z = tl.load(
                reduced + token[:, None] * width + rank[None, :],
                there[:, None] & (rank < width)[None, :],
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
        out = partials + (chunk * width + rank[:, None]) * columns + c[None, :]
        tl.store(out, total, (rank < width)[:, None] & (c < columns)[None, :])


@triton.jit
def sum_kernel(
    partials,  # [chunks, K, columns]
    columns,
    memory,
    offsets,
    weights,
    scales,
    segments,
    segment_count,
    width,
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
    inside = (rank < width)[:, None] & (c < columns)[None, :]
    chunk = tl.cast(0, tl.int64)
    for segment in range(segment_count):
        task = tl.load(segments + segment * 3)
        tokens = tl.load(segments + segment * 3 + 2) - tl.load(segments + segment * 3 + 1)
        total = tl.zeros([BLOCK_K, BLOCK_C], memory.dtype.element_ty)
        for _ in range((tokens + CHUNK - 1) // CHUNK):
            place = partials + (chunk * width + rank[:, None]) * columns + c[None, :]
            total += tl.load(place, inside, 0.0)
            chunk += 1
        slot = task * width + rank
        factor = tl.load(weights + slot, rank < width, 0.0)
        if SCALED:
            factor *= tl.load(scales + slot, rank < width, 0.0)
        total *= factor[:, None]
        if SQUARE:
            total *= total
        offset = tl.load(offsets + slot, rank < width, -1)
        out = memory + offset[:, None] + c[None, :]
        wanted = inside & (offset >= 0)[:, None]
        tl.store(out, tl.load(out, wanted, 0.0) + total, wanted)
        tl.debug_barrier()  # the next segment may add to what this one wrote


def lora_forward(
    x: Tensor, A: Tensor, B: Tensor, segments: Tensor, rows: Tensor, scales: Tensor,
    shares: Tensor, keys: Tensor, positions: Tensor, layer: int, y: Tensor, z: Tensor,
) -> None:  # fmt: skip
    """Fill z and add to y; see `mtlcore.ops.lora.lora_forward`."""
    table = segments, rows, scales, shares, keys, positions, layer
    _tokens(z, *table, source=x, down=A, target=y, up=B, scaled="on use", drops="source")


def lora_backward(
    dy: Tensor, x: Tensor, z: Tensor, A: Tensor, B: Tensor,
    segments: Tensor, rows: Tensor, scales: Tensor,
    shares: Tensor, keys: Tensor, positions: Tensor, layer: int,
    a_offsets: Tensor, b_offsets: Tensor, weights: Tensor, square: bool,
    dx: Tensor, dz: Tensor, memory: Tensor,
) -> None:  # fmt: skip
    """Fill dz, add to dx (unless it is empty) and to memory; see `mtlcore.ops.lora`."""
    table = segments, rows, scales, shares, keys, positions, layer
    target = dx if dx.ndim == 2 else None
    _tokens(dz, *table, source=dy, down=B, target=target, up=A, scaled="stored", drops="target")
    none = shares[:0], keys, positions, layer
    masks = shares, keys, positions, layer
    for source, reduced, offsets, dropout, scaled in (
        (x, dz, a_offsets, masks, False),
        (dy, z, b_offsets, none, True),
    ):
        _grads(source, reduced, segments, scales, dropout, offsets, weights, memory, scaled, square)


def lora_shrink(
    x: Tensor, A: Tensor, segments: Tensor, rows: Tensor, scales: Tensor,
    shares: Tensor, keys: Tensor, positions: Tensor, layer: int, z: Tensor,
) -> None:  # fmt: skip
    """Fill z; see `mtlcore.ops.lora.lora_shrink`."""
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
    _grads(x, z, segments, scales, masks, offsets, weights, memory, scaled=False, square=False)


def _tokens(
    reduced: Tensor, segments: Tensor, rows: Tensor, scales: Tensor,
    shares: Tensor, keys: Tensor, positions: Tensor, layer: int, *,
    source: Tensor | None = None, down: Tensor | None = None,
    target: Tensor | None = None, up: Tensor | None = None,
    scaled: Literal["no", "on use", "stored"] = "no", drops: Literal["source", "target"],
) -> None:  # fmt: skip
    count, width = len(segments), rows.shape[1]
    if not (len(reduced) and count and width):
        return
    has_source, has_target, dropout = source is not None, target is not None, len(shares) > 0
    given = source if source is not None else target
    assert given is not None
    # The kernel does not touch what is not there.
    source, target = given if source is None else source, given if target is None else target
    down, up = reduced if down is None else down, reduced if up is None else up
    tokens_kernel[(count + triton.cdiv(len(reduced), _TILE),)](
        source, source.stride(0), source.shape[1], down, up,
        target, target.stride(0), target.shape[1], reduced,
        segments, count, rows, scales, width, shares, keys, positions, layer,
        triton.next_power_of_2(count), _TILE, _rank_block(width), _column_block(given),
        scaled, dropout and drops == "source", dropout and drops == "target",
        has_source, has_target, **LAUNCH_OPTIONS,
    )  # fmt: skip


def _grads(
    source: Tensor, reduced: Tensor, segments: Tensor, scales: Tensor,
    dropout: tuple[Tensor, Tensor, Tensor, int],
    offsets: Tensor, weights: Tensor, memory: Tensor, scaled: bool, square: bool,
) -> None:  # fmt: skip
    tokens, columns = source.shape
    count, width = len(segments), offsets.shape[1]
    if not (tokens and count and width and columns):
        return
    ranks, block = _rank_block(width), _column_block(source)
    chunks = count + triton.cdiv(tokens, _CHUNK)
    partials = reduced.new_empty((chunks, width, columns))
    tiles = triton.cdiv(columns, block), triton.cdiv(width, ranks)
    chunks_kernel[chunks, tiles[0], tiles[1]](
        source, source.stride(0), columns, reduced, partials, segments, count, width, *dropout,
        triton.next_power_of_2(count), _CHUNK, _TILE, ranks, block, len(dropout[0]) > 0,
        **LAUNCH_OPTIONS,
    )  # fmt: skip
    sum_kernel[tiles](
        partials, columns, memory, offsets, weights, scales, segments, count, width,
        _CHUNK, ranks, block, scaled, square, **LAUNCH_OPTIONS,
    )  # fmt: skip


def _rank_block(width: int) -> int:
    return min(max(1 << (width - 1).bit_length(), 16), _RANKS)


def _column_block(source: Tensor) -> int:
    """Columns at a time: as many as 256 bytes hold, in whole blocks of the mask."""
    return 128 if source.dtype in (torch.float16, torch.bfloat16) else 64
