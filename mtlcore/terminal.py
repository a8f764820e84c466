"""Texts of users on their way to a terminal, or to whoever reads what is told."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast


def plain(text: str) -> str:
    """Without control characters, which a terminal would obey; line ends stay."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


@contextmanager
def outliving_readers() -> Iterator[None]:
    """While it lasts, what is told goes nowhere once nobody reads it, instead of ending the work.

    Such is a pipe whose reader has ended (`| tee log` ends by the same Ctrl-C), or a terminal that
    was closed.
    """
    before = sys.stdout, sys.stderr
    streams = [stream and _Outliving(stream) for stream in before]
    sys.stdout, sys.stderr = cast("list[TextIO]", streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in filter(None, streams):
            with suppress(OSError):
                stream.flush()  # now, not when the interpreter ends, which would complain


class _Outliving:
    """A text stream that writes to nowhere from the first time on that nobody reads it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        if error.errno not in (errno.EPIPE, errno.EIO):  # EIO: a terminal that is gone
            raise error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())  # what is buffered still, and other writers too
        os.close(nowhere)
