"""The only file that knows of ranks."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

T = TypeVar("T")


def on_cpu_processes() -> bool:
    """Whether a launcher (torchrun) started several processes on a machine without a GPU."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.cuda.is_available()


def was_launched() -> bool:
    """Whether a launcher (torchrun) started this process, be it the only one."""
    return "WORLD_SIZE" in os.environ


def join_processes() -> None:
    """Meet the other processes that a launcher started; without a launcher nothing happens.

    They stay together until this process ends: one of them writes, also after a training.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        PartialState(cpu=on_cpu_processes())
        atexit.register(_part)


def _part() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, 0 when there is only one."""
    return dist.get_rank() if _active() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _active() else 1


def is_main() -> bool:
    """Whether this process is the one that writes files and talks to the user."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process has come here."""
    if _active():
        dist.barrier()


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum a tensor over all processes, in place; every process holds the same bits after it."""
    if _active():
        on_gpu = dist.get_backend() == "nccl" and tensor.device.type == "cpu"
        moved = tensor.cuda() if on_gpu else tensor  # nccl reduces GPU memory only
        dist.all_reduce(moved, op=dist.ReduceOp.SUM)
        if on_gpu:
            tensor.copy_(moved)
    return tensor


def any_process(value: bool) -> bool:
    """Whether `value` is true in any process; all must call it."""
    return bool(all_reduce_sum(torch.tensor(float(value))).item())


def gather(value: T) -> list[T]:
    """What every process holds, in the order of ranks: small values that can be pickled."""
    if not _active():
        return [value]
    of_all: list[T] = [value] * world_size()
    dist.all_gather_object(of_all, value)
    return of_all


def sum_by_name(values: dict[str, float]) -> dict[str, float]:
    """Sum numbers of the same name over all processes; a name need not be known to all."""
    sums: dict[str, float] = {}
    for found in gather(values):  # in the order of ranks: every process gets the same bits
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + value
    return sums


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Set tensors, in place, to those of the first process."""
    if not _active():
        return
    for tensor in tensors:
        on_gpu = dist.get_backend() == "nccl" and tensor.device.type == "cpu"
        moved = tensor.cuda() if on_gpu else tensor.contiguous()
        dist.broadcast(moved, src=0)
        if moved is not tensor:
            tensor.copy_(moved)


def _active() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
