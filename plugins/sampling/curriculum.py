"""Easy rows first, harder ones as the task's training goes on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mtlcore.components import rows_per_step
from mtlcore.data.fields import kind_of
from mtlcore.errors import UserError, did_you_mean
from mtlcore.stages import expected_shares, plan_stages
from mtlcore_plugins.sampling._difficulty import (
    PositiveShare,
    Schedule,
    competence,
    own_losses,
)
from mtlcore_plugins.sampling._rows import (
    Passes,
    PreparedChooser,
    columns_of,
    has_column,
    where,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from mtlcore.data.tasks import Task
    from mtlcore.errors import Problem
    from mtlcore.run import Run


@dataclass
class Course:
    """The way through a task's rows: the easiest first, all of them after `draws` draws."""

    ranks: list[int]
    """[n] each row's place by difficulty, from 0; ties in an order drawn once."""
    draws: int
    place: tuple[int, int, int] = (0, 0, 0)
    """Where the last draw left off: draws so far, pass, rows of the pass looked at."""


class Curriculum(PreparedChooser[Course]):
    """Draw from the easiest rows at first, and from a share of the rows that grows to all.

    Competence-based Curriculum Learning for Neural Machine Translation (NAACL 2019),
    https://arxiv.org/abs/1903.09848, equations 7 and 8

        sqrt     c(t) = min(1, sqrt(t (1 - c0^2) / T + c0^2))
        linear   c(t) = min(1, t (1 - c0) / T + c0)

    t counts the draws of this task (rows, not steps), c0 is `start`, T is `duration` times the
    draws that the task is expected to get in the whole run. Draw t is one of the ceil(c(t) n)
    easiest of the n rows, all of them alike: a pass goes once through all rows in an order drawn
    anew, and leaves out those that are too hard at their moment. From t = T on that is plain
    shuffling. (The paper draws each batch by itself; passes repeat no row before its time.)

    difficulty: "length" is the number of tokens; "loss" the model's own mean loss per labelled
        token, with the weights at the start of the run (one forward pass over the train rows);
        any other word is a column of numbers, where more is harder. Rows equally hard come in an
        order drawn once, since they cannot all be let in at c0.
    start: the share of the rows that is drawn from at first (0.1; the paper's is 0.01, of millions
        of rows).
    schedule: "sqrt" lets rows in quickly at first; each new row is drawn about as often.
    duration: the share of the task's draws after which all rows are in (0.5; the paper takes it
        from a baseline: the steps to 90% of its score).

    State: T, and the losses [n] if they are the difficulty; else a pure function of the seed, the
    task and `run.rows_drawn`.
    Errors: no such column, a value that is no number.
    """

    name = "curriculum"
    paper = (
        "Competence-based Curriculum Learning for Neural Machine Translation (NAACL 2019), "
        "https://arxiv.org/abs/1903.09848"
    )

    def __init__(
        self,
        *,
        difficulty: str = "length",
        start: PositiveShare = 0.1,
        schedule: Schedule = "sqrt",
        duration: PositiveShare = 0.5,
    ) -> None:
        super().__init__()
        self.difficulty = difficulty
        self.start = start
        self.schedule = schedule
        self.duration = duration
        self._passes = Passes()
        self._losses: dict[str, torch.Tensor] = {}  # task -> loss of each train row [n]
        self._draws: dict[str, int] = {}  # task -> T

    def require(self, task: Task) -> list[Problem]:
        """Refuse a column that does not hold numbers."""
        if self.difficulty not in ("length", "loss"):
            numbers_of(task, self.difficulty)
        return []

    def prepare(self, run: Run, task: Task) -> Course:
        """Rank the rows by difficulty, and fix how long the course is."""
        if task.name not in self._draws:
            self._draws[task.name] = max(1, math.ceil(self.duration * expected_draws(run, task)))
        values = self._difficulties(run, task)  # [n]
        ties = Passes().order(run, range(len(values)), 0, task.name, "ties")
        easiest_first = sorted(ties, key=values.__getitem__)  # stable: ties stay in drawn order
        ranks = [0] * len(values)
        for place, row in enumerate(easiest_first):
            ranks[row] = place
        draws = self._draws[task.name]
        run.note(
            f"{task.name}: rows {self.name} by {self.difficulty}: from the easiest "
            f"{self.allowed(0, len(ranks), draws)} of {len(ranks)} rows to all after {draws} draws"
            + ("; warning: all are equally hard" if len({*values}) == 1 < len(values) else "")
        )
        return Course(ranks, draws)

    def competence(self, draw: int, draws: int) -> float:
        """The share c(t) of the rows that draw t, from 0, takes one of; `draws` is T."""
        return competence(draw / draws, self.start, self.schedule)

    def allowed(self, draw: int, rows: int, draws: int) -> int:
        """How many of the easiest rows that is, at least one."""
        return math.ceil(self.competence(draw, draws) * rows - 1e-9)

    def choose(self, run: Run, step: int, task: Task, count: int) -> list[int]:
        """The next `count` rows."""
        course, drawn = self.prepared(run, task), run.rows_drawn[task.index]
        if course.place[0] != drawn:  # resumed: walk there again
            course.place = (0, 0, 0)
            self._walk(run, task, course, drawn)
        return self._walk(run, task, course, count)

    def _walk(self, run: Run, task: Task, course: Course, count: int) -> list[int]:
        """Go on through the passes until `count` rows were drawn."""
        draw, number, at = course.place
        size = len(course.ranks)
        chosen: list[int] = []
        while len(chosen) < count:
            row = self._passes.order(run, range(size), number, task.name)[at]
            if course.ranks[row] < self.allowed(draw, size, course.draws):
                chosen.append(row)
                draw += 1
            at += 1
            if at == size:
                number, at = number + 1, 0
        course.place = (draw, number, at)
        return chosen

    def _difficulties(self, run: Run, task: Task) -> list[float]:
        if self.difficulty == "length":
            return [float(len(example.input_ids)) for example in task.train]
        if self.difficulty == "loss":
            return self._own_losses(run, task)
        return numbers_of(task, self.difficulty)

    def _own_losses(self, run: Run, task: Task) -> list[float]:
        if task.name not in self._losses:
            run.note(f"{task.name}: rows {self.name}: the losses of {len(task.train)} rows first")
            self._losses[task.name] = own_losses(run, task, task.train)
        losses = self._losses[task.name]
        if len(losses) != len(task.train):
            raise UserError(
                f"the checkpoint knows the losses of {len(losses)} rows of task {task.name!r}, "
                f"which has {len(task.train)}",
                where=where(task),
                fix="resume with the rows that the run was started with",
            )
        pairs = zip(losses.tolist(), task.train, strict=True)
        return [loss / max(1, example.label_count) for loss, example in pairs]

    def state_dict(self) -> dict[str, Any]:
        """By task: T, and the loss sum of each row [n] if they are the difficulty."""
        return {
            **{f"draws:{task}": draws for task, draws in self._draws.items()},
            **{f"losses:{task}": losses.clone() for task, losses in self._losses.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._prepared = {}
        parts = {name: name.partition(":") for name in state}
        self._draws = {
            task: int(state[name]) for name, (what, _, task) in parts.items() if what == "draws"
        }
        self._losses = {
            task: state[name].clone() for name, (what, _, task) in parts.items() if what == "losses"
        }


def expected_draws(run: Run, task: Task) -> float:
    """Rows of a task that a whole run is expected to take, by its sampler's plan."""
    draws = 0.0
    for stage in plan_stages(run):
        if stage.active[task.index]:
            share = expected_shares(run, stage.active)[task.index]
            draws += stage.steps * rows_per_step(run) * share
    return draws


def numbers_of(task: Task, column: str) -> list[float]:
    """The values of a column as numbers; in CSV files they are texts of numbers."""
    if not has_column(task, column):
        raise UserError(
            f"the rows of {task.train.path} have no column {column!r}",
            where=where(task),
            fix=did_you_mean(column, [*columns_of(task), "length", "loss"]),
        )
    numbers = []
    for example in task.train:
        value = example.fields.get(column)
        try:
            number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            found = f"the text {value!r}" if isinstance(value, str) else kind_of(value)
            raise UserError(
                f"column {column!r} must hold numbers; row {example.row} of {task.train.path} "
                f"has {found}",
                where=where(task),
                fix="mend the row, or choose another difficulty: length, loss or a column",
            )
        numbers.append(number)
    return numbers
