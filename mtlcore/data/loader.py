"""One task's rows: read, split, made into Examples, and every row counted."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mtlcore.components import Format
from mtlcore.data.cleaning import Key, clean_rows, repeated, shown_text, text_key, whole_key
from mtlcore.data.example import Example, RowError, head_row
from mtlcore.data.holdout import hold_out
from mtlcore.data.lengths import fit, needed_length
from mtlcore.data.readers import Table
from mtlcore.data.sources import Rows, load_rows
from mtlcore.data.special import make_example
from mtlcore.data.splits import SPLITS, Counts, Split
from mtlcore.errors import MtlcoreError, Problem, UserError, counted, did_you_mean, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mtlcore.plugins import PluginManager
    from mtlcore.recipe import Recipe, SourceRecipe

SHOWN_BAD_ROWS = 5


@dataclass(frozen=True)
class Learned:
    """What the format of a task took from the train rows of a run that is done."""

    state: Mapping[str, Any]
    """Of its `state_dict`; empty if it keeps none."""
    train: str
    """The fingerprint of the train rows."""


@dataclass
class Part:
    """Rows of one source that form one split."""

    source: Rows
    numbers: Sequence[int]
    bad: list[str]
    changed: frozenset[int] = frozenset()
    """Rows of the source whose texts were brought into normal form."""
    duplicates: int = 0
    leaked: int = 0
    not_drawn: int = 0


@dataclass
class Misfits:
    """Which option of the format is at fault, if no row can be read."""

    fits: bool = False
    """Whether some row can be read with the options; then what others lack is their own fault."""
    options: set[str] = field(default_factory=set)
    """Of the bad rows; "" where none is named."""

    @property
    def option(self) -> str:
        """The option that no row so far fits; "" if there is none."""
        return next(iter(self.options)) if len(self.options) == 1 and not self.fits else ""


class TaskLoader:
    """Loads the rows of one task; `notes` collects what the user should be told.

    With `learned` the format is as it was when a run was trained, whatever the train rows are now.
    `load` does it all and raises at the first problem. Its steps are `read` (each file), `divide`
    (duplicates, held-out rows, leaked rows, max_rows) and `prepare` (the format), then
    `example` for each row and `fit` to its length.
    """

    def __init__(
        self,
        recipe: Recipe,
        name: str,
        tokenizer: PreTrainedTokenizerBase,
        plugins: PluginManager,
        learned: Learned | None = None,
    ) -> None:
        self.name = name
        self.whole_recipe = recipe
        self.recipe = recipe.tasks[name]
        self.tokenizer = tokenizer
        self.max_length = recipe.training.max_length
        seed = self.recipe.split.seed
        self.seed = recipe.training.seed if seed is None else seed
        self.where = f"tasks.{name}"
        self._plugins = plugins
        self._learned = learned
        self.format: Format = self._new_format()
        self.notes: list[str] = []

    def load(self, splits: Sequence[str]) -> dict[str, Split]:
        """The examples of the splits asked for, as far as the task has them."""
        parts = self.parts(splits)
        return {name: self._split(name, part) for name, part in parts.items() if name in splits}

    def parts(self, splits: Sequence[str]) -> dict[str, Part]:
        """The rows of train and the splits asked for, seen by the format; no example is made."""
        leakage = self.recipe.cleaning.leakage == "drop"
        # Which train rows stay must not depend on the splits that are asked for.
        wanted = SPLITS if leakage else ("train", *splits)
        sources = {
            name: self._read_whole(source, name)
            for name, source in self.sources().items()
            if name in wanted
        }
        parts = self.divide(sources)
        self._require_same_train_rows(parts["train"])
        self.prepare(parts["train"])
        return parts

    def sources(self) -> dict[str, SourceRecipe]:
        """The files that the recipe names, by split."""
        given = {name: getattr(self.recipe, name) for name in SPLITS}
        return {name: source for name, source in given.items() if source is not None}

    # -- which rows ---------------------------------------------------------------------------

    def read(self, source: SourceRecipe, split: str) -> Part:
        """All rows of a source, their texts in normal form."""
        if source.inputs_of is not None:
            return self._inputs(source.path, source.inputs_of)
        rows = load_rows(source, self.name, f"{self.where}.{split}")
        rows, changed = clean_rows(rows, self.recipe.cleaning)
        return Part(rows, range(len(rows)), rows.bad, changed)

    def _inputs(self, path: str, names: str | Sequence[str]) -> Part:
        """The prompts of main tasks' train rows, without those that any of them is scored on."""
        examples = list(self._main_examples(("train",), names))
        scored = self._scored_texts()
        kept = [example.prompt for example in examples if shown_text(example) not in scored]
        texts = list(dict.fromkeys(text for text in kept if text.strip()))
        if not texts:
            raise UserError(
                f"task {self.name!r}: the {path} give no text to learn: of {len(examples)} train "
                f"rows {len(examples) - len(kept)} stand among eval or test rows, and the others "
                "have no prompt",
                where=f"{self.where}.train",
                fix="name other tasks, or a file of texts",
            )
        mark = hashlib.sha256("\x1f".join(texts).encode()).hexdigest()
        table = Table([{"text": text} for text in texts], None, ("text",))
        leaked = len(examples) - len(kept)
        return Part(Rows(path, mark, ((path, table),)), range(len(texts)), [], leaked=leaked)

    def _scored_texts(self) -> set[str]:
        """`shown_text` of the rows that main tasks are scored on."""
        return {shown_text(example) for example in self._main_examples(("eval", "test"))}

    def _main_examples(
        self, splits: Sequence[str], names: str | Sequence[str] = "all"
    ) -> Iterator[Example]:
        """The rows of main tasks, as far as they can be read; an unreadable file raises."""
        for name, task in self.whole_recipe.tasks.items():
            if task.role != "main" or (names != "all" and name not in names):
                continue
            loader = TaskLoader(self.whole_recipe, name, self.tokenizer, self._plugins)
            parts = loader.parts(SPLITS)
            for part in (parts[split] for split in splits if split in parts):
                for number in part.numbers:
                    with suppress(RowError):
                        yield loader.example(part.source, number)

    def divide(self, whole: Mapping[str, Part]) -> dict[str, Part]:
        """What was read, by split: without what is dropped or left out, and train divided."""
        cleaning = self.recipe.cleaning
        keys: dict[str, dict[int, tuple[Key, str]]] = {}
        if "drop" in (cleaning.duplicates, cleaning.leakage):
            keys = self._first_pass(whole)
        parts = dict(whole)
        if cleaning.duplicates == "drop":
            for name, part in whole.items():
                again = repeated({n: key for n, (key, _) in keys[name].items()}, part.numbers)
                numbers = [number for number in part.numbers if number not in again]
                parts[name] = replace(part, numbers=numbers, duplicates=len(again))
        shares = {
            name: getattr(self.recipe.split, name)
            for name in ("eval", "test")
            if getattr(self.recipe, name) is None
        }
        if any(shares.values()):
            parts |= self._held_out(parts["train"], shares)
        if cleaning.leakage == "drop":
            parts["train"] = self._without_leaked(parts, keys)
        return {name: self._draw(name, part) for name, part in parts.items()}

    def prepare(self, train: Part) -> None:
        """Show the format the train rows, as it may ask before its first example."""
        self._prepare(self.format, train)

    def _read_whole(self, source: SourceRecipe, split: str) -> Part:
        where = f"{self.where}.{split}"
        part = self.read(source, split)
        if part.bad and self.recipe.on_bad_row == "error":
            raise self._bad_rows(part.bad, where)
        if not part.source:
            counts = Counts(rows=len(part.bad), skipped=len(part.bad))
            raise self.nothing_usable(where, part.source.path, counts, part.bad)
        for problem in self.column_problems(part.source, where):
            raise UserError(problem.message, where=problem.where, fix=problem.fix)
        return part

    def _new_format(self) -> Format:
        found: Format = self._plugins.create("format", self.recipe.format, f"{self.where}.format")
        if self._learned is not None:
            found.load_state_dict(self._learned.state)
        return found

    @property
    def needs_train_rows(self) -> bool:
        """Whether the format must see the train rows before it can read another."""
        return self.format.reads_train_rows and not self._is_restored

    @property
    def _is_restored(self) -> bool:
        return self._learned is not None and bool(self._learned.state)

    def _require_same_train_rows(self, train: Part) -> None:
        """Refuse other rows than those trained on, where only they say what the format learned."""
        if self._learned is None or not self.needs_train_rows:
            return
        if self._fingerprint(train) != self._learned.train:
            raise UserError(
                f"the train rows of {self.name!r} are not those that the run was trained on, and "
                f"its format {self.format.name!r} reads them anew",
                where=f"{self.where}.train",
                fix="bring its file back, or give the format `state_dict` and `load_state_dict` "
                "and train again",
            )

    def _prepare(self, form: Format, train: Part) -> None:
        if self._is_restored:
            return
        try:
            form.prepare([self.mapped(train.source[number]) for number in train.numbers])
        except ValueError as error:
            raise UserError(
                f"task {self.name!r}, {train.source.path}: {error}",
                where=f"{self.where}.format",
                fix="check the format's columns and options against the rows",
            ) from None

    def _first_pass(self, whole: Mapping[str, Part]) -> dict[str, dict[int, tuple[Key, str]]]:
        """`whole_key` and `text_key` of all rows by number; bad rows have none.

        An auxiliary task, which is compared with other tasks, has `shown_text` for `text_key`.

        What a row says is known only when its format has read it, and the format of the task is
        shown its train rows once, when they are known: another one reads them here.
        """
        form = self._new_format()
        self._prepare(form, whole["train"])
        key = shown_text if self.recipe.role == "auxiliary" else text_key
        found: dict[str, dict[int, tuple[Key, str]]] = {}
        for name, part in whole.items():
            found[name] = {}
            for number in part.numbers:
                with suppress(RowError):
                    example = self.example(part.source, number, form)
                    found[name][number] = whole_key(example), key(example)
        return found

    def _without_leaked(
        self, parts: Mapping[str, Part], keys: Mapping[str, Mapping[int, tuple[Key, str]]]
    ) -> Part:
        """The train rows whose texts are not among those that are scored."""
        train = parts["train"]
        scored = self._scored_texts() if self.recipe.role == "auxiliary" else set[str]()
        for name, part in parts.items():
            if name != "train":
                known = keys.get(name, keys["train"])  # a part without a file was held out
                scored |= {known[number][1] for number in part.numbers if number in known}
        known = keys["train"]
        stay = [n for n in train.numbers if n not in known or known[n][1] not in scored]
        leaked = train.leaked + len(train.numbers) - len(stay)
        return replace(train, numbers=stay, leaked=leaked)

    def column_problems(self, rows: Rows, where: str) -> Iterator[Problem]:
        """Required and mapped columns must exist; says what was found instead."""
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
            yield Problem(
                f"{self.where}.columns" if name in names else where,
                f"task {self.name!r}: {rows.path} has no column {column!r}; {what}; "
                f"columns found: {', '.join(found)}",
                f"{meant}write {self.where}.columns: {{{name}: {near or '<column of the file>'}}}",
            )

    def _held_out(self, whole: Part, shares: Mapping[str, float]) -> dict[str, Part]:
        split = self.recipe.split
        train = whole.source
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
        stratify = split.stratify or self.label_column()
        numbers = hold_out(
            train,
            shares,
            among=whole.numbers,
            by=split.by,
            stratify=stratify,
            seed=self.seed,
            where=where,
        )
        how = f"seed {self.seed}"
        how += f", stratified by {stratify!r}" if stratify else ""
        how += f", {split.by!r} kept whole" if split.by else ""
        counts = ", ".join(f"{name} {len(numbers[name])}" for name in SPLITS if name in numbers)
        self.notes.append(f"task {self.name!r}: {train.path} was split ({how}): {counts} rows")
        for name, share in shares.items():
            asked, got = round(share * len(whole.numbers)), len(numbers.get(name, ()))
            if abs(asked - got) > max(1, asked / 2):
                why = f"the groups of {split.by!r}" if split.by else f"the values of {stratify!r}"
                self.notes.append(
                    f"task {self.name!r}: {name} has {got} rows where split.{name} asks for "
                    f"{asked}: {why} allow no better"
                )
        parts = {name: Part(train, rows, [], whole.changed) for name, rows in numbers.items()}
        # What is bad or repeated belongs to no side; it is counted with the train rows.
        return parts | {"train": replace(whole, numbers=numbers["train"])}

    def label_column(self) -> str | None:
        """The file's column of the label, for formats that say they have one."""
        column: str | None = getattr(self.format, "label_column", None)
        return self.recipe.columns.get(column, column) if column else None

    def _draw(self, name: str, part: Part) -> Part:
        """At most max_rows rows, drawn by the seed, in the order of the file."""
        most = self.recipe.max_rows
        if most is None or len(part.numbers) <= most:
            return part
        draw = random.Random(f"{self.seed}/max_rows/{name}")
        left_out = len(part.numbers) - most
        self.notes.append(
            f"task {self.name!r}: max_rows leaves out {counted(left_out, f'{name} row')}"
        )
        numbers = sorted(draw.sample(part.numbers, most))
        return replace(part, numbers=numbers, not_drawn=left_out)

    # -- what becomes of them -----------------------------------------------------------------

    def mapped(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row under the format's column names; its own names stay."""
        if not self.recipe.columns:
            return row
        mapped = {
            name: row[column] for name, column in self.recipe.columns.items() if column in row
        }
        return {**row, **mapped}

    def counts(self, part: Part) -> Counts:
        """The counts of a part before its examples are made."""
        counts = Counts(
            rows=len(part.numbers) + len(part.bad) + part.duplicates + part.leaked,
            duplicates=part.duplicates,
            leaked=part.leaked,
            cleaned=sum(number in part.changed for number in part.numbers) if part.changed else 0,
            not_drawn=part.not_drawn,
        )
        for place in part.bad:
            counts.add_bad(place)
        return counts

    def _split(self, name: str, part: Part) -> Split:
        where = f"{self.where}.{name}"
        counts = self.counts(part)
        examples = tuple(self._examples(name, part, counts))
        counts.used = len(examples)
        if not examples:
            raise self.nothing_usable(where, part.source.path, counts, counts.bad)
        if counts.skipped and self.recipe.on_bad_row == "warn":
            were = "was" if counts.skipped == 1 else "were"
            skipped = counted(counts.skipped, f"bad {name} row")
            self.notes += [
                f"task {self.name!r}: {skipped} {were} skipped",
                *counts.bad,
            ]
        source = part.source
        fingerprint = self._fingerprint(part)
        return Split(name, examples, counts, source.path, fingerprint, source.fingerprint)

    @staticmethod
    def _fingerprint(part: Part) -> str:
        fingerprint = part.source.fingerprint
        if len(part.numbers) < len(part.source):
            text = f"{fingerprint}:{','.join(map(str, part.numbers))}"
            fingerprint = hashlib.sha256(text.encode()).hexdigest()
        return fingerprint

    def _examples(self, name: str, part: Part, counts: Counts) -> Iterator[Example]:
        where = f"{self.where}.{name}"
        shown: list[str] = []
        misfits = Misfits(fits=name != "train")
        for number in part.numbers:
            place = part.source.line
            try:
                example = self.example(part.source, number)
            except RowError as error:
                misfits.options.add(error.option)
                reason = f"{place(number)}: {error}"
                counts.add_bad(reason)
                shown.append(reason)
            else:
                misfits.fits = True
                fitted = self._fitted(example, counts, where, place)
                if fitted is not None:
                    yield fitted
            stops = self.recipe.on_bad_row == "error" and len(shown) >= SHOWN_BAD_ROWS
            if stops and not misfits.option:
                raise self._bad_rows(shown, where, more=True)
        if misfits.option:
            raise self.misfit(misfits.option, part, shown[0])
        if shown and self.recipe.on_bad_row == "error":
            raise self._bad_rows(shown, where)

    def example(self, rows: Rows, number: int, form: Format | None = None) -> Example:
        """The example of one row, of any length; raises RowError if the row is bad."""
        found = self._made((form or self.format).example, rows, number)
        return found if self.recipe.head is None else head_row(found)

    def questions(self, rows: Rows) -> list[Example]:
        """New rows as the model is asked them; any row that cannot be asked is a UserError."""
        rows, _ = clean_rows(rows, self.recipe.cleaning)
        bad, found, cut, hint = [*rows.bad], [], 0, ""
        if type(self.format).question is Format.question:
            hint = f" (the format {self.format.name!r} has no `question`: it reads the answer too)"
        for number in range(len(rows)):
            try:
                asked = self._made(self.format.question, rows, number)
                fitted = self._fitted_question(asked)
            except RowError as error:
                bad.append(f"{rows.line(number)}: {error}{hint}")
                continue
            cut += fitted.prompt_length < asked.prompt_length
            found.append(fitted)
        if bad:
            raise UserError(
                f"task {self.name!r} cannot be asked these rows:\n  "
                + "\n  ".join(bad[:SHOWN_BAD_ROWS])
                + (f"\n  ({len(bad)} in all)" if len(bad) > SHOWN_BAD_ROWS else ""),
                fix="mend them or take them out: no row is left without an answer",
            )
        if cut:
            self.notes.append(
                f"task {self.name!r}: the prompts of {counted(cut, 'row')} were cut at their "
                f"beginning to training.max_length ({self.max_length})"
            )
        return found

    def _fitted_question(self, asked: Example) -> Example:
        if not asked.prompt_length:
            raise UserError(
                f"the format {self.format.name!r} gives no prompt to answer",
                where=f"{self.where}.format",
                fix="name a task whose format has one",
            )
        if self.recipe.head is not None:
            asked = head_row(replace(asked, label=0))  # any label: what is learned from it is not
        fitted: Example | None = asked
        if needed_length(asked) > self.max_length:
            cuts = self.recipe.overlong == "truncate"
            fitted = fit(asked, self.max_length, "truncate", self.tokenizer) if cuts else None
        if fitted is None:
            raise RowError(
                f"{needed_length(asked)} tokens, training.max_length is {self.max_length}"
            )
        return fitted

    def _made(self, make: Callable[..., Example], rows: Rows, number: int) -> Example:
        """What a method of the format makes of one row, its errors in the words of the recipe."""
        row = self.mapped(rows[number])
        try:
            return make_example(make, row, task=self.name, index=number, tokenizer=self.tokenizer)
        except RowError as error:
            error.args = (self._with_columns_of_the_file(error, rows[number]),)
            raise
        except UserError as error:
            what = error.problem
            where = f"{self.where}.{what.where}" if what.where.startswith("format") else what.where
            raise UserError(what.message, where=where or self.where, fix=what.fix) from None
        except MtlcoreError:
            raise
        except Exception as error:
            raise MtlcoreError(
                f"format {self.format.name!r} failed on {rows.line(number)}: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _with_columns_of_the_file(self, error: RowError, row: Mapping[str, Any]) -> str:
        """A format knows a column by its own name; the reader of the message has the file's."""
        reason = str(error)
        for name, column in self.recipe.columns.items():
            if name != column:
                reason = reason.replace(f"column {name!r}", f"column {column!r} (the {name})")
        if error.missing:
            near = nearest(self.recipe.columns.get(error.missing, error.missing), row)
            meant = f"did you mean {near!r}? " if near else ""
            reason += f"; {meant}columns: {', '.join(row)}"
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

    def misfit(self, option: str, part: Part, first: str) -> UserError:
        """The error of an option of the format that no row of a part fits."""
        where = f"{self.where}.format.{option}"
        return UserError(
            f"task {self.name!r}: `{option}` fits no row of {part.source.path} "
            f"({counted(len(part.numbers), 'row')}), the first: {first}",
            where=where,
            fix=f"mend {where}, or the rows",
        )

    def nothing_usable(
        self, where: str, path: str, counts: Counts, bad: Iterable[str]
    ) -> UserError:
        """The error of a split without a row to use: what became of its rows."""
        why, fixes = [], []
        if counts.dropped_overlong:
            limit = f"training.max_length ({self.max_length})"
            why.append(f"{counts.dropped_overlong} are longer than {limit}")
            fixes.append("raise training.max_length")
        if counts.skipped:
            why.append(f"{counts.skipped} are bad, the first: {next(iter(bad), '')}")
            fixes.append("mend the bad rows")
        if counts.leaked:
            why.append(f"{counts.leaked} were dropped because they stand in eval or test")
            fixes.append(f"set {self.where}.cleaning.leakage to keep")
        return UserError(
            f"task {self.name!r}: {path} has no usable row: {'; '.join(why) or 'it is empty'}",
            where=where,
            fix="; ".join(fixes) or "name a file that has rows",
        )
