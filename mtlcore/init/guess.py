"""How the rows of a task are read: every format guesses, and the guesses are tried on the rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mtlcore.components import Format, FormatGuess
from mtlcore.data.example import IGNORED, RowError
from mtlcore.data.fields import kind_of
from mtlcore.data.lengths import needed_length
from mtlcore.data.loader import Part, TaskLoader
from mtlcore.data.sources import load_rows
from mtlcore.errors import MtlcoreError, Problem, RecipeError, UserError
from mtlcore.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mtlcore.data.sources import Rows
    from mtlcore.init.files import TaskFiles
    from mtlcore.plugins import PluginManager

TRIED = 200
"""Rows that a guess is tried on."""
READABLE = 0.5
"""A guess that fewer of the rows can be read by is none."""
LONGEST = 2**20
"""A `max_length` that cuts nothing."""


@dataclass
class Trial:
    """A format's guess, and what became of the rows that it was tried on."""

    format: str
    guess: FormatGuess
    tried: int = 0
    lengths: list[int] = field(default_factory=list)
    """Tokens of each row that could be read."""
    answers: list[int] = field(default_factory=list)
    """Tokens of each answer that is generated."""
    columns: list[str] = field(default_factory=list)
    """The columns of the file that the format asks for."""
    problem: str = ""
    """Why the first bad row is bad."""

    @property
    def score(self) -> float:
        """That of the guess, times the share of the rows that it reads."""
        return self.guess.score * len(self.lengths) / self.tried if self.tried else 0.0

    def spec(self) -> str | dict[str, Any]:
        """The key `format` of the recipe."""
        return {"name": self.format, **self.guess.options} if self.guess.options else self.format


@dataclass
class TaskGuess:
    """How a task is read: the best guess, and the others that would do too.

    Without one, `best` is None, `problem` says why and `fix` what helps. `split` are the shares
    that are held out of its train rows.
    """

    files: TaskFiles
    rows: dict[str, int]
    columns: tuple[str, ...]
    best: Trial | None = None
    others: list[Trial] = field(default_factory=list)
    split: dict[str, float] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)
    problem: str = ""
    fix: str = ""


class Guesser:
    """Guesses tasks with the formats of some plugins; `tokenizer` is what they are tried with."""

    def __init__(self, plugins: PluginManager, tokenizer: PreTrainedTokenizerBase) -> None:
        self.plugins = plugins
        self.tokenizer = tokenizer

    def task(self, files: TaskFiles) -> TaskGuess:
        """Read the files of a task and guess; UserError if one of them cannot be read."""
        read: dict[str, Rows] = {}
        problems: list[Problem] = []
        for split, source in files.sources.items():
            try:
                read[split] = load_rows(source, files.name, f"tasks.{files.name}.{split}")
            except UserError as error:
                problems += error.problems
        if problems:
            raise RecipeError(problems)
        found = TaskGuess(
            files=files,
            rows={split: len(rows) for split, rows in read.items()},
            columns=read["train"].columns,
            bad=[place for rows in read.values() for place in rows.bad],
        )
        if empty := [split for split, rows in read.items() if not len(rows)]:
            rows = read[empty[0]]
            found.problem, found.fix = f"{rows.path} has no row", "name a file that has rows"
            if rows.bad:
                found.problem += f" that can be read, the first: {rows.bad[0]}"
                found.fix = "mend these rows"
            return found
        trials = [self._try(trial, files, read) for trial in self._guesses(read)]
        trials.sort(key=lambda trial: -trial.score)
        readable = [t for t in trials if t.tried and len(t.lengths) >= READABLE * t.tried]
        if readable:
            found.best, *found.others = readable
            found.split = held_out(files, len(read["train"]))
        else:
            why = [f"as {trial.format}: {trial.problem}" for trial in trials]
            first = read["train"][0]
            kinds = [f"{name!r} ({kind_of(first.get(name))})" for name in found.columns]
            found.problem = f"no format reads its columns {', '.join(kinds)}"
            found.problem += f" ({'; '.join(why)})" if why else ""
            found.fix = (
                "rename its columns (docs/data.md lists those of each format), or write the recipe "
                "by hand"
            )
        return found

    def _guesses(self, read: Mapping[str, Rows]) -> Iterator[Trial]:
        rows = [row for rows in read.values() for row in rows]
        for (kind, name), info in sorted(self.plugins.components().items()):
            if kind == Format.kind and issubclass(info.cls, Format):
                guess = info.cls.guess(rows)
                if guess is not None:
                    yield Trial(name, guess)

    def _try(self, trial: Trial, files: TaskFiles, read: Mapping[str, Rows]) -> Trial:
        """Make examples of some rows of every split."""
        try:
            loader = self._loader(trial, files)
            train = read["train"]
            loader.prepare(Part(train, range(len(train)), []))
        except UserError as error:
            trial.problem = error.problem.message
            return trial
        trial.columns = [trial.guess.columns.get(c, c) for c in loader.format.columns]
        for rows in read.values():
            for number in spread(range(len(rows)), TRIED):
                trial.tried += 1
                try:
                    example = loader.example(rows, number)
                except (RowError, MtlcoreError) as error:
                    message = str(error)
                    if isinstance(error, UserError):
                        message = error.problem.message
                    trial.problem = trial.problem or f"{rows.line(number)}: {message}"
                    continue
                trial.lengths.append(needed_length(example))
                if example.prompt_length and not example.options:
                    trial.answers.append(sum(label != IGNORED for label in example.labels))
        return trial

    def _loader(self, trial: Trial, files: TaskFiles) -> TaskLoader:
        task = {
            **{name: source.model_dump() for name, source in files.sources.items()},
            "format": {"name": trial.format, "options": dict(trial.guess.options)},
            "columns": dict(trial.guess.columns),
        }
        recipe = Recipe.model_validate(
            {
                "model": {"name_or_path": "none"},
                "tasks": {files.name: task},
                "training": {"max_length": LONGEST},
            }
        )
        return TaskLoader(recipe, files.name, self.tokenizer, self.plugins)


def held_out(files: TaskFiles, count: int) -> dict[str, float]:
    """The shares of `count` train rows for the splits that have no file; few rows give fewer."""
    shares = {split: 0.1 for split in ("eval", "test") if split not in files.sources}
    if count < 20:
        shares = dict.fromkeys(shares, 0.0)
        if "eval" in shares and count >= 4:
            shares["eval"] = 0.2
    return shares


def spread(rows: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the rows, from all over."""
    if len(rows) <= most:
        return list(rows)
    return [rows[place * len(rows) // most] for place in range(most)]
