"""Triton kernels of `mtlcore.ops.gramian`: partial products by chunk, then their sum by slice."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mtlcore.ops.slices import Cut
from mtlcore.ops.triton import LAUNCH_OPTIONS

_BLOCK_T = 16  # the least that tl.dot takes
_BLOCK_P = 128
_FOLD = 1024  # columns that are summed in J's dtype before they are folded into float64
_BLOCK_SUM = 64


@triton.jit
def chunk_kernel(
    J,
    V,
    partials,
    chunks,
    tasks,
    others,  # rows of V
    stride,
    other_stride,
    BLOCK_T: tl.constexpr,
    BLOCK_P: tl.constexpr,
    FOLD: tl.constexpr,
    SYMMETRIC: tl.constexpr,  # V is J: the upper triangle of tiles is enough
):
    """Tile (first, second) of one chunk's J Vᵀ."""
    chunk = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    second = tl.program_id(2) * BLOCK_T + tl.arange(0, BLOCK_T)
    if (not SYMMETRIC) or tl.program_id(2) >= tl.program_id(1):
        rows_a = J + first.to(tl.int64)[:, None] * stride
        rows_b = V + second.to(tl.int64)[:, None] * other_stride
        start = tl.load(chunks + chunk * 3 + 1)
        stop = tl.load(chunks + chunk * 3 + 2)
        total = tl.zeros([BLOCK_T, BLOCK_T], tl.float64)
        for begin in range(start, stop, FOLD):
            sums = tl.zeros([BLOCK_T, BLOCK_T], J.dtype.element_ty)
            for step in range(FOLD // BLOCK_P):
                column = begin + step * BLOCK_P + tl.arange(0, BLOCK_P)
                inside = column[None, :] < stop
                a = tl.load(rows_a + column[None, :], (first[:, None] < tasks) & inside, 0.0)
                b = tl.load(rows_b + column[None, :], (second[:, None] < others) & inside, 0.0)
                # ieee: TF32 would keep 3 of float32's 7 digits
                sums = tl.dot(a, tl.trans(b), sums, input_precision="ieee")
            total += sums.to(tl.float64)
        out = partials + (chunk * tasks + first[:, None]) * others + second[None, :]
        tl.store(out, total, (first[:, None] < tasks) & (second[None, :] < others))


@triton.jit
def sum_kernel(
    partials,
    firsts,
    out,
    tasks,
    others,
    BLOCK_T: tl.constexpr,
    BLOCK: tl.constexpr,
    SYMMETRIC: tl.constexpr,
):
    """A tile of one row of one slice, summed over the chunks in order; of a symmetric matrix the
    upper triangle, and its mirror image."""
    slice_ = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1)
    j = tl.program_id(2) * BLOCK_T + tl.arange(0, BLOCK_T)
    mine = j < others
    if SYMMETRIC:
        mine = mine & (j >= i)
    total = tl.zeros([BLOCK, BLOCK_T], tl.float64)
    stop = tl.load(firsts + slice_ + 1)
    for begin in range(tl.load(firsts + slice_), stop, BLOCK):
        chunk = begin + tl.arange(0, BLOCK).to(tl.int64)
        place = partials + (chunk[:, None] * tasks + i) * others + j[None, :]
        total += tl.load(place, (chunk < stop)[:, None] & mine[None, :], 0.0)
    sums = tl.sum(total, 0)
    matrix = out + slice_ * tasks * others
    tl.store(matrix + i * others + j, sums, mine)
    if SYMMETRIC:
        tl.store(matrix + j * others + i, sums, mine)


def products(J: Tensor, V: Tensor, cut: Cut, out: Tensor, *, symmetric: bool) -> None:
    """Fill `out` [S, T, M] float64 with J Vᵀ of each slice; J [T, P], V [M, P], both float32 or
    float64; `symmetric`: V is J."""
    slices, tasks, others = out.shape
    if not out.numel():
        return
    count = len(cut.chunks)
    partials = out.new_empty((count, tasks, others))
    tiles = triton.cdiv(tasks, _BLOCK_T), triton.cdiv(others, _BLOCK_T)
    if count:
        chunk_kernel[count, tiles[0], tiles[1]](
            J, V, partials, cut.chunks, tasks, others, J.stride(0), V.stride(0),
            _BLOCK_T, _BLOCK_P, _FOLD, symmetric, **LAUNCH_OPTIONS,
        )  # fmt: skip
    sum_kernel[slices, tasks, tiles[1]](
        partials, cut.firsts, out, tasks, others, _BLOCK_T, _BLOCK_SUM, symmetric, **LAUNCH_OPTIONS
    )
