"""Triton kernel of `mtlcore.ops.combine`."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mtlcore.ops.triton import LAUNCH_OPTIONS

_BLOCK = 1024


@triton.jit
def combine_kernel(J, w, out, tasks, columns, stride, BLOCK: tl.constexpr):
    """BLOCK columns of Jᵀ w, the tasks added in their order."""
    column = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    total = tl.zeros([BLOCK], out.dtype.element_ty)
    row = J + column
    for task in range(tasks):
        total += tl.load(w + task) * tl.load(row, inside, 0.0)
        row += stride
    tl.store(out + column, total, inside)


def combine(J: Tensor, w: Tensor, out: Tensor) -> None:
    """Fill `out` [P] with Jᵀ w; J [T, P], w [T], all float32 or all float64."""
    tasks, columns = J.shape
    if columns > 0:
        grid = (triton.cdiv(columns, _BLOCK),)
        combine_kernel[grid](J, w, out, tasks, columns, J.stride(0), _BLOCK, **LAUNCH_OPTIONS)
