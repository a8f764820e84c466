"""Writes checkpoints beside the training: the step loop waits for a copy, not for the disk."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from mtlcore import checkpoint_store
from mtlcore.checkpoint_store import Snapshot
from mtlcore.files import sync


class CheckpointWriter:
    """One checkpoint at a time, in the order of their steps; then old ones are pruned.

    What goes wrong in the thread (a full disk) is raised by the next `save`, `poll` or `wait`.
    """

    def __init__(self, run_folder: Path) -> None:
        self.run_folder = run_folder
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def save(self, snapshot: Snapshot, *, keep: int | None, best: Collection[int]) -> None:
        """Begin to write a snapshot, once that before it is written."""
        self.wait()
        self._writing = self._thread.submit(self._write, snapshot, keep, best)

    def poll(self) -> None:
        """Raise what went wrong so far; does not wait."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Return when everything is on the disk."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, snapshot: Snapshot, keep: int | None, best: Collection[int]) -> None:
        for name in ("metrics.jsonl", "audits.jsonl"):  # what was told of the steps before it
            if (path := self.run_folder / name).exists():
                sync(path)
        checkpoint_store.write(self.run_folder, snapshot)
        checkpoint_store.prune(self.run_folder, keep, best)
