"""How the columns of J are cut: into the caller's slices, and these into chunks, a kernel's unit of
work."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_CHUNKS = 1024  # of a slice at most, until the largest chunk is too small for that
_BLOCK = 1024  # columns; chunks are whole blocks, but for the last of a slice
_BLOCKS = 8, 128  # of the smallest and of the largest chunk


class Cut(NamedTuple):
    """A cut of the columns into S slices and C chunks, on the device of J."""

    chunks: Tensor  # [C, 3] int64: slice, first column, the one behind the last
    firsts: Tensor  # [S + 1] int64: slice s has the chunks firsts[s] .. firsts[s + 1]


def one_slice(columns: int) -> Tensor:
    """The borders of all columns as one slice."""
    return torch.tensor([0, columns], dtype=torch.int64, device="cpu")


def check_starts(starts: Tensor | Sequence[int], columns: int, *, whole: bool = False) -> Tensor:
    """The S + 1 borders of the slices: ascending, within [0, columns], or from 0 to columns.

    Raises TypeError for what are no whole numbers, ValueError for the rest.
    """
    if isinstance(starts, Tensor):
        if starts.dtype != torch.int64:
            dtype = str(starts.dtype).removeprefix("torch.")
            raise TypeError(f"starts must be int64, found {dtype}")
        if starts.ndim != 1:
            raise ValueError(f"starts must have 1 dimension, found shape {list(starts.shape)}")
        if starts.device.type != "cpu":  # to read it there would wait for the device
            raise ValueError(f"starts must be on cpu, found {starts.device}")
        borders = starts.tolist()
    else:
        try:
            borders = [operator.index(one) for one in starts]
        except TypeError as error:
            raise TypeError(f"starts must hold whole numbers: {error}") from None
    if not borders:
        raise ValueError("starts must have a border or more: 0, ..., P")
    if borders != sorted(borders):
        at = next(i for i in range(1, len(borders)) if borders[i - 1] > borders[i])
        found = f"{borders[at - 1]} before {borders[at]} at starts[{at}]"
        raise ValueError(f"starts must ascend, found {found}")
    first, last = borders[0], borders[-1]
    if whole and (first, last) != (0, columns):
        raise ValueError(f"starts must run from 0 to P = {columns}, found {first} .. {last}")
    if first < 0 or last > columns:
        raise ValueError(f"starts must lie within [0, P] = [0, {columns}], found {first} .. {last}")
    if isinstance(starts, Tensor):
        return starts
    return torch.tensor(borders, dtype=torch.int64, device="cpu")


def cut(starts: Tensor, device: torch.device) -> Cut:
    """The chunks of the slices [starts[s], starts[s + 1])."""
    return _cut(tuple(starts.tolist()), device)


# A trainer asks for the same few cuts in every step: the table is made, and copied to the device,
# in the first; it stays where it is, so that a captured graph may read it.
@functools.lru_cache(maxsize=1024)
def _cut(starts: tuple[int, ...], device: torch.device) -> Cut:
    """Chunks of 8,192 to 131,072 columns, cut by the length of their slice alone, so that neither
    other slices nor the machine change the bits of its result."""
    chunks: list[tuple[int, int, int]] = []
    firsts = [0]
    for index, (start, stop) in enumerate(itertools.pairwise(starts)):
        blocks = -(-(stop - start) // (_CHUNKS * _BLOCK))
        size = min(max(blocks, _BLOCKS[0]), _BLOCKS[1]) * _BLOCK
        chunks += [(index, at, min(at + size, stop)) for at in range(start, stop, size)]
        firsts.append(len(chunks))
    table = torch.tensor(chunks, dtype=torch.int64, device=device).view(-1, 3)
    return Cut(table, torch.tensor(firsts, dtype=torch.int64, device=device))
