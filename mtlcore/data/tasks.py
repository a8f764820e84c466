"""Tasks with their data: what the rest of the framework holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from mtlcore.data.loader import Learned, TaskLoader
from mtlcore.data.splits import SPLITS, Counts, Split
from mtlcore.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mtlcore.components import Format
    from mtlcore.plugins import PluginManager
    from mtlcore.recipe import Recipe, TaskRecipe

__all__ = ["Counts", "Split", "Task", "load_tasks"]


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
    learned: Mapping[str, Learned] = MappingProxyType({}),
) -> list[Task]:
    """Read the tasks of a recipe, in its order, with the splits asked for.

    With no splits, no file is read. Else the train rows are always read, because held-out rows and
    label sets come from them; examples are made for `splits` only. `learned`, by task: what the
    formats of a trained run took from its train rows.

    Raises UserError if rows are bad and `on_bad_row` is error, or if a split has no usable row.
    """
    unknown = set(splits) - set(SPLITS)
    if unknown:
        raise UserError(f"unknown splits {sorted(unknown)}", fix=f"known: {', '.join(SPLITS)}")
    tasks: list[Task] = []
    for index, name in enumerate(recipe.tasks):
        loader = TaskLoader(recipe, name, tokenizer, plugins, learned.get(name))
        read = loader.load(splits) if splits else {}
        train = read.get("train") or Split.empty("train")
        tasks.append(
            Task(
                name=name,
                index=index,
                recipe=recipe.tasks[name],
                format=loader.format,
                train=train,
                eval=read.get("eval"),
                test=read.get("test"),
                notes=loader.notes,
            )
        )
    _note_shared_rows(tasks)
    return tasks


def _note_shared_rows(tasks: Sequence[Task]) -> None:
    """Say where a row is scored by one task and trained on by it or another: that flatters."""
    trained = {task.name: {e.row for e in task.train} for task in tasks}
    for task in tasks:
        for other in tasks:
            for name in ("eval", "test"):
                split = task.splits().get(name)
                same_rows = split and split.source_fingerprint == other.train.source_fingerprint
                if split is None or not same_rows:
                    continue
                count = sum(example.row in trained[other.name] for example in split)
                if count:
                    task.notes.append(
                        f"task {task.name!r}: {count} of its {len(split)} {name} rows are train "
                        f"rows of task {other.name!r} ({split.path}): give both the same split "
                        "options, or their own files"
                    )
