"""One process at a time trains in a run's folder."""

from __future__ import annotations

import errno
import os
import platform
from contextlib import suppress
from pathlib import Path
from weakref import WeakSet

from filelock import FileLock, Timeout

from mtlcore.distributed import is_main
from mtlcore.errors import UserError

LOCK = ".lock"
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}
"""What a file system without locks says."""

_held: WeakSet[RunLock] = WeakSet()


class RunLock:
    """The lock of a run's folder; the system releases it when the process ends, however it ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: FileLock | None = None

    @property
    def held(self) -> bool:
        """Whether this process has it."""
        return self._lock is not None

    def acquire(self) -> None:
        """Take the lock of a folder that exists, unless it is held already; UserError if another
        process has it, or another run of this one."""
        if self._lock is not None or not is_main():
            return
        path = self.folder / LOCK
        # A soft lock, which is a file that is there, would outlive a killed process.
        lock = FileLock(path, timeout=0, fallback_to_soft=False)
        try:
            lock.acquire()
        except Timeout:
            raise self._taken() from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            raise UserError(
                f"the file system of {self.folder} has no locks ({error.strerror}), so nothing "
                "would keep a second process from training there",
                where="training.output_dir",
                fix="choose a training.output_dir on a local disk, or mount that file system with "
                "locks (Lustre: the option flock)",
            ) from error
        self._lock = lock
        _held.add(self)
        with suppress(OSError):  # of use to read only; Windows lets nobody write a locked file
            path.write_text(f"process {os.getpid()} on {platform.node()}\n", encoding="utf-8")

    def _taken(self) -> UserError:
        where = "training.output_dir"
        if any(other.folder.resolve() == self.folder.resolve() for other in _held):
            return UserError(
                f"this process trains in {self.folder} already",
                where=where,
                fix="end that run first (one that is not to be trained: run.lock.release()), or "
                "choose another training.output_dir",
            )
        holder = ""
        with suppress(OSError, UnicodeDecodeError):
            holder = (self.folder / LOCK).read_text(encoding="utf-8").strip()
        return UserError(
            f"another process trains in {self.folder}" + (f": {holder}" if holder else ""),
            where=where,
            fix="wait until it has ended, stop it, or choose another training.output_dir",
        )

    def release(self) -> None:
        """Give the lock back, if it is held."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None
            _held.discard(self)
