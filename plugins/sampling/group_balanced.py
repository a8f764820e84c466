"""Every group of people drawn as often as any other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mtlcore.components import Count
from mtlcore.errors import UserError
from mtlcore_plugins.sampling._rows import (
    Groups,
    Passes,
    PreparedChooser,
    draw_in_turn,
    group_by_column,
    has_labels,
    note_groups,
    sizes_in_words,
    where,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtlcore.data.tasks import Task
    from mtlcore.errors import Problem
    from mtlcore.run import Run


class GroupBalanced(PreparedChooser[Groups]):
    """Take every group of a column equally often, so that no group's rows outweigh another's.

    Simple Data Balancing Achieves Competitive Worst-Group-Accuracy (CLeaR 2022),
    https://arxiv.org/abs/2110.14503: groups drawn alike (RWG), p_g = 1 / G for G groups. There a
    group is an attribute with a class; here it is the attribute alone.

    It is done without chance: G draws in a row, counted from the task's first one, hold each group
    once, in an order drawn anew for each such round. Within a group the labels keep their shares:
    one pass over its rows takes each once, and spreads each label's rows evenly, row i of the n_c
    rows of label c at place (i + u_c) / n_c of the pass, one u_c in [0, 1) drawn per pass and c.
    A pure function of the seed, the task and `run.rows_drawn`: a resumed run goes on exactly.

    column: the column that holds the groups (1, 1.0 and "1" are one).
    min_group: fewer rows in a group are an error: balanced, a handful of rows would be learned by
        heart in place of the group (10).

    It changes how often the groups are seen, not what their rows say: audit before and after.
    Errors: no such column, rows without a value in it, a group below min_group.
    """

    name = "group_balanced"
    paper = (
        "Simple Data Balancing Achieves Competitive Worst-Group-Accuracy (CLeaR 2022), "
        "https://arxiv.org/abs/2110.14503"
    )

    def __init__(self, *, column: str, min_group: Count = 10) -> None:
        super().__init__()
        self.column = column
        self.min_group = min_group
        self._passes: dict[str, Passes] = {}

    def require(self, task: Task) -> list[Problem]:
        """Refuse rows without a group, and groups that are too small."""
        groups = group_by_column(task, self.column)
        small = {name: ids for name, ids in groups.items() if len(ids) < self.min_group}
        if small:
            raise UserError(
                f"column {self.column!r} has groups of fewer than {self.min_group} rows in "
                f"{task.train.path}: {sizes_in_words(small)} (of {len(groups)} groups, "
                f"{len(task.train)} rows)",
                where=where(task),
                fix="add rows of these groups, merge groups in the data, or set min_group to "
                f"{min(map(len, small.values()))} and have their rows repeated often",
            )
        return []

    def prepare(self, run: Run, task: Task) -> Groups:
        """The rows of each group."""
        groups = group_by_column(task, self.column)
        note_groups(run, self, task, groups, f"column {self.column!r}")
        labels = [example.label for example in task.train] if has_labels(task) else None
        self._passes[task.name] = Passes(
            lambda ids, generator: spread(ids, labels and [labels[i] for i in ids], generator)
        )
        return groups

    def choose(self, run: Run, step: int, task: Task, count: int) -> list[int]:
        """The next `count` rows."""
        groups = self.prepared(run, task)
        return draw_in_turn(self._passes[task.name], run, task, groups, count)


def spread(
    ids: Sequence[int], classes: Sequence[int | None] | None, generator: torch.Generator
) -> list[int]:
    """The ids in a random order in which the rows of each class stand at even distances."""
    order: list[int] = torch.randperm(len(ids), generator=generator).tolist()
    if classes is None:
        return [ids[at] for at in order]
    members: dict[int | None, list[int]] = {}
    for at in order:
        members.setdefault(classes[at], []).append(at)
    starts = torch.rand(len(members), generator=generator, dtype=torch.float64).tolist()
    places = {
        at: (number + start) / len(mine)
        for mine, start in zip(members.values(), starts, strict=True)
        for number, at in enumerate(mine)
    }
    return [ids[at] for at in sorted(places, key=lambda at: (places[at], at))]
