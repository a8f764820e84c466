"""Tasks: their rows read, split, made into Examples and counted."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, overload

from mtlcore.data.example import Example, RowError
from mtlcore.data.lengths import fit, needed_length
from mtlcore.data.sources import Rows, load_rows
from mtlcore.data.splits import hold_out
from mtlcore.errors import MtlcoreError, UserError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mtlcore.components import Format
    from mtlcore.plugins import PluginManager
    from mtlcore.recipe import Recipe, SourceRecipe, TaskRecipe

SPLITS = ("train", "eval", "test")
KEPT_PLACES = 20
"""So many places of bad rows are kept; all are counted."""
SHOWN_BAD_ROWS = 5


@dataclass
class Counts:
    """What became of the rows of a split: rows = used + dropped_overlong + skipped."""

    rows: int = 0
    used: int = 0
    truncated: int = 0
    """Rows among the used ones that were cut to training.max_length."""
    dropped_overlong: int = 0
    skipped: int = 0
    """Bad rows."""
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


@dataclass
class Task:
    """One task with its data. A split that was not asked for is empty (train) or None."""

    name: str
    index: int
    recipe: TaskRecipe
    format: Format
    train: Split
    eval: Split | None = None
    test: Split | None = None
    notes: list[str] = field(default_factory=list)
    """What the user should be told about this task's data."""

    def splits(self) -> dict[str, Split]:
        """The splits that were read, by name."""
        found = {"train": self.train, "eval": self.eval, "test": self.test}
        return {name: split for name, split in found.items() if split is not None and split.path}

    def describe(self) -> str:
        """One line for the log."""
        parts = [f"{name} {split.report}" for name, split in self.splits().items()]
        return f"{self.name}: {'; '.join(parts)}"

    def fingerprints(self) -> dict[str, Any]:
        """Per split: path, fingerprint and counts, for the record of a run."""
        return {
            name: {"path": split.path, "fingerprint": split.fingerprint, **asdict(split.report)}
            for name, split in self.splits().items()
        }


def load_tasks(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    plugins: PluginManager,
    *,
    splits: Sequence[str] = SPLITS,
) -> list[Task]:
    """Read the tasks of a recipe, in its order, with the splits asked for.

    The train rows are always read, because held-out rows and label sets come from them; examples
    are made for `splits` only. Raises UserError if rows are bad and `on_bad_row` is error, or if a
    split has no usable row.
    """
    unknown = set(splits) - set(SPLITS)
    if unknown:
        raise UserError(f"unknown splits {sorted(unknown)}", fix=f"known: {', '.join(SPLITS)}")
    tasks = [
        _Loader(recipe, name, index, tokenizer, plugins).load(splits)
        for index, name in enumerate(recipe.tasks)
    ]
    _note_shared_rows(tasks)
    return tasks


@dataclass
class _Part:
    """Rows of one source that form one split."""

    source: Rows
    numbers: Sequence[int]
    bad: list[str]
    not_drawn: int = 0


