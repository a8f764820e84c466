"""What the row choosers share: groups of rows, and passes over them in orders drawn anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

from mtlcore.components import RowChooser
from mtlcore.data.fields import kind_of
from mtlcore.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from mtlcore.data.tasks import Task
    from mtlcore.errors import Problem
    from mtlcore.recipe import Recipe
    from mtlcore.run import Run

Groups = Mapping[str, Sequence[int]]
"""Row ids by the name of their group, no group empty, in a fixed order."""
Arrange = Callable[[Sequence[int], torch.Generator], list[int]]
"""How one pass orders its row ids."""
Prepared = TypeVar("Prepared")


class PreparedChooser(RowChooser, Generic[Prepared]):
    """A chooser that looks at all rows of a task before the first step.

    Implement `prepare`, and `require` for what needs no run.
    """

    def __init__(self) -> None:
        self._prepared: dict[str, Prepared] = {}

    def require(self, task: Task) -> list[Problem]:
        """Refuse rows that do not fit; the result are warnings."""
        raise NotImplementedError(f"rows {self.name!r} must implement `require`")

    def prepare(self, run: Run, task: Task) -> Prepared:
        """What `choose` needs to know of a task's rows."""
        raise NotImplementedError(f"rows {self.name!r} must implement `prepare`")

    def prepared(self, run: Run, task: Task) -> Prepared:
        """What `prepare` found, once."""
        if task.name not in self._prepared:
            self._prepared[task.name] = self.prepare(run, task)
        return self._prepared[task.name]

    def mtlcore_check(self, recipe: Recipe, tasks: Sequence[Task]) -> list[Problem]:
        """Refuse tasks that are trained with rows that do not fit."""
        return [problem for task in self._trained(recipe, tasks) for problem in self.require(task)]

    def mtlcore_run_start(self, run: Run) -> None:
        """Look at the rows of every task that is trained."""
        for task in self._trained(run.recipe, run.tasks):
            self.prepared(run, task)

    def _trained(self, recipe: Recipe, tasks: Sequence[Task]) -> list[Task]:
        """Its tasks that some stage trains."""
        names = {name for stage in recipe.stages for name in stage.tasks} or {*self.tasks}
        return [task for task in tasks if task.name in {*self.tasks} & names]


class Passes:
    """Passes over sets of row ids, each pass in an order drawn anew.

        row k of a set of n ids, counted from its first one:  order(seed, key, k // n)[k % n]

    A pure function of the seed, the set's key and k: there is nothing to save.
    """

    def __init__(self, arrange: Arrange | None = None) -> None:
        self._arrange = arrange or shuffle
        self._orders: dict[tuple[str, ...], tuple[int, list[int]]] = {}  # of the last pass asked

    def row(self, run: Run, ids: Sequence[int], place: int, *key: str) -> int:
        """The row at one place."""
        number, at = divmod(place, len(ids))
        return self.order(run, ids, number, *key)[at]

    def order(self, run: Run, ids: Sequence[int], number: int, *key: str) -> list[int]:
        """The ids in the order of one pass."""
        kept = self._orders.get(key)
        if kept is None or kept[0] != number:
            generator = run.generator(number, "rows", *key)
            kept = self._orders[key] = (number, self._arrange(ids, generator))
        return kept[1]


def shuffle(ids: Sequence[int], generator: torch.Generator) -> list[int]:
    """The ids in a random order."""
    return [ids[place] for place in torch.randperm(len(ids), generator=generator).tolist()]


def draw_in_turn(passes: Passes, run: Run, task: Task, groups: Groups, count: int) -> list[int]:
    """The next `count` rows of a task, every group equally often.

    Draws go in rounds of one row per group, the groups in an order drawn anew each round; the row
    of round m is the group's m-th in its own passes.
    """
    names, rows = list(groups), []
    for place in range(run.rows_drawn[task.index], run.rows_drawn[task.index] + count):
        number, at = divmod(place, len(names))
        turn = passes.order(run, range(len(names)), number, task.name)[at]
        rows.append(passes.row(run, groups[names[turn]], number, task.name, names[turn]))
    return rows


# -- groups ------------------------------------------------------------------------------------


def group_by_label(task: Task) -> dict[str, list[int]]:
    """The rows of each label; where rows bring their own answers, of each place among them."""
    same_words = len({example.options for example in task.train}) == 1
    keys: list[str] = []
    for example in task.train:
        if example.label is None:
            raise UserError(
                f"row {example.row} of {task.train.path} has no label to group by",
                where=where(task),
                fix=f"name a column of the rows; theirs are: {', '.join(columns_of(task))}",
            )
        keys.append(example.options[example.label] if same_words else f"answer {example.label:03d}")
    return _grouped(keys)


def group_by_column(task: Task, column: str) -> dict[str, list[int]]:
    """The rows of each value of a column; 1, 1.0 and "1" are one value."""
    values = [example.fields.get(column) for example in task.train]
    if not has_column(task, column):
        raise UserError(
            f"the rows of {task.train.path} have no column {column!r}",
            where=where(task),
            fix=did_you_mean(column, columns_of(task)),
        )
    keys = [_key(value) for value in values]
    bad = [place for place, key in enumerate(keys) if key is None]
    if bad:
        example = task.train[bad[0]]
        raise UserError(
            f"column {column!r} has no text or number to group by in {len(bad)} of "
            f"{len(keys)} rows of {task.train.path}; row {example.row} has "
            f"{kind_of(values[bad[0]]) if column in example.fields else 'no such column'}",
            where=where(task),
            fix="fill the column in, give the unknown a value of their own, or remove the rows",
        )
    return _grouped([key for key in keys if key is not None])


def has_labels(task: Task) -> bool:
    """Whether the rows have labels of the format."""
    return any(example.label is not None for example in task.train)


def has_column(task: Task, column: str) -> bool:
    """Whether some row of the task has the column, by its name in the file or in the format."""
    return any(column in example.fields for example in task.train)


def columns_of(task: Task) -> list[str]:
    """The columns that some row of the task has in its file."""
    found = {column for example in task.train for column in example.fields}
    return sorted(task.recipe.columns_of_files(found))


def sizes_in_words(groups: Groups, limit: int = 12) -> str:
    """ "3 of a, 40 of b", the smallest first."""
    ordered = sorted(groups, key=lambda name: (len(groups[name]), name))
    said = [f"{len(groups[name])} of {name!r}" for name in ordered[:limit]]
    rest = len(ordered) - limit
    return ", ".join(said) + (f" and {rest} larger" if rest > 0 else "")


def note_groups(run: Run, chooser: RowChooser, task: Task, groups: Groups, what: str) -> None:
    """Say what was found, and whether choosing by it can have an effect."""
    message = (
        f"{task.name}: rows {chooser.name} by {what}: {len(groups)} groups, "
        f"{sizes_in_words(groups)}"
    )
    if len(groups) == 1:
        message = f"warning: {message}; one group alone is the same as plain shuffling"
    elif len(groups) == len(task.train) > 2:
        message = f"warning: {message}; a group for every row is the same as plain shuffling"
    run.note(message)


def where(task: Task) -> str:
    """The key of a recipe that names a task's chooser."""
    return f"tasks.{task.name}.rows"


def _grouped(keys: Sequence[str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {key: [] for key in sorted(set(keys))}
    for row, key in enumerate(keys):
        groups[key].append(row)
    return groups


def _key(value: Any) -> str | None:
    """One spelling of a value, whatever type the file gives it; None for what is no value."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int | float) or value != value:
        return None
    return str(value).strip() or None
