"""The rows of one task, as `mtlcore check` looks at them.

Rows are compared in three ways:

* duplicates: the same prompt and the same answer, to the letter;
* leakage and unlike labels: the same prompt up to Unicode form, case and white space; between tasks
  the same texts of the columns that the prompt depends on, as templates differ;
* nearly equal: a Jaccard index of at least 0.8 of 5-character pieces in each of these columns
  (`mtlcore.data.near`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mtlcore.data.check_report import (
    SHOWN,
    TOO_FEW,
    CheckReport,
    Conflict,
    Leak,
    Lengths,
    NearPair,
    SplitCheck,
    TaskCheck,
)
from mtlcore.data.cleaning import normalized, text_key, whole_key
from mtlcore.data.example import IGNORED, Example, RowError
from mtlcore.data.groups import MOST_GROUPS, Counts, group_check, group_value, without_labels
from mtlcore.data.lengths import fit, needed_length
from mtlcore.data.loader import SHOWN_BAD_ROWS, Misfits, Part, TaskLoader
from mtlcore.data.near import jaccard, near_pairs, pieces_of
from mtlcore.data.special import make_example
from mtlcore.data.splits import SPLITS, Split
from mtlcore.data.tasks import Task
from mtlcore.errors import MtlcoreError, Problem, UserError, counted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mtlcore.data.sources import Rows
    from mtlcore.plugins import PluginManager
    from mtlcore.recipe import Recipe

NEAR = 0.8
PROBED = 20
"""Rows that are tried to find the columns that the prompt depends on."""

Progress = Callable[[str], object]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Column:
    """A column that someone needs: of one task, or of any."""

    name: str
    where: str
    task: str | None = None


@dataclass(frozen=True, slots=True)
class _Row:
    """What is kept of a row: enough to compare it and to say where it stands."""

    split: str
    number: int
    key: bytes
    """Of its prompt and its choices."""
    text: str
    """The normalised texts of the text columns, one a line."""
    answer: str
    options: bytes
    """Of the choices; empty if the answer is free text."""


@dataclass
class TaskChecker:
    """Checks one task; what it found goes to the report, its rows stay for comparisons."""

    recipe: Recipe
    name: str
    tokenizer: PreTrainedTokenizerBase
    plugins: PluginManager
    report: CheckReport
    columns: Sequence[Column]
    progress: Progress | None
    rows: list[_Row] = field(default_factory=list)
    sources: dict[str, Rows] = field(default_factory=dict)
    text_columns: list[str] = field(default_factory=list)
    found_columns: set[str] = field(default_factory=set)
    spellings: Counter[str] = field(default_factory=Counter)
    groups: dict[str, Counts] = field(default_factory=dict)
    """Column -> (value, split, label) -> rows."""
    option_sets: set[bytes] = field(default_factory=set)
    unfit: set[str] = field(default_factory=set)
    """Options of the format that no train row fits."""
    failed: bool = False
    """Whether there is an error that stops a run."""
    read: dict[str, Split] = field(default_factory=dict)
    """The splits as a run would have them."""

    def run(self) -> None:
        """Read, divide and look at every row; go on after a problem as far as that is possible."""
        task = self.recipe.tasks[self.name]
        self.check = self.report.tasks[self.name] = TaskCheck(task.format.name)
        try:
            self.loader = TaskLoader(self.recipe, self.name, self.tokenizer, self.plugins)
        except UserError as error:
            self._error(error)
            return
        parts = self._parts()
        if "train" in parts:
            self._find_text_columns(parts["train"])
        for split, part in parts.items():
            if self.progress:
                self.progress(f"task {self.name}: {len(part.numbers)} {split} rows")
            self._look_at(split, part)
        found = self.check.splits
        self.check.splits = {split: found[split] for split in SPLITS if split in found}
        if self.progress:
            self.progress(f"task {self.name}: comparing rows")
        self._count_labels()
        self._check_spellings()
        self._compare_rows()
        self._count_groups()

    def as_task(self) -> Task | None:
        """The task as components get it; None if a run could not read it."""
        if "train" not in self.read or self.failed:
            return None
        return Task(
            name=self.name,
            index=list(self.recipe.tasks).index(self.name),
            recipe=self.recipe.tasks[self.name],
            format=self.loader.format,
            train=self.read["train"],
            eval=self.read.get("eval"),
            test=self.read.get("test"),
        )

    # -- reading ------------------------------------------------------------------------------

    def _parts(self) -> dict[str, Part]:
        """What can be read, divided into splits; nothing if the train rows cannot be used."""
        loader, whole = self.loader, {}
        for split, source in loader.sources().items():
            where = f"{loader.where}.{split}"
            try:
                part = loader.read(source, split)
            except UserError as error:
                self._error(error)
                continue
            self.sources[split] = part.source
            self.found_columns |= {*part.source.columns, *loader.recipe.columns}
            if not part.source:
                counts = loader.counts(part)
                self.check.splits[split] = SplitCheck(
                    part.source.path, counts.rows, bad=counts.skipped, bad_places=counts.bad
                )
                self._error(loader.nothing_usable(where, part.source.path, counts, part.bad))
                continue
            problems = list(loader.column_problems(part.source, where))
            if problems:
                self._add_errors(problems)
            else:
                whole[split] = part
        if "train" not in whole:
            return {}
        parts = whole
        try:
            parts = loader.divide(whole)
        except MtlcoreError as error:  # what is wrong with rows is told all the same
            self._error(error)
        try:
            loader.prepare(parts["train"])
        except MtlcoreError as error:
            self._error(error)
            self._tell_unread(whole)
            return {}
        self.report.notes += loader.notes
        for split in parts:
            self.sources.setdefault(split, whole["train"].source)
        return {split: parts[split] for split in SPLITS if split in parts}

    def _tell_unread(self, whole: Mapping[str, Part]) -> None:
        """The lines that are no rows, of parts whose rows cannot be looked at."""
        for split, part in whole.items():
            counts = self.loader.counts(part)
            self.check.splits[split] = SplitCheck(
                part.source.path, counts.rows, bad=counts.skipped, bad_places=counts.bad
            )
            self._judge(split, self.check.splits[split], ())

    def _find_text_columns(self, train: Part) -> None:
        """The columns that the prompt depends on: it changes when their value does."""
        found: dict[str, None] = {}
        for number in train.numbers[:PROBED]:
            row = train.source[number]
            plain = self._prompt(row, number)
            for name, value in row.items() if plain is not None else ():
                changed = _changed(value)
                if name in found or changed is None:
                    continue
                prompt = self._prompt({**row, name: changed}, number)
                if prompt not in (None, plain):
                    found[name] = None
        self.text_columns = self.check.text_columns = list(found)

    def _prompt(self, row: dict[str, Any], number: int) -> str | None:
        """What the row is read as, without the answer; None for a row that cannot be read."""
        form, mapped = self.loader.format, self.loader.mapped(row)
        with suppress(Exception):  # what a row is bad for is said when it is looked at
            example = make_example(
                form.example, mapped, task=self.name, index=number, tokenizer=self.tokenizer
            )
            return example.prompt if example.prompt_length else example.target
        return None

    def _look_at(self, split: str, part: Part) -> None:
        """Make the examples of one split, as a run would, and count."""
        counts = self.loader.counts(part)
        found = SplitCheck(
            part.source.path,
            rows=counts.rows,
            bad=counts.skipped,
            bad_places=counts.bad,
            duplicates_dropped=counts.duplicates,
            leaked_dropped=counts.leaked,
            cleaned=counts.cleaned,
            not_drawn=counts.not_drawn,
        )
        self.check.splits[split] = found
        examples: list[Example] = []
        lengths: list[int] = []
        seen: set[bytes] = set()
        too_long: list[str] = []
        misfits, first = Misfits(fits=split != "train" and not self.unfit), ""
        for number in part.numbers:
            self._note_label(part.source[number])
            try:
                example = self.loader.example(part.source, number)
            except RowError as error:
                misfits.options.add(error.option)
                reason = f"{part.source.line(number)}: {error}"
                first = first or reason
                counts.add_bad(reason)
                found.empty += self._is_empty(part.source[number])
                continue
            except MtlcoreError as error:  # of no use to any row: once is enough
                self._error(error)
                return
            misfits.fits = True
            lengths.append(needed_length(example))
            fitted = self._fitted(example, found)
            if fitted is None:
                too_long.append(part.source.line(number))
                continue
            examples.append(fitted)
            found.used += 1
            found.labelled_tokens += sum(label != IGNORED for label in fitted.labels[1:])
            whole = _digest(*whole_key(example))
            found.duplicates += whole in seen
            seen.add(whole)
            self._keep(split, part.source, number, example)
        found.bad, found.tokens = counts.skipped, Lengths.of(lengths)
        source, mark = part.source, part.source.fingerprint
        self.read[split] = Split(split, tuple(examples), counts, source.path, mark, mark)
        told = len(self.report.errors)
        if option := misfits.option:  # told once, instead of the rows of every split
            if option not in self.unfit:
                self._error(self.loader.misfit(option, part, first))
            self.unfit.add(option)
            self._judge(split, replace(found, bad=len(part.bad), bad_places=part.bad), ())
            return
        self._judge(split, found, too_long)
        if not found.used and len(self.report.errors) == told:
            counts.dropped_overlong = found.overlong
            where, path = f"{self.loader.where}.{split}", part.source.path
            self._error(self.loader.nothing_usable(where, path, counts, counts.bad))

    def _fitted(self, example: Example, found: SplitCheck) -> Example | None:
        policy = self.loader.recipe.overlong
        limit = self.loader.max_length
        fitted = fit(example, limit, "drop" if policy == "error" else policy, self.tokenizer)
        found.overlong += fitted is not example
        found.truncated += fitted is not example and fitted is not None
        found.dropped_overlong += fitted is None and policy != "error"
        return fitted

    def _keep(self, split: str, source: Rows, number: int, example: Example) -> None:
        row = source[number]
        if self.text_columns:
            values = (row.get(name) for name in self.text_columns)
            texts = ["" if value is None else normalized(str(value)) for value in values]
        else:
            texts = []
        text = "\n".join(texts) if any(texts) else text_key(example)
        answer = example.target.strip() if example.prompt_length else ""
        options = _digest(*example.options) if example.options else b""
        key = _digest(text_key(example))
        self.rows.append(_Row(split, number, key, text, answer, options))
        self.option_sets.add(options)
        label = example.target if options else ""
        mapped = self.loader.mapped(row)
        for column in {column.name for column in self.columns} & self.found_columns:
            value = group_value(mapped.get(column))
            self.groups.setdefault(column, Counter())[value, split, label] += 1

    def _has_label_set(self) -> bool:
        """Whether all rows choose among the same answers, so that they can be counted."""
        return len(self.option_sets) == 1 and b"" not in self.option_sets

    def _count_labels(self) -> None:
        if not self._has_label_set():
            return
        counts = Counter((row.answer, row.split) for row in self.rows)
        for (answer, split), count in sorted(counts.items()):
            self.check.labels.setdefault(answer, {})[split] = count
        for split in self.check.splits:
            missing = [label for label, found in self.check.labels.items() if split not in found]
            if missing and self.check.splits[split].used:
                said = ", ".join(map(repr, missing[:SHOWN_BAD_ROWS]))
                said += f" and {len(missing) - SHOWN_BAD_ROWS} more" * (
                    len(missing) > SHOWN_BAD_ROWS
                )
                self._warn(
                    f"{self.loader.where}.{split}",
                    f"no row has the label {said}",
                    "add rows of it, or hold out rows with `split`, which keeps the labels' shares",
                )

    def _note_label(self, row: Mapping[str, Any]) -> None:
        label = self.loader.label_column()
        if label and isinstance(row.get(label), str):
            self.spellings[row[label].strip()] += 1

    def _is_empty(self, row: Mapping[str, Any]) -> bool:
        mapped = self.loader.mapped(dict(row))
        values = [mapped.get(name) for name in self.loader.format.columns]
        values += [mapped.get(name) for name in self.text_columns]
        return any(
            value is None or (isinstance(value, str) and not value.strip()) for value in values
        )

    # -- judging ------------------------------------------------------------------------------

    def _judge(self, split: str, found: SplitCheck, too_long: Sequence[str]) -> None:
        """The problems of one split."""
        recipe, where = self.loader.recipe, f"{self.loader.where}.{split}"
        if found.bad:
            shown = found.bad_places[:SHOWN_BAD_ROWS]
            problem = Problem(
                where,
                f"{found.bad} of {found.rows} rows are bad:" + _lines(shown, found.bad),
                f"mend these rows, or set {self.loader.where}.on_bad_row to skip or warn"
                if recipe.on_bad_row == "error"
                else f"mend these rows; a run leaves them out ({recipe.on_bad_row})",
            )
            stops = recipe.on_bad_row == "error"
            if stops:
                self._add_errors([problem])
            else:
                self.report.warnings.append(problem)
        if found.overlong:
            limit = f"over training.max_length ({self.loader.max_length} tokens)"
            if recipe.overlong == "error":
                message = f"{counted(found.overlong, 'row')} {limit}:"
                message += _lines(too_long[:SHOWN_BAD_ROWS], len(too_long))
                fix = f"raise it, or set {self.loader.where}.overlong to truncate or drop"
                self._add_errors([Problem(where, message, fix)])
            else:
                what = {"cut": found.truncated, "dropped": found.dropped_overlong}
                said = ", ".join(f"{count} {verb}" for verb, count in what.items() if count)
                message = f"{counted(found.overlong, 'row')} {limit}: {said}"
                self._warn(where, message, "raise it, or shorten the rows")
        if found.duplicates:
            self._warn(
                where,
                f"{found.duplicates} of {found.used} rows repeat an earlier one, texts and answer",
                f"set {self.loader.where}.cleaning.duplicates to drop",
            )
        if split == "test" and 0 < found.used < TOO_FEW:
            self._warn(
                where,
                f"{counted(found.used, 'row')} to test with: its score says little, and chance "
                "can move it far",
                "add test rows, or hold out a larger share of the rows (`split`)",
            )

    def _check_spellings(self) -> None:
        forms: dict[str, dict[str, int]] = defaultdict(dict)
        for label, count in self.spellings.items():
            forms[normalized(label)][label] = count
        self.check.spellings = [found for found in forms.values() if len(found) > 1]
        for found in self.check.spellings[:SHOWN]:
            said = ", ".join(
                f"{label!r} ({counted(count, 'row')})" for label, count in found.items()
            )
            self._warn(
                f"{self.loader.where}.train",
                f"labels that differ in case or space only: {said}",
                f"write one of them, or map both to one word in {self.loader.where}.format.labels",
            )

    def _compare_rows(self) -> None:
        """Unlike answers to one text, nearly equal texts, and leakage within the task."""
        by_key: dict[bytes, list[_Row]] = defaultdict(list)
        by_text: dict[str, list[_Row]] = defaultdict(list)
        for row in self.rows:
            by_key[row.key].append(row)
            by_text[row.text].append(row)
        conflicts = Kept[Conflict]()
        for rows in by_key.values():
            if len(rows) > 1:
                self._compare_answers(rows, conflicts)
        texts = list(by_text)
        pairs, self.check.near_complete = near_pairs(texts, NEAR)
        near = Kept[NearPair]()
        near_train: dict[tuple[str, int], str] = {}
        for i, j, similarity in pairs:
            if not _alike(texts[i], texts[j]):
                continue
            some, others = by_text[texts[i]], by_text[texts[j]]
            one, other = some[0], others[0]
            near.add(NearPair((self.place(one), self.place(other)), round(similarity, 3)))
            for row, unlike in _unlike(some, others):
                conflicts.add(self._conflict(row, unlike, similarity))
            for these, those in ((some, others), (others, some)):
                trained = [row for row in these if row.split == "train"][:1]
                for row in those if trained else ():
                    near_train.setdefault((row.split, row.number), self.place(trained[0]))
        self.check.near, self.check.near_count = near.items, near.count
        self.check.conflicts, self.check.conflict_count = conflicts.items, conflicts.count
        self._find_leaks(near_train)
        self._judge_comparisons()

    def _compare_answers(self, rows: Sequence[_Row], conflicts: Kept[Conflict]) -> None:
        """Pair each row that has not the commonest answer with one that has it."""
        answers = Counter(row.answer for row in rows)
        if len(answers) == 1:
            return
        if not rows[0].options:
            self.check.answers_vary += len(rows)
            return
        commonest = answers.most_common(1)[0][0]
        first = next(row for row in rows if row.answer == commonest)
        for row in rows:
            if row.answer != commonest:
                conflicts.add(self._conflict(first, row, 1.0))

    def _conflict(self, row: _Row, other: _Row, similarity: float) -> Conflict:
        places = self.place(row), self.place(other)
        return Conflict(places, (row.answer, other.answer), round(similarity, 3))

    def _find_leaks(self, near_train: Mapping[tuple[str, int], str]) -> None:
        """Rows of a later split whose prompt stands in an earlier one.

        `near_train` has the place of a train row for each row that is nearly equal to it.
        """
        present = [split for split in SPLITS if split in self.check.splits]
        for later in present[1:]:
            scored = [row for row in self.rows if row.split == later]
            for earlier in present[: present.index(later)]:
                known = {row.key: row for row in reversed(self.rows) if row.split == earlier}
                places = Kept[tuple[str, str]]()
                near = Kept[tuple[str, str]]()
                for row in scored:
                    if row.key in known:
                        places.add((self.place(row), self.place(known[row.key])))
                    elif earlier == "train" and (later, row.number) in near_train:
                        near.add((self.place(row), near_train[later, row.number]))
                if places.count or near.count:
                    self.add_leak(later, self.name, earlier, places, len(scored), near)

    def add_leak(
        self,
        split: str,
        other_task: str,
        other_split: str,
        places: Kept[tuple[str, str]],
        of: int,
        near: Kept[tuple[str, str]] | None = None,
    ) -> None:
        """Report rows that are scored and stand in another split, or nearly so (`near`)."""
        near = near or Kept()
        self.report.leaks.append(
            Leak(
                self.name,
                split,
                other_task,
                other_split,
                places.count,
                of,
                near.count,
                places.items,
            )
        )
        other = "" if other_task == self.name else f" of task {other_task!r}"
        said = f"{places.count} of {of} rows stand in {other_split}{other} too"
        said += f", {near.count} more nearly so" if near.count else ""
        if not places.count:
            said = f"{near.count} of {of} rows are nearly equal to rows of {other_split}"
        shown = [f"{one} = {two}" for one, two in places.items[:3]]
        shown += [f"{one} ~ {two}" for one, two in near.items[:3]]
        fixes = []
        if places.count and other_task == self.name and other_split == "train":
            fixes.append(f"set {self.loader.where}.cleaning.leakage to drop")
        elif places.count and self.recipe.tasks[other_task].role == "auxiliary":
            fixes.append(f"set tasks.{other_task}.cleaning.leakage to drop")
        elif places.count:
            fixes.append("take these rows out of one of them")
        if near.count:
            fix = "change or take out one row of each pair (~)"
            if split not in self.loader.sources():  # it was held out
                fix += (
                    f", or let {self.loader.where}.split.by name a column that related rows share"
                )
            fixes.append(fix)
        self._warn(
            f"{self.loader.where}.{split}",
            f"{said}:" + _lines(shown, places.count + near.count),
            "; ".join(fixes),
        )

    def _judge_comparisons(self) -> None:
        check, where = self.check, self.loader.where
        if check.conflict_count:
            count = check.conflict_count
            shown = [
                f"{c.rows[0]} {c.answers[0]!r}, {c.rows[1]} {c.answers[1]!r}"
                + ("" if c.similarity == 1 else f" (similarity {c.similarity:.2f})")
                for c in check.conflicts[:SHOWN_BAD_ROWS]
            ]
            self._warn(
                where,
                f"{count} {'pair' if count == 1 else 'pairs'} of equal or nearly equal texts with "
                "unlike labels:" + _lines(shown, count),
                "decide which label is right",
            )
        if check.answers_vary:
            self._warn(
                where,
                f"{counted(check.answers_vary, 'row')} with a prompt that another row answers "
                "differently",
                "check that several answers are meant",
            )
        if not check.near_complete:
            self._warn(
                where,
                "so many texts are nearly alike that not all pairs could be compared",
                "look for a text that stands in every row",
            )

    def _count_groups(self) -> None:
        for column, counts in self.groups.items():
            if not self._has_label_set():
                counts = without_labels(counts)
            found = group_check(self.name, column, counts)
            self.report.groups.append(found)
            small = [
                f"{g.value!r} ({counted(g.total.rows, 'row')})" for g in found.groups if g.too_few
            ]
            if small and found.values <= MOST_GROUPS:
                self._warn(
                    self.loader.where,
                    f"column {column!r} has groups of too few rows to be judged: "
                    + ", ".join(small),
                    "add rows of these groups, or merge groups",
                )

    # -- helpers ------------------------------------------------------------------------------

    def place(self, row: _Row) -> str:
        """ "file:line" of a row."""
        return self.sources[row.split].line(row.number)

    def _error(self, error: MtlcoreError) -> None:
        problems = error.problems if isinstance(error, UserError) else [Problem("", str(error))]
        self._add_errors(problems)

    def _add_errors(self, problems: Sequence[Problem]) -> None:
        """Each once: a head that cannot be is met in every split."""
        self.failed = True
        self.report.errors += [one for one in problems if one not in self.report.errors]

    def _warn(self, where: str, message: str, fix: str) -> None:
        self.report.warnings.append(Problem(where, message, fix))


class Kept(Generic[Item]):
    """The first items of a kind, and how many there are."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.count = 0

    def add(self, item: Item) -> None:
        """Count an item and keep it if there is room."""
        self.count += 1
        if len(self.items) < SHOWN:
            self.items.append(item)


