"""Triton kernel of `mtlcore.ops.combine`."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mtlcore.ops.slices import Cut
from mtlcore.ops.triton import LAUNCH_OPTIONS

_BLOCK = 1024
_SHARES = 8  # programs of a chunk, which has 8,192 columns or more, but for the last of a slice


@triton.jit
def combine_kernel(J, w, chunks, out, tasks, stride, BLOCK: tl.constexpr, SHARES: tl.constexpr):
    """Every SHARES-th block of a chunk of Jᵀ w, the tasks added in their order."""
    entry = chunks + tl.program_id(0).to(tl.int64) * 3
    weights = w + tl.load(entry) * tasks
    stop = tl.load(entry + 2)
    for begin in range(tl.load(entry + 1) + tl.program_id(1) * BLOCK, stop, SHARES * BLOCK):
        column = begin + tl.arange(0, BLOCK)
        inside = column < stop
        total = tl.zeros([BLOCK], out.dtype.element_ty)
        row = J + column
        for task in range(tasks):
            total += tl.load(weights + task) * tl.load(row, inside, 0.0)
            row += stride
        tl.store(out + column, total, inside)


def combine(J: Tensor, w: Tensor, cut: Cut, out: Tensor) -> None:
    """Fill `out` [P] with Jᵀ w[s] in each slice; J [T, P], w [S, T], all float32 or all float64."""
    count = len(cut.chunks)
    if count:
        combine_kernel[count, _SHARES](
            J, w, cut.chunks, out, len(J), J.stride(0), _BLOCK, _SHARES, **LAUNCH_OPTIONS
        )
