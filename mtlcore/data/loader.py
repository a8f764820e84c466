"""One task's rows: read, split, made into Examples, and every row counted."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mtlcore.data.example import Example, RowError
from mtlcore.data.holdout import hold_out
from mtlcore.data.lengths import fit, needed_length
from mtlcore.data.sources import Rows, load_rows
from mtlcore.data.splits import SPLITS, Counts, Split
from mtlcore.errors import MtlcoreError, UserError, did_you_mean, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mtlcore.components import Format
    from mtlcore.plugins import PluginManager
    from mtlcore.recipe import Recipe, SourceRecipe

SHOWN_BAD_ROWS = 5


@dataclass
class _Part:
    """Rows of one source that form one split."""

    source: Rows
    numbers: Sequence[int]
    bad: list[str]
    not_drawn: int = 0


class TaskLoader:
    """Loads the rows of one task; `notes` collects what the user should be told."""

    def __init__(
        self,
        recipe: Recipe,
        name: str,
        tokenizer: PreTrainedTokenizerBase,
        plugins: PluginManager,
    ) -> None:
        self.name = name
        self.recipe = recipe.tasks[name]
        self.tokenizer = tokenizer
        self.max_length = recipe.training.max_length
        seed = self.recipe.split.seed
        self.seed = recipe.training.seed if seed is None else seed
        self.where = f"tasks.{name}"
        self.format: Format = plugins.create("format", self.recipe.format, f"{self.where}.format")
        self.notes: list[str] = []

    def load(self, splits: Sequence[str]) -> dict[str, Split]:
        """The examples of the splits asked for, as far as the task has them."""
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
        return {name: self._split(name, part) for name, part in parts.items() if name in splits}

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
            near = nearest(column, found)
            meant = f"did you mean {near!r}? If so, " if near else ""
            what = f"{self.format.name} needs {name!r}" + (f" ({holds})" if holds else "")
            raise UserError(
                f"task {self.name!r}: {rows.path} has no column {column!r}; {what}; "
                f"columns found: {', '.join(found)}",
                where=f"{self.where}.columns" if name in names else where,
                fix=f"{meant}write {self.where}.columns: "
                f"{{{name}: {near or '<column of the file>'}}}",
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
        for name, share in shares.items():
            asked, got = round(share * len(train)), len(numbers.get(name, ()))
            if abs(asked - got) > max(1, asked / 2):
                why = f"the groups of {split.by!r}" if split.by else f"the values of {stratify!r}"
                self.notes.append(
                    f"task {self.name!r}: {name} has {got} rows where split.{name} asks for "
                    f"{asked}: {why} allow no better"
                )
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
        source = part.source
        return Split(name, examples, counts, source.path, fingerprint, source.fingerprint)

    def _examples(self, part: _Part, counts: Counts, where: str) -> Iterator[Example]:
        shown: list[str] = []
        for number in part.numbers:
            place = part.source.line
            try:
                example = self._example(part.source, number)
            except RowError as error:
                reason = f"{place(number)}: {self._with_columns_of_the_file(str(error))}"
                counts.add_bad(reason)
                shown.append(reason)
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

    def _with_columns_of_the_file(self, reason: str) -> str:
        """A format knows a column by its own name; the reader of the message has the file's."""
        for name, column in self.recipe.columns.items():
            if name != column:
                reason = reason.replace(f"column {name!r}", f"column {column!r} (the {name})")
        return reason

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
        why, fixes = [], []
        if counts.dropped_overlong:
            limit = f"training.max_length ({self.max_length})"
            why.append(f"{counts.dropped_overlong} are longer than {limit}")
            fixes.append("raise training.max_length")
        if counts.skipped:
            why.append(f"{counts.skipped} are bad, the first: {next(iter(bad), '')}")
            fixes.append("mend the bad rows")
        return UserError(
            f"task {self.name!r}: {path} has no usable row: {'; '.join(why) or 'it is empty'}",
            where=where,
            fix="; ".join(fixes) or "name a file that has rows",
        )
