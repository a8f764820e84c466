"""One process at a time trains in a run's folder."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from mtlcore.distributed import is_main
from mtlcore.errors import UserError

LOCK = ".lock"


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
        process has it."""
        if self._lock is not None or not is_main():
            return
        path = self.folder / LOCK
        lock = FileLock(path, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            holder = ""
            with suppress(OSError, UnicodeDecodeError):
                holder = path.read_text(encoding="utf-8").strip()
            raise UserError(
                f"another process trains in {self.folder}" + (f": {holder}" if holder else ""),
                where="training.output_dir",
                fix="wait until it has ended, stop it, or choose another training.output_dir",
            ) from None
        self._lock = lock
        with suppress(OSError):  # of use to read only; Windows lets nobody write a locked file
            path.write_text(f"process {os.getpid()} on {platform.node()}\n", encoding="utf-8")

    def release(self) -> None:
        """Give the lock back, if it is held."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None