class _Loader:
    """Loads one task."""

    def __init__(
        self,
        recipe: Recipe,
        name: str,
        index: int,
        tokenizer: PreTrainedTokenizerBase,
        plugins: PluginManager,
    ) -> None:
        self.name, self.index = name, index
        self.recipe = recipe.tasks[name]
        self.tokenizer = tokenizer
        self.max_length = recipe.training.max_length
        seed = self.recipe.split.seed
        self.seed = recipe.training.seed if seed is None else seed
        self.where = f"tasks.{name}"
        self.format: Format = plugins.create("format", self.recipe.format, f"{self.where}.format")
        self.notes: list[str] = []

    def load(self, splits: Sequence[str]) -> Task:
        """Read, split, format."""
        parts = self._parts(splits)
        train = parts["train"]
        try:
            self.format.prepare([self._mapped(train.source[number]) for number in train.numbers])
        except ValueError as error:
            raise UserError(
                f"task {self.name!r}, {train.source.path}: {error}",
                where=f"{self.where}.format",
                fix="check the format's columns and options against the rows",
            ) from None
        read = {name: self._split(name, parts[name]) for name in parts if name in splits}
        return Task(
            self.name,
            self.index,
            self.recipe,
            self.format,
            read.get("train") or Split("train", (), Counts(), "", ""),
            read.get("eval"),
            read.get("test"),
            self.notes,
        )

    # -- which rows ---------------------------------------------------------------------------

    def _parts(self, splits: Sequence[str]) -> dict[str, _Part]:
        train = self._read(self.recipe.train, "train")
        given: dict[str, SourceRecipe | None] = {"eval": self.recipe.eval, "test": self.recipe.test}
        parts = {"train": _Part(train, range(len(train)), train.bad)}
        for name, source in given.items():
            if source is not None and name in splits:
                rows = self._read(source, name)
                parts[name] = _Part(rows, range(len(rows)), rows.bad)
        shares = {name: getattr(self.recipe.split, name) for name in given if given[name] is None}
        if any(shares.values()):
            parts |= self._held_out(train, shares)
        return {name: self._draw(name, part) for name, part in parts.items()}

    def _read(self, source: SourceRecipe, split: str) -> Rows:
        where = f"{self.where}.{split}"
        rows = load_rows(source, self.name, where)
        bad = rows.bad
        if bad and self.recipe.on_bad_row == "error":
            raise self._bad_rows(bad, where)
        if not rows:
            raise self._nothing_usable(
                where, rows.path, Counts(rows=len(bad), skipped=len(bad)), bad
            )
        self._check_columns(rows, where)
        return rows

    def _check_columns(self, rows: Rows, where: str) -> None:
        """Required and mapped columns must exist; the error names what was found instead."""
        found = rows.columns
        names = self.recipe.columns
        needed = {name: names.get(name, name) for name in self.format.columns}
        for name, column in {**needed, **names}.items():
            if column in found:
                continue
            holds = self.format.columns.get(name, "")
            what = f"{self.format.name} needs {name!r}" + (f" ({holds})" if holds else "")
            raise UserError(
                f"task {self.name!r}: {rows.path} has no column {column!r}; {what}; "
                f"columns found: {', '.join(found)}",
                where=f"{self.where}.columns" if name in names else where,
                fix=f"{did_you_mean(column, found)} Write {self.where}.columns: "
                f"{{{name}: <column of the file>}}",
            )

    def _held_out(self, train: Rows, shares: Mapping[str, float]) -> dict[str, _Part]:
        split = self.recipe.split
        where = f"{self.where}.split"
        for option in ("by", "stratify"):
            column = getattr(split, option)
            if column is not None and column not in train.columns:
                raise UserError(
                    f"task {self.name!r}: {train.path} has no column {column!r}; "
                    f"columns found: {', '.join(train.columns)}",
                    where=f"{where}.{option}",
                    fix=did_you_mean(column, train.columns),
                )
        stratify = split.stratify or self._label_column()
        numbers = hold_out(
            train, shares, by=split.by, stratify=stratify, seed=self.seed, where=where
        )
        how = f"seed {self.seed}"
        how += f", stratified by {stratify!r}" if stratify else ""
        how += f", {split.by!r} kept whole" if split.by else ""
        counts = ", ".join(f"{name} {len(numbers[name])}" for name in SPLITS if name in numbers)
        self.notes.append(f"task {self.name!r}: {train.path} was split ({how}): {counts} rows")
        return {
            name: _Part(train, rows, train.bad if name == "train" else [])
            for name, rows in numbers.items()
        }

    def _label_column(self) -> str | None:
        """The file's column of the label, for formats that say they have one."""
        column: str | None = getattr(self.format, "label_column", None)
        return self.recipe.columns.get(column, column) if column else None

    def _draw(self, name: str, part: _Part) -> _Part:
        """At most max_rows rows, drawn by the seed, in the order of the file."""
        most = self.recipe.max_rows
        if most is None or len(part.numbers) <= most:
            return part
        draw = random.Random(f"{self.seed}/max_rows/{name}")
        part.not_drawn = len(part.numbers) - most
        part.numbers = sorted(draw.sample(part.numbers, most))
        self.notes.append(f"task {self.name!r}: max_rows leaves out {part.not_drawn} {name} rows")
        return part

    # -- what becomes of them -----------------------------------------------------------------

    def _mapped(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row under the format's column names; its own names stay."""
        if not self.recipe.columns:
            return row
        mapped = {
            name: row[column] for name, column in self.recipe.columns.items() if column in row
        }
        return {**row, **mapped}

    def _split(self, name: str, part: _Part) -> Split:
        where = f"{self.where}.{name}"
        counts = Counts(rows=len(part.numbers) + len(part.bad), not_drawn=part.not_drawn)
        for place in part.bad:
            counts.add_bad(place)
        examples = tuple(self._examples(part, counts, where))
        counts.used = len(examples)
        if not examples:
            raise self._nothing_usable(where, part.source.path, counts, counts.bad)
        if counts.skipped and self.recipe.on_bad_row == "warn":
            self.notes += [
                f"task {self.name!r}: {counts.skipped} bad {name} rows were skipped",
                *counts.bad,
            ]
        fingerprint = part.source.fingerprint
        if len(part.numbers) < len(part.source):
            text = f"{fingerprint}:{','.join(map(str, part.numbers))}"
            fingerprint = hashlib.sha256(text.encode()).hexdigest()
        return Split(name, examples, counts, part.source.path, fingerprint)

    def _examples(self, part: _Part, counts: Counts, where: str) -> Iterator[Example]:
        shown: list[str] = []
        for number in part.numbers:
            place = part.source.line
            try:
                example = self._example(part.source, number)
            except RowError as error:
                counts.add_bad(f"{place(number)}: {error}")
                shown.append(f"{place(number)}: {error}")
                if self.recipe.on_bad_row == "error" and len(shown) == SHOWN_BAD_ROWS:
                    raise self._bad_rows(shown, where, more=True) from None
                continue
            fitted = self._fitted(example, counts, where, place)
            if fitted is not None:
                yield fitted
        if shown and self.recipe.on_bad_row == "error":
            raise self._bad_rows(shown, where)

    def _example(self, rows: Rows, number: int) -> Example:
        row = self._mapped(rows[number])
        try:
            return self.format.example(row, task=self.name, index=number, tokenizer=self.tokenizer)
        except UserError as error:
            what = error.problem
            where = f"{self.where}.{what.where}" if what.where.startswith("format") else what.where
            raise UserError(what.message, where=where or self.where, fix=what.fix) from None
        except (RowError, MtlcoreError):
            raise
        except Exception as error:
            raise MtlcoreError(
                f"format {self.format.name!r} failed on {rows.line(number)}: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _fitted(
        self, example: Example, counts: Counts, where: str, place: Callable[[int], str]
    ) -> Example | None:
        policy = self.recipe.overlong
        if policy == "error":
            length = needed_length(example)
            if length > self.max_length:
                raise UserError(
                    f"{place(example.row)}: {length} tokens, training.max_length is "
                    f"{self.max_length}",
                    where=where,
                    fix=f"raise training.max_length, or set {self.where}.overlong to truncate or "
                    "drop",
                )
            return example
        fitted = fit(example, self.max_length, policy, self.tokenizer)
        if fitted is None:
            counts.dropped_overlong += 1
        elif fitted is not example:
            counts.truncated += 1
        return fitted

    # -- errors -------------------------------------------------------------------------------

    def _bad_rows(self, bad: Sequence[str], where: str, *, more: bool = False) -> UserError:
        shown = [*bad[:SHOWN_BAD_ROWS]]
        if more or len(bad) > SHOWN_BAD_ROWS:
            shown.append("(there may be more)" if more else f"({len(bad)} in all)")
        return UserError(
            f"task {self.name!r} has bad rows:\n  " + "\n  ".join(shown),
            where=where,
            fix=f"mend these rows, or set {self.where}.on_bad_row to skip or warn",
        )

    def _nothing_usable(
        self, where: str, path: str, counts: Counts, bad: Iterable[str]
    ) -> UserError:
        why = [
            f"{counts.dropped_overlong} are longer than training.max_length ({self.max_length})"
            if counts.dropped_overlong
            else "",
            f"{counts.skipped} are bad, the first: {next(iter(bad), '')}" if counts.skipped else "",
        ]
        reasons = "; ".join(reason for reason in why if reason) or "it is empty"
        return UserError(
            f"task {self.name!r}: {path} has no usable row: {reasons}",
            where=where,
            fix="give the task rows that can be used",
        )


def _note_shared_rows(tasks: Sequence[Task]) -> None:
    """Say where a row is held out by one task and trained on by another: scores would flatter."""
    trained = {task.name: {e.row for e in task.train} for task in tasks}
    for task in tasks:
        for other in tasks:
            for name in ("eval", "test"):
                split = task.splits().get(name)
                if other is task or split is None or split.path != other.train.path:
                    continue
                count = sum(example.row in trained[other.name] for example in split)
                if count:
                    task.notes.append(
                        f"task {task.name!r}: {count} of its {len(split)} {name} rows are train "
                        f"rows of task {other.name!r} (same file {split.path}); give both tasks "
                        "the same split.by, or their own files"
                    )
