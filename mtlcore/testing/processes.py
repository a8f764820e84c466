"""Run a function in several processes that are one group, as `torchrun` would."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Result = TypeVar("Result")
SECONDS = 120  # a process that takes longer hangs


def in_processes(count: int, function: Callable[[], Result]) -> list[Result]:
    """What `function` gives in each of `count` processes, by rank.

    They are forked, so that the function may be a closure over what this process has made; each is
    in a gloo group. An exception in one of them is raised here, with its traceback as text.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        workers, ends = [], []
        for rank in range(count):
            receiver, sender = context.Pipe(duplex=False)
            arguments = (sender, Path(folder) / "group", rank, count, function)
            worker = context.Process(target=_work, args=arguments, daemon=True)
            with warnings.catch_warnings():
                # Threads of this process hold nothing that the function asks for.
                warnings.filterwarnings("ignore", ".*multi-threaded.*", DeprecationWarning)
                worker.start()
            sender.close()
            workers.append(worker)
            ends.append(receiver)
        try:
            return _results(ends)
        finally:
            for worker in workers:
                worker.kill()
                worker.join()


def _results(ends: list[Connection]) -> list[Any]:
    """What came through each end; the first error ends it, as the others may wait for that one."""
    results: dict[int, Any] = {}
    while len(results) < len(ends):
        ready = wait([end for rank, end in enumerate(ends) if rank not in results], SECONDS)
        if not ready:
            raise TimeoutError(f"the processes gave no answer within {SECONDS} seconds")
        for rank, end in enumerate(ends):
            if end in ready:
                error, results[rank] = end.recv()
                if error is not None:
                    raise RuntimeError(f"process {rank} failed:\n{error}")
    return [results[rank] for rank in range(len(ends))]


def _work(
    sender: Connection, meeting: Path, rank: int, count: int, function: Callable[[], Result]
) -> None:
    # A pool of threads does not live on in a forked process: its first use would wait for ever.
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count))
    try:
        dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=count)
        sender.send((None, function()))
        dist.barrier()  # the others may still be sending to this one
        dist.destroy_process_group()
    except BaseException:
        sender.send((traceback.format_exc(), None))