def _unlike(some: Sequence[_Row], others: Sequence[_Row]) -> Iterator[tuple[_Row, _Row]]:
    """Pairs of one row for each answer, that chose unlike answers from the same choices."""
    firsts = {row.answer: row for row in reversed(others)}
    for row in {row.answer: row for row in reversed(some)}.values():
        for other in firsts.values():
            if row.options and row.options == other.options and row.answer != other.answer:
                yield row, other


def _alike(one: str, other: str) -> bool:
    """Whether two texts are nearly equal in every column: `food` and `price` are not."""
    lines, others = one.split("\n"), other.split("\n")
    return len(lines) == len(others) and all(
        a == b or jaccard(pieces_of(a), pieces_of(b)) >= NEAR
        for a, b in zip(lines, others, strict=True)
    )


def _changed(value: Any) -> Any:
    """Another value of the same kind; None if there is no simple one."""
    if isinstance(value, str):
        return value + " and more"
    return value + 1 if type(value) in (int, float) else None


def _digest(*texts: str) -> bytes:
    found = blake2b(digest_size=16)
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        found.update(len(data).to_bytes(8, "little") + data)
    return found.digest()


def _lines(shown: Sequence[str], count: int) -> str:
    more = [f"({count} in all)"] if count > len(shown) else []
    return "".join(f"\n  {line}" for line in [*shown, *more])
