"""Triton kernels of `mtlcore.ops.gramian`: partial Gramians by chunk, then their sum."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mtlcore.ops.triton import LAUNCH_OPTIONS

_BLOCK_T = 16  # the least that tl.dot takes
_BLOCK_P = 128
_FOLD = 1024  # columns that are summed in J's dtype before they are folded into float64
_BLOCK_SUM = 128


@triton.jit
def chunk_kernel(
    J,
    partials,
    tasks,
    columns,
    stride,
    blocks,  # blocks of FOLD columns per chunk
    BLOCK_T: tl.constexpr,
    BLOCK_P: tl.constexpr,
    FOLD: tl.constexpr,
):
    """Tile (first, second) of one chunk's Gramian; only the upper triangle of tiles."""
    chunk = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    second = tl.program_id(2) * BLOCK_T + tl.arange(0, BLOCK_T)
    if tl.program_id(2) >= tl.program_id(1):
        rows_a = J + first.to(tl.int64)[:, None] * stride
        rows_b = J + second.to(tl.int64)[:, None] * stride
        total = tl.zeros([BLOCK_T, BLOCK_T], tl.float64)
        for block in range(blocks):
            sums = tl.zeros([BLOCK_T, BLOCK_T], J.dtype.element_ty)
            begin = (chunk * blocks + block) * FOLD
            for step in range(FOLD // BLOCK_P):
                column = begin + step * BLOCK_P + tl.arange(0, BLOCK_P)
                inside = column[None, :] < columns
                a = tl.load(rows_a + column[None, :], (first[:, None] < tasks) & inside, 0.0)
                b = tl.load(rows_b + column[None, :], (second[:, None] < tasks) & inside, 0.0)
                # ieee: TF32 would keep 3 of float32's 7 digits
                sums = tl.dot(a, tl.trans(b), sums, input_precision="ieee")
            total += sums.to(tl.float64)
        out = partials + (chunk * tasks + first[:, None]) * tasks + second[None, :]
        tl.store(out, total, (first[:, None] < tasks) & (second[None, :] < tasks))


@triton.jit
def sum_kernel(partials, out, tasks, chunks, BLOCK: tl.constexpr):
    """One element of the upper triangle, and its mirror image, summed over the chunks in order."""
    i = tl.program_id(0)
    j = tl.program_id(1)
    if j >= i:
        total = tl.zeros([BLOCK], tl.float64)
        for begin in range(0, chunks, BLOCK):
            chunk = begin + tl.arange(0, BLOCK).to(tl.int64)
            total += tl.load(partials + (chunk * tasks + i) * tasks + j, chunk < chunks, 0.0)
        element = tl.sum(total, 0)
        tl.store(out + i * tasks + j, element)
        tl.store(out + j * tasks + i, element)


def gramian(J: Tensor, out: Tensor) -> None:
    """Fill `out` [T, T] float64 with J Jᵀ; J [T, P] float32 or float64."""
    tasks, columns = J.shape
    if tasks == 0:
        return
    # Cut by P alone, so that the bits do not depend on the GPU: at most 1,024 chunks.
    blocks = max(min(8, triton.cdiv(columns, _FOLD)), triton.cdiv(columns, 1024 * _FOLD), 1)
    chunks = triton.cdiv(columns, blocks * _FOLD)
    partials = out.new_empty((chunks, tasks, tasks))
    tiles = triton.cdiv(tasks, _BLOCK_T)
    if chunks > 0:
        chunk_kernel[chunks, tiles, tiles](
            J,
            partials,
            tasks,
            columns,
            J.stride(0),
            blocks,
            _BLOCK_T,
            _BLOCK_P,
            _FOLD,
            **LAUNCH_OPTIONS,
        )
    sum_kernel[tasks, tasks](partials, out, tasks, chunks, _BLOCK_SUM, **LAUNCH_OPTIONS)
