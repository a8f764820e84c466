"""SIGTERM and SIGINT ask a training to end after its step; a second one ends it at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from mtlcore.distributed import any_process, was_launched
from mtlcore.errors import MtlcoreError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE = 5.0
"""So many seconds a launcher has to pass the first signal on, which is no second one then."""


class RunStopped(MtlcoreError):  # noqa: N818  # nothing went wrong
    """A signal ended the training; all of its steps are saved."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: begin again, and it goes on


class InterruptedByStop(BaseException):
    """Raised between the batches of an evaluation; not an Exception, so that nobody handles it."""


class StopSignals:
    """Notes the first signal while its `with` block lasts; a second one ends the process.

    A scheduler or a terminal signals every process of a job, its launcher among them, which passes
    the signal on: in a job with a launcher the same signal again within `GRACE` seconds is
    that one, and nobody's wish to end at once.

    Only the main thread of a process can have signal handlers: elsewhere this does nothing.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._grace_ends = 0.0
        self._interruptible = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number)
        if self.received is not None:
            if name == self.received and time.monotonic() < self._grace_ends:
                return
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.received = name
        again = "again: at once"
        if was_launched():
            self._grace_ends = time.monotonic() + GRACE
            again = f"again after {GRACE:g} s: at once"
        told = f"\n{name.name}: ending after this step, with a checkpoint ({again})\n"
        with suppress(OSError, ValueError):  # whoever reads it may have ended by the same Ctrl-C
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, told.encode())

    def asked(self) -> bool:
        """Whether this process or another one of the training was asked to end."""
        return any_process(self.received is not None)

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Let `raise_if_asked` raise within: what is done there is done again after a resume."""
        self._interruptible = True
        try:
            yield
        finally:
            self._interruptible = False

    def raise_if_asked(self) -> None:
        """Called between the batches of evaluations."""
        if self._interruptible and self.received is not None:
            raise InterruptedByStop
