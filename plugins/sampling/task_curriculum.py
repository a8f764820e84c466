"""Easy tasks first, harder ones as training goes on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from mtlcore.components import Count, Positive
from mtlcore.errors import UserError, require_tasks
from mtlcore.stages import plan_stages
from mtlcore_plugins.sampling._admitting import Admitting
from mtlcore_plugins.sampling._difficulty import (
    PositiveShare,
    Schedule,
    competence,
    own_losses,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mtlcore.data.tasks import Task
    from mtlcore.errors import Problem
    from mtlcore.recipe import Recipe
    from mtlcore.run import Run


class TaskCurriculum(Admitting):
    """Train the easiest tasks at first, and a share of the tasks that grows to all.

    Competence-based Curriculum Learning for Neural Machine Translation (NAACL 2019),
    https://arxiv.org/abs/1903.09848, equations 7 and 8, with tasks in the place of rows

        sqrt     c(t) = min(1, sqrt(t (1 - c0^2) / D + c0^2))
        linear   c(t) = min(1, t (1 - c0) / D + c0)

    At step t the ceil(c(t) T') easiest of the T' tasks that are trained in the stage get rows,
    mixed by their size as `temperature` does. c0 is `start`, D is `duration` times the steps of the
    whole run. How hard a task is, is the mean loss per labelled token of the model as it is when
    the run begins. Losses of tasks with long answers are often small for the words that are easy to
    guess: give the `order` where you know better.

    order: the tasks from easy to hard; without it they are measured.
    start: the share of the tasks at first (0.1: up to 10 tasks the easiest alone; the paper's is
        0.01, of rows).
    schedule: "sqrt" lets tasks in quickly at first; "linear" at equal distances.
    duration: the share of the steps after which all are in (0.5; the paper takes it from a
        baseline: the steps to 90% of its score).
    rows: so many rows of a task's eval split are measured, drawn by the seed (of the train rows
        where it has none).
    temperature, cap: as of `temperature`; 1.0 is proportional to the train rows.

    State: the steps of the run as planned at its start, and the losses [T] if they were measured.
    Shapes: shares [T].
    """

    name = "task_curriculum"
    paper = (
        "Competence-based Curriculum Learning for Neural Machine Translation (NAACL 2019), "
        "https://arxiv.org/abs/1903.09848"
    )

    def __init__(
        self,
        *,
        order: list[str] | None = None,
        start: PositiveShare = 0.1,
        schedule: Schedule = "sqrt",
        duration: PositiveShare = 0.5,
        rows: Count = 64,
        temperature: Positive = 1.0,
        cap: Count | None = None,
    ) -> None:
        self.order = order
        self.start = start
        self.schedule = schedule
        self.duration = duration
        self.rows = rows
        self.temperature = temperature
        self.cap = cap
        self.steps = 0  # of the whole run; 0 before it begins
        self.losses: torch.Tensor | None = None  # [T]

    def mtlcore_check(self, recipe: Recipe) -> list[Problem]:
        """Refuse an order that is not one of all tasks."""
        if self.order is not None:
            require_tasks(self.order, recipe.tasks, "sampling.order")
            if sorted(self.order) != sorted(recipe.tasks):
                raise UserError(
                    f"sampling.order must name every task once, found {', '.join(self.order)}",
                    where="sampling",
                    fix=f"give an order of {', '.join(recipe.tasks)}",
                )
        return []

    def mtlcore_run_start(self, run: Run) -> None:
        """Measure how hard the tasks are, unless it is known; fix how long the course is."""
        self.steps = self.steps or sum(stage.steps for stage in plan_stages(run))
        if self.order is None and self.losses is None:
            run.note(f"sampling {self.name}: the losses of up to {self.rows} rows per task first")
            losses = [self._loss(run, task) for task in run.tasks]
            self.losses = torch.tensor(losses, dtype=torch.float64)
        names = [task.name for task in self._easiest_first(run.tasks)]
        run.note(
            f"sampling {self.name}: from easy to hard: {', '.join(names)}; all are in after "
            f"{math.ceil(self.duration * self.steps)} steps"
        )

    def _loss(self, run: Run, task: Task) -> float:
        split = task.eval or task.train
        drawn = torch.randperm(len(split), generator=run.generator(0, self.name, task.name))
        rows = [split[place] for place in drawn[: self.rows].tolist()]
        labels = sum(example.label_count for example in rows)
        loss: float = own_losses(run, task, rows).sum().item() / max(1, labels)
        return loss

    def _easiest_first(self, tasks: list[Task]) -> list[Task]:
        order, losses = self.order, self.losses
        if order is not None:
            return sorted(tasks, key=lambda task: order.index(task.name))
        assert losses is not None
        return sorted(tasks, key=lambda task: float(losses[task.index]))

    def admitted(self, run: Run, step: int, trained: list[Task]) -> list[Task]:
        """The easiest; all of them before the run begins."""
        if not self.steps:
            return trained
        progress = step / (self.duration * self.steps)
        share = competence(progress, self.start, self.schedule)
        return self._easiest_first(trained)[: math.ceil(share * len(trained) - 1e-9)]

    def state_dict(self) -> dict[str, Any]:
        """The steps, and the losses [T] if they are the difficulty."""
        measured = {} if self.losses is None else {"losses": self.losses.clone()}
        return {"steps": self.steps, **measured} if self.steps else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.steps = int(state.get("steps", 0))
        losses = state.get("losses")
        self.losses = None if losses is None else losses.clone()
