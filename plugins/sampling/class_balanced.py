"""Every class of a task drawn as often as any other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtlcore.errors import Problem
from mtlcore_plugins.sampling._rows import (
    Groups,
    Passes,
    PreparedChooser,
    draw_in_turn,
    group_by_column,
    group_by_label,
    note_groups,
    where,
)

if TYPE_CHECKING:
    from mtlcore.data.tasks import Task
    from mtlcore.run import Run


SHOWN = 5
"""So many classes are named in a warning."""


class ClassBalanced(PreparedChooser[Groups]):
    """Take every class equally often, the rows of a class in an order drawn anew each pass.

    Decoupling Representation and Classifier for Long-Tailed Recognition (ICLR 2020),
    https://arxiv.org/abs/1910.09217, section 3: class-balanced sampling, p_c = 1 / C for C classes.

    It is done without chance: C draws in a row, counted from the task's first one, hold each class
    once, in an order drawn anew for each such round; round m takes row m % n_c of pass m // n_c
    over the n_c rows of class c. So the rows of a small class are repeated more often, and none is
    left out.
    A pure function of the seed, the task and `run.rows_drawn`: a resumed run goes on exactly.

    column: a column whose values are the classes (1, 1.0 and "1" are one). Without it they are the
        labels of the format; of multiple_choice, the place of the right answer.

    Errors: a row without a label, or without a value in the column.
    """

    name = "class_balanced"
    paper = (
        "Decoupling Representation and Classifier for Long-Tailed Recognition (ICLR 2020), "
        "https://arxiv.org/abs/1910.09217"
    )

    def __init__(self, *, column: str | None = None) -> None:
        super().__init__()
        self.column = column
        self._passes = Passes()

    def require(self, task: Task) -> list[Problem]:
        """Refuse rows without a class; warn of a class that has one row, drawn over and over."""
        classes = self._classes(task)
        single = [name for name, ids in classes.items() if len(ids) == 1]
        more = len(task.train) / len(classes)  # times its share of the rows, 1 / n
        if not single or len(single) == len(classes):
            return []
        names = ", ".join(map(repr, single[:SHOWN])) + " ..." * (len(single) > SHOWN)
        return [
            Problem(
                where(task),
                f"task {task.name!r} has a single row of {names}: {self.name} draws it once in "
                f"{len(classes)} rows, {more:.1f} times as often as its share of the rows",
                "add rows of it, leave it out, or use rows: shuffled",
            )
        ]

    def prepare(self, run: Run, task: Task) -> Groups:
        """The rows of each class."""
        classes = self._classes(task)
        what = "label" if self.column is None else f"column {self.column!r}"
        note_groups(run, self, task, classes, what)
        return classes

    def _classes(self, task: Task) -> dict[str, list[int]]:
        return group_by_label(task) if self.column is None else group_by_column(task, self.column)

    def choose(self, run: Run, step: int, task: Task, count: int) -> list[int]:
        """The next `count` rows."""
        return draw_in_turn(self._passes, run, task, self.prepared(run, task), count)
