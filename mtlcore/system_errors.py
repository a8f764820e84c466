"""A full disk, a folder that may not be written, no memory: told so that the user can act."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mtlcore.checkpoint_store import newest_good
from mtlcore.errors import UserError

if TYPE_CHECKING:
    from mtlcore.run import Run

FIXES = {
    errno.ENOSPC: "free some space on that disk (training.save_total_limit keeps fewer "
    "checkpoints)",
    errno.EDQUOT: "free some of your quota on that disk",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "make the disk writable, or choose a training.output_dir on another one",
    errno.EACCES: "make the folder writable, or choose another training.output_dir",
    errno.EPERM: "make the folder writable, or choose another training.output_dir",
}
OF_A_RUN = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
"""Taken for errors of the run's folder where the system names no file."""
CPU_ALLOCATOR = ("can't allocate memory", "not enough memory")
"""What torch says on a CPU, where it has no error type of its own for this."""


@contextmanager
def telling_system_errors(run: Run) -> Iterator[None]:
    """Turn errors of disk and memory within a training into UserErrors; others pass."""
    try:
        with telling_disk_errors(run.folder, nameless=OF_A_RUN):
            yield
    except (MemoryError, RuntimeError) as error:
        if not _is_of_memory(error):
            raise
        raise _of_memory(error, run) from error


@contextmanager
def telling_disk_errors(folder: Path, *, nameless: Collection[int] = ()) -> Iterator[None]:
    """Turn errors of a run's folder into UserErrors, and those of `nameless` without a file."""
    try:
        yield
    except OSError as error:
        is_nameless = error.filename is None and error.errno in nameless
        if not is_nameless and not _is_within(error.filename, folder):
            raise
        raise _of_disk(error, folder) from error


@contextmanager
def telling_memory_of_loading() -> Iterator[None]:
    """Turn a lack of memory before there is a step into a UserError; others pass."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_of_memory(error):
            raise
        raise UserError(
            f"out of memory while the model and the rows are loaded: {_said(error)}",
            where="model.name_or_path",
            fix="set model.dtype to bfloat16, take a smaller model or fewer adapters (lora.r, "
            "lora.target_modules), or end what else needs this memory",
        ) from error


def _is_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):  # the latter is a RuntimeError
        return True
    return any(words in str(error) for words in CPU_ALLOCATOR)


def _said(error: BaseException) -> str:
    return (str(error).splitlines() or ["MemoryError"])[0]


def _is_within(filename: object, folder: Path) -> bool:
    if not isinstance(filename, str | os.PathLike):
        return False
    return Path(os.path.abspath(filename)).is_relative_to(os.path.abspath(folder))


def _of_disk(error: OSError, folder: Path) -> UserError:
    what = error.strerror or str(error)
    place = error.filename or "the system did not say which file"
    if not folder.is_dir():  # it could not even be made: there is nothing to go on with
        fix = FIXES.get(error.errno or 0, "choose another training.output_dir")
        return UserError(f"{what}: {place}", where="training.output_dir", fix=fix)
    fix = FIXES.get(error.errno or 0, "see to that disk")
    return UserError(
        f"{what}: {place}\n  {_what_is_kept(folder)}",
        where="training.output_dir",
        fix=f"{fix}; then give the same command with --resume",
    )


def _of_memory(error: BaseException, run: Run) -> UserError:
    recipe = run.recipe.training
    return UserError(
        f"out of memory after step {run.step}, with {recipe.per_device_train_batch_size} rows of "
        f"up to {recipe.max_length} tokens in a pass (in evaluation "
        f"{recipe.per_device_eval_batch_size}): {_said(error)}\n  {_what_is_kept(run.folder)}",
        where="training.per_device_train_batch_size",
        fix="halve it and double gradient_accumulation_steps (the same update, in a new "
        "output_dir), or set gradient_checkpointing; in evaluation lower "
        "per_device_eval_batch_size and go on with --resume",
    )


def _what_is_kept(folder: Path) -> str:
    try:
        newest, _ = newest_good(folder, with_best=False)
    except Exception as error:  # the disk again, or no memory; the first error is the one to tell
        return f"which checkpoint is whole could not be seen ({error})"
    if newest is None:
        return "no checkpoint was written yet"
    return f"the newest checkpoint, {newest.folder.name}, is whole"
