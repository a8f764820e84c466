"""What `mtlcore check` found, as plain records: printed, kept as JSON, shown in a report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ParamSpec, TypeVar

from mtlcore.errors import Problem, UserError
from mtlcore.preflight.records import ModelCheck, Plan

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
SHOWN = 20
"""So many places of one kind are kept; all are counted."""
TOO_FEW = 10
"""Fewer rows of a group, or of a test split, say nothing: one row moves a score too far."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of the rows before any is cut: prompt and longest answer."""

    median: int
    p95: int
    max: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Lengths | None:
        """By the nearest rank; None without rows."""
        if not lengths:
            return None
        ordered = sorted(lengths)
        last = len(ordered) - 1
        p95 = max(0, math.ceil(0.95 * len(ordered)) - 1)
        return cls(ordered[last // 2], ordered[p95], ordered[last])


@dataclass
class SplitCheck:
    """The rows of one split and what becomes of them."""

    path: str
    rows: int = 0
    used: int = 0
    bad: int = 0
    empty: int = 0
    """Bad rows in which a column that the format needs is null or blank."""
    bad_places: list[str] = field(default_factory=list)
    duplicates: int = 0
    """Used rows whose texts and answer an earlier row of the split has."""
    duplicates_dropped: int = 0
    leaked_dropped: int = 0
    cleaned: int = 0
    overlong: int = 0
    truncated: int = 0
    dropped_overlong: int = 0
    not_drawn: int = 0
    tokens: Lengths | None = None
    labelled_tokens: int = 0


@dataclass(frozen=True)
class Conflict:
    """Two rows that say the same, or nearly so, and have unlike answers."""

    rows: tuple[str, str]
    answers: tuple[str, str]
    similarity: float


@dataclass(frozen=True)
class NearPair:
    """Two rows whose texts are nearly equal."""

    rows: tuple[str, str]
    similarity: float


@dataclass(frozen=True)
class Leak:
    """Rows of a split that is scored whose texts stand in another split."""

    task: str
    split: str
    other_task: str
    other_split: str
    rows: int
    of: int
    """Rows of the split that is scored."""
    near_rows: int
    """Further rows that are nearly equal to one of the other split; within a task only."""
    places: list[tuple[str, str]]


@dataclass(frozen=True)
class Interval:
    """A count, its share, and Wilson's 95% interval of the share."""

    rows: int
    share: float
    low: float
    high: float

    @classmethod
    def of(cls, rows: int, total: int) -> Interval:
        """https://doi.org/10.1080/01621459.1927.10502953, with z = 1.96."""
        if not total:
            return cls(rows, 0.0, 0.0, 1.0)
        z = 1.959963984540054
        share = rows / total
        middle = (share + z * z / (2 * total)) / (1 + z * z / total)
        half = math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
        half *= z / (1 + z * z / total)
        return cls(rows, share, max(0.0, middle - half), min(1.0, middle + half))


@dataclass(frozen=True)
class Group:
    """One value of a column: its part of the task, and each label's part of it."""

    value: str
    total: Interval
    splits: Mapping[str, int]
    labels: Mapping[str, Interval]

    @property
    def too_few(self) -> bool:
        """Whether it has too few rows to be judged."""
        return self.total.rows < TOO_FEW


@dataclass(frozen=True)
class GroupCheck:
    """How the values of one column are represented in one task."""

    task: str
    column: str
    groups: list[Group]
    """The largest ones, largest first."""
    values: int
    """How many there are."""


@dataclass
class TaskCheck:
    """What was found in one task."""

    format: str
    text_columns: list[str] = field(default_factory=list)
    """Columns of the file that the prompt depends on: what rows are compared by."""
    splits: dict[str, SplitCheck] = field(default_factory=dict)
    labels: dict[str, dict[str, int]] = field(default_factory=dict)
    """Label -> split -> rows; for tasks with one set of labels."""
    spellings: list[dict[str, int]] = field(default_factory=list)
    """Labels of the file that differ in case and white space only, with their rows."""
    conflicts: list[Conflict] = field(default_factory=list)
    conflict_count: int = 0
    answers_vary: int = 0
    """Rows whose prompt stands in other rows with other answers, where answers are free text."""
    near: list[NearPair] = field(default_factory=list)
    near_count: int = 0
    near_complete: bool = True
    """False if texts are so alike that not all pairs could be compared."""


@dataclass
class CheckReport:
    """Everything that was found; errors stop a run, warnings do not."""

    tasks: dict[str, TaskCheck] = field(default_factory=dict)
    leaks: list[Leak] = field(default_factory=list)
    groups: list[GroupCheck] = field(default_factory=list)
    errors: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What is only to be known, such as how rows were divided."""
    model: ModelCheck | None = None
    """None if the model was not looked at, or has not what the recipe adapts."""
    plan: Plan | None = None
    """None where anything that it is made of is wrong or was not looked at."""

    def collect(
        self, function: Callable[Arguments, Result], *args: Arguments.args, **kw: Arguments.kwargs
    ) -> Result | None:
        """Call a function; the problems of a UserError go to the errors, and None comes back."""
        try:
            return function(*args, **kw)
        except UserError as error:
            self.errors += error.problems
            return None

    def exit_code(self, *, strict: bool = False) -> int:
        """0, or 2 if there are errors; with `strict` also if there are warnings."""
        return 2 if self.errors or (strict and self.warnings) else 0

    def to_json(self) -> dict[str, Any]:
        """The whole report as JSON values."""
        found = asdict(self)
        for check, kept in zip(self.groups, found["groups"], strict=True):
            for group, values in zip(check.groups, kept["groups"], strict=True):
                values["too_few"] = group.too_few
        return {"ok": not self.errors, **found}
