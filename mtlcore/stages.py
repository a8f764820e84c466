"""The stages of a run: which tasks are trained when, for how many steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mtlcore.components import rows_per_step
from mtlcore.errors import UserError

if TYPE_CHECKING:
    from mtlcore.data.tasks import Task
    from mtlcore.recipe import StageRecipe
    from mtlcore.run import Run

ONLY_STAGE = "train"
"""The name of the stage of a recipe without stages."""


@dataclass(frozen=True)
class Stage:
    """Tasks that are trained together, with an optimizer and a learning rate schedule of their own.

    `active` [T] says which tasks they are; `steps` are optimizer steps.
    """

    name: str
    active: tuple[bool, ...]
    steps: int
    learning_rate: float


def plan_stages(run: Run) -> list[Stage]:
    """The stages of a recipe; one with all tasks if it names none.

    A stage without `max_steps` takes the steps in which its largest main task, or its largest
    where it has no main one, is seen `num_train_epochs` times.
    """
    training = run.recipe.training
    if not run.recipe.stages:
        everyone = (True,) * len(run.tasks)
        steps = training.max_steps or _steps(run, everyone, training.num_train_epochs)
        return [Stage(ONLY_STAGE, everyone, steps, training.learning_rate)]
    return [_stage(run, stage) for stage in run.recipe.stages]


def _stage(run: Run, stage: StageRecipe) -> Stage:
    training = run.recipe.training
    active = tuple(task.name in stage.tasks for task in run.tasks)
    epochs = stage.num_train_epochs or training.num_train_epochs
    steps = stage.max_steps or _steps(run, active, epochs)
    return Stage(stage.name, active, steps, stage.learning_rate or training.learning_rate)


def _steps(run: Run, active: tuple[bool, ...], epochs: float) -> int:
    trained = [task for task, on in zip(run.tasks, active, strict=True) if on]
    counted = [task for task in trained if task.recipe.role == "main"] or trained
    sizes = [len(task.train) * (task in counted) for task in run.tasks]
    largest = max(range(len(sizes)), key=sizes.__getitem__)
    share = expected_shares(run, active)[largest]
    if not share:
        raise UserError(
            f"epochs count the rows of the largest task, {run.tasks[largest].name!r}, which has no "
            f"share in the planned_shares of sampling {run.sampler.name!r}",
            where="training.num_train_epochs",
            fix="set training.max_steps, or let the sampler's planned_shares give it one",
        )
    return max(1, math.ceil(epochs * sizes[largest] / (rows_per_step(run) * share)))


def expected_shares(run: Run, active: Sequence[bool]) -> list[float]:
    """[T] the sampler's shares by plan, with `active` [T] tasks trained."""
    before, run.active = run.active, list(active)
    shares = run.sampler.planned_shares(run)
    run.active = before
    return shares


def tasks_of(run: Run, stage: str) -> list[Task]:
    """The tasks that a stage trains, those that have stopped early too."""
    named = [part.tasks for part in run.recipe.stages if part.name == stage]
    return [task for task in run.tasks if not named or task.name in named[0]]
