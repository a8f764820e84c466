"""Rows as the model gets them: decoded, with what is trained, what was cut and the options."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mtlcore.data.example import IGNORED, Example, RowError
from mtlcore.data.lengths import cut_place, fit, needed_length
from mtlcore.data.loader import Part, TaskLoader
from mtlcore.data.special import special_ids
from mtlcore.errors import UserError, require_tasks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mtlcore.plugins import PluginManager
    from mtlcore.recipe import Recipe

Kind = Literal["given", "trained", "cut"]


@dataclass(frozen=True)
class Piece:
    """Tokens that follow each other and have one fate, decoded; a special token stands alone.

    "given": read, and not learned. "trained": learned. "cut": taken away by truncation.
    """

    kind: Kind
    text: str
    tokens: int
    special: bool = False


@dataclass(frozen=True)
class Option:
    """An answer to choose from; `tokens` is 0 where a head answers."""

    text: str
    right: bool
    tokens: int


@dataclass(frozen=True)
class RowPreview:
    """One row. `unused` says why the model does not get it; then nothing follows but pieces.

    `tokens` are those that the model gets, `trained` those of them that are learned, `cut` those
    that truncation took away. `head` says that the head of the task answers with an option.
    """

    task: str
    split: str
    row: int
    place: str
    tokens: int = 0
    trained: int = 0
    cut: int = 0
    head: bool = False
    pieces: tuple[Piece, ...] = ()
    options: tuple[Option, ...] = ()
    input_ids: tuple[int, ...] = ()
    labels: tuple[int, ...] = ()
    unused: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Preview:
    """Some rows of a split, and what the reader of the recipe and the data had to say."""

    rows: tuple[RowPreview, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"rows": [row.to_json() for row in self.rows], "notes": list(self.notes)}


def preview_rows(
    recipe: str | Path,
    overrides: Iterable[str] = (),
    *,
    tasks: Sequence[str] | None = None,
    split: str = "train",
    rows: int = 3,
) -> Preview:
    """The first `rows` rows of a split of all or some tasks; loads the tokenizer alone.

    A row that cannot be used is shown with the reason. UserError if the recipe or a file cannot be
    read, or if none of the tasks has the split.
    """
    from mtlcore.plugins import PluginManager
    from mtlcore.recipe_file import read_recipe
    from mtlcore.run import load_tokenizer

    read = read_recipe(recipe, overrides)
    loaded = read.recipe
    plugins = PluginManager.load(local=loaded.plugins.load, disable=loaded.plugins.disable)
    names = chosen_tasks(loaded, tasks)
    with read.locating_errors():
        tokenizer = load_tokenizer(loaded)
        readers = [RowReader(loaded, name, tokenizer, plugins, split) for name in names]
    found = [reader for reader in readers if reader.part is not None]
    if not found:
        raise UserError(
            f"no {split} rows in {', '.join(names)}",
            where=f"--split {split}",
            fix="choose another split, or name a file or a share for it in the recipe",
        )
    notes = [*read.notes, *(note for reader in readers for note in reader.notes)]
    with read.locating_errors():
        shown = [reader.row(number) for reader in found for number in reader.numbers[:rows]]
    return Preview(tuple(shown), tuple(notes))


def chosen_tasks(recipe: Recipe, tasks: Sequence[str] | None) -> list[str]:
    """The tasks named, in the order of the recipe; all of them without any."""
    require_tasks(tasks or (), recipe.tasks, "--task")
    return [name for name in recipe.tasks if not tasks or name in tasks]


class RowReader:
    """The rows of one split of a task; `part` is None if the task has no such split."""

    def __init__(
        self,
        recipe: Recipe,
        task: str,
        tokenizer: PreTrainedTokenizerBase,
        plugins: PluginManager,
        split: str = "train",
    ) -> None:
        self.split = split
        self.tokenizer = tokenizer
        self.loader = TaskLoader(recipe, task, tokenizer, plugins)
        self.part: Part | None = self.loader.parts((split,)).get(split)
        self.notes = list(self.loader.notes)
        if self.part is None:
            self.notes.append(f"task {task!r} has no {split} rows")

    @property
    def numbers(self) -> Sequence[int]:
        """The rows of the split, as numbers in their file."""
        return self.part.numbers if self.part is not None else ()

    def row(self, number: int) -> RowPreview:
        """One row by its number in the file."""
        assert self.part is not None
        source, loader = self.part.source, self.loader
        found = RowPreview(loader.name, self.split, number, source.line(number))
        try:
            example = loader.example(source, number)
        except RowError as error:
            return _replaced(found, unused=f"bad: {error}")
        policy, limit = loader.recipe.overlong, loader.max_length
        fitted = fit(example, limit, "drop" if policy == "error" else policy, self.tokenizer)
        if fitted is not None:
            return _filled(found, fitted, example, limit, self.tokenizer)
        why = "its answer leaves no room for the prompt" if policy == "truncate" else ""
        why = why or {"drop": "dropped", "error": "an error"}[policy] + f" by overlong: {policy}"
        reason = f"{needed_length(example)} tokens, training.max_length is {limit}: {why}"
        pieces = tuple(_pieces(example.input_ids, ["cut"] * len(example.input_ids), self.tokenizer))
        return _replaced(found, unused=reason, pieces=pieces, cut=len(example.input_ids))


def row_of(
    example: Example, split: str, place: str, tokenizer: PreTrainedTokenizerBase
) -> RowPreview:
    """An example of which only what the model gets is known."""
    found = RowPreview(example.task, split, example.row, place)
    return _filled(found, example, example, len(example.input_ids), tokenizer)


def _filled(
    found: RowPreview,
    fitted: Example,
    whole: Example,
    max_length: int,
    tokenizer: PreTrainedTokenizerBase,
) -> RowPreview:
    """What becomes of the tokens of `whole`, of which `fitted` are left."""
    fates: list[Kind] = [
        "trained" if place and label != IGNORED else "given"
        for place, label in enumerate(fitted.labels)
    ]
    trained, cut = fates.count("trained"), len(whole.input_ids) - len(fitted.input_ids)
    if cut:
        at = cut_place(whole, max_length, tokenizer)
        fates[at:at] = ["cut"] * cut
    return _replaced(
        found,
        tokens=len(fitted.input_ids),
        trained=trained,
        cut=cut,
        head=fitted.head,
        pieces=tuple(_pieces(whole.input_ids, fates, tokenizer)),
        options=tuple(_options(fitted)),
        input_ids=fitted.input_ids,
        labels=fitted.labels,
    )


def _options(example: Example) -> Iterator[Option]:
    for number, text in enumerate(example.options):
        tokens = len(example.option_ids[number]) if example.option_ids else 0
        yield Option(text, number == example.label, tokens)


def _pieces(
    ids: Sequence[int], fates: Sequence[Kind], tokenizer: PreTrainedTokenizerBase
) -> Iterator[Piece]:
    special = special_ids(tokenizer)
    # A special token is a stretch of its own, so its place is part of the key.
    keys = [
        (fate, place if number in special else -1)
        for place, (number, fate) in enumerate(zip(ids, fates, strict=True))
    ]
    start = 0
    for (fate, place), group in groupby(keys):
        stop = start + len(list(group))
        text = _decoded(tokenizer, ids, start, stop)
        yield Piece(fate, text, stop - start, special=place >= 0)
        start = stop


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], start: int, stop: int) -> str:
    """The text of tokens as they follow those before: by itself, a first space may get lost."""
    before, through = (str(tokenizer.decode(list(ids[:end]))) for end in (start, stop))
    if through.startswith(before):
        return through[len(before) :]
    return str(tokenizer.decode(list(ids[start:stop])))


def _replaced(found: RowPreview, **values: Any) -> RowPreview:
    return RowPreview(**{**vars(found), **values})
