"""Splits: their examples, and the counts of what became of the rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import overload

from mtlcore.data.example import Example

SPLITS = ("train", "eval", "test")
KEPT_PLACES = 20
"""So many places of bad rows are kept; all are counted."""


@dataclass
class Counts:
    """What became of the rows of a split.

    rows = used + dropped_overlong + skipped + duplicates + leaked. Where eval and test are held out
    of the train rows, bad lines and duplicates of that file count as train rows.
    """

    rows: int = 0
    used: int = 0
    truncated: int = 0
    """Rows among the used ones that were cut to training.max_length."""
    dropped_overlong: int = 0
    skipped: int = 0
    """Bad rows."""
    duplicates: int = 0
    """Rows dropped because an earlier one has the same texts and answer."""
    leaked: int = 0
    """Train rows dropped because their text stands among the eval or test rows."""
    cleaned: int = 0
    """Rows among `rows` whose texts were brought into normal form."""
    not_drawn: int = 0
    """Rows left out because of max_rows, beside `rows`."""
    bad: list[str] = field(default_factory=list)
    """ "file:line: why" of the first bad rows."""

    def add_bad(self, place_and_reason: str) -> None:
        """Count a bad row."""
        self.skipped += 1
        if len(self.bad) < KEPT_PLACES:
            self.bad.append(place_and_reason)

    def __str__(self) -> str:
        parts = {
            "truncated": self.truncated,
            "dropped as too long": self.dropped_overlong,
            "bad and skipped": self.skipped,
            "duplicates dropped": self.duplicates,
            "dropped as they stand in eval or test": self.leaked,
            "normalised": self.cleaned,
            "left out by max_rows": self.not_drawn,
        }
        said = ", ".join(f"{count} {what}" for what, count in parts.items() if count)
        return f"{self.used} rows ({said})" if said else f"{self.used} rows"


@dataclass(frozen=True)
class Split(Sequence[Example]):
    """The examples of one split, and where they come from."""

    name: str
    examples: tuple[Example, ...]
    report: Counts
    path: str
    fingerprint: str
    """The source's fingerprint; of chosen rows, the sha256 of it and of their numbers."""
    source_fingerprint: str

    @classmethod
    def empty(cls, name: str) -> Split:
        """A split that was not asked for."""
        return cls(name, (), Counts(), "", "", "")

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Example, ...]: ...
    def __getitem__(self, index: int | slice) -> Example | tuple[Example, ...]:
        return self.examples[index]

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)
