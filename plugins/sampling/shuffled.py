"""The rows of a task in an order that is drawn anew each epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mtlcore.components import RowChooser

if TYPE_CHECKING:
    from mtlcore.data.tasks import Task
    from mtlcore.run import Run


class Shuffled(RowChooser):
    """Take every row once per epoch of its task, in an order drawn anew for each epoch.

    Why Random Reshuffling Beats Stochastic Gradient Descent (Mathematical Programming 2021),
    https://arxiv.org/abs/1510.08560

        row k of task t, counted from its first one:  order(seed, t, k // n_t)[k % n_t]

    A pure function of the seed, the task, the epoch and the place, which is `run.rows_drawn`; so
    a resumed run goes on exactly, and there is no state. A step may cross epochs, or hold several.
    """

    name = "shuffled"
    paper = (
        "Why Random Reshuffling Beats Stochastic Gradient Descent (Mathematical Programming 2021), "
        "https://arxiv.org/abs/1510.08560"
    )

    def __init__(self) -> None:
        self._orders: dict[str, tuple[tuple[int, int], list[int]]] = {}  # of the last epoch asked

    def choose(self, run: Run, step: int, task: Task, count: int) -> list[int]:
        """The next `count` rows."""
        place = run.rows_drawn[task.index]
        rows: list[int] = []
        while len(rows) < count:
            epoch, start = divmod(place + len(rows), len(task.train))
            rows += self._order(run, task, epoch)[start : start + count - len(rows)]
        return rows

    def _order(self, run: Run, task: Task, epoch: int) -> list[int]:
        key = (epoch, len(task.train))
        kept = self._orders.get(task.name)
        if kept is None or kept[0] != key:
            generator = run.generator(epoch, "rows", task.name)
            order: list[int] = torch.randperm(len(task.train), generator=generator).tolist()
            kept = self._orders[task.name] = (key, order)
        return kept[1]
