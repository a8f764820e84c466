"""Every hook that a plugin can implement: typed, documented, called at start-up or once per step.

A plugin writes a function (in a module) or a method (in a component) of the same name and takes
the arguments it needs, by name; the others may be left out:

    from mtlcore.hookspecs import hookimpl

    @hookimpl
    def mtlcore_step_end(run, record):
        ...

Methods of a `Component` are marked by its base class. Where several plugins implement a hook, the
one registered last is called first. "First result" hooks stop at the first answer that is not
None, so None means "not mine". `run` is what one run holds (recipe, tasks, model, step, folder);
random draws come from `run.generator(step, "<own key>")`, equal on all ranks. `task` is the task
itself (`task.name`, `task.index`, `task.train`); a step counts from 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pluggy import HookimplMarker, HookspecMarker

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor
    from typer import Typer

    from mtlcore.components import Component, Finding, Penalty, Section
    from mtlcore.data.batches import Batch
    from mtlcore.data.example import Example
    from mtlcore.data.tasks import Task
    from mtlcore.errors import Problem
    from mtlcore.evaluation.predictions import Prediction
    from mtlcore.gradients import Direction, Gradients
    from mtlcore.model.layout import Layout
    from mtlcore.recipe import Recipe
    from mtlcore.run import Run

hookspec = HookspecMarker("mtlcore")
hookimpl = HookimplMarker("mtlcore")


# At start-up ----------------------------------------------------------------------------------


@hookspec
def mtlcore_components() -> list[type[Component]]:  # type: ignore[empty-body]
    """The component classes that this plugin adds.

    A module without it contributes every `Component` subclass with a name that is defined in it.
    """


@hookspec
def mtlcore_commands(cli: Typer) -> None:
    """Add verbs to the command line, e.g. with `cli.command("verb")(function)`."""


# Once per run and stage -----------------------------------------------------------------------


@hookspec
def mtlcore_check(  # type: ignore[empty-body]
    recipe: Recipe, tasks: Sequence[Task], layout: Layout, components: Mapping[str, Component]
) -> list[Problem]:
    """Refuse with a UserError what needs no model to be told; the result are warnings.

    By `mtlcore check`, and by training before anything is written; each plugin is asked by itself,
    so that all problems are told at once. `tasks` lacks those that `mtlcore check` could not read.
    """


@hookspec
def mtlcore_run_start(run: Run) -> None:
    """The model, the tasks and the components exist and were checked; no step was taken."""


@hookspec
def mtlcore_run_end(run: Run) -> None:
    """The last step was taken and the last checkpoint written."""


@hookspec
def mtlcore_stage_start(run: Run, stage: str) -> None:
    """A stage of the run (a task of a continual sequence, a part of a curriculum) begins.

    Not called again when a run is resumed within the stage.
    """


@hookspec
def mtlcore_stage_end(run: Run, stage: str) -> None:
    """A stage ends; its weights are the current ones. Its checkpoint follows."""


# Once per step, in this order -----------------------------------------------------------------


@hookspec(firstresult=True)
def mtlcore_plan_step(run: Run, step: int) -> list[int] | None:
    """How many rows of each task the step takes, all micro-batches and ranks together: [T].

    First result. The counts sum to `mtlcore.components.rows_per_step(run)`.
    """


@hookspec(firstresult=True)
def mtlcore_choose_rows(run: Run, step: int, task: Task, count: int) -> list[int] | None:
    """Which rows: `count` row ids, each in 0 .. len(task.train) - 1; repeats are allowed.

    First result. `run.rows_drawn[task.index]` rows were drawn before this call.
    """


@hookspec
def mtlcore_add_rows(  # type: ignore[empty-body]
    run: Run, step: int, rows: Sequence[Example]
) -> list[Example]:
    """Examples to add to the chosen `rows` before the batch is built (replay, augmentation).

    An added row counts for the task it names.
    """


@hookspec
def mtlcore_penalties(  # type: ignore[empty-body]
    run: Run, batch: Batch | None, outputs: Any | None
) -> list[Penalty]:
    """Penalties, each with what it acts on ("weights", "task" or "batch").

    Called after each forward with the micro-batch and its outputs, for penalties on the task
    losses and the batch; and once per step with batch=None and outputs=None, for penalties on the
    weights. Answer an empty list to the call that is not yours. A step that is measured again
    without some of its rows asks again: a penalty is a function of its arguments.
    """


@hookspec(firstresult=True)
def mtlcore_weigh_tasks(
    run: Run, losses: Tensor | None, gradients: Gradients
) -> Tensor | Direction | None:
    """One weight per task present in the step. First result.

    losses: [T'] float64 on the CPU, means over the step's labelled tokens times the task's
        `loss_weight`; None when the weighting needs nothing.
    gradients: `.present` (indices of the T' tasks), `.gramian(scope)`, `.rows()`; reading one that
        the weighting did not declare in `needs` is an error.
    Result: float64 [T'], or [S, T'] for scope "layer" or "factor", or a `Direction` ([P]).
    """


@hookspec
def mtlcore_before_update(run: Run, gradients: Gradients) -> None:
    """All `.grad` are filled and not yet clipped; the optimizer step comes next."""


@hookspec
def mtlcore_after_update(run: Run, losses_again: Callable[[], Tensor]) -> None:
    """The optimizer step is done; not called if the step made no update.

    `losses_again()` [T'] are the losses that the weighting got, of the same rows under the same
    dropout, with the new weights: one more forward pass over the step, of all processes together.
    With a weighting inside another (`main`), the losses that the inner one got.
    """


@hookspec
def mtlcore_step_end(run: Run, record: Mapping[str, Any]) -> None:
    """The step is done. `record` is its line of metrics.jsonl (one every `logging_steps`).

    Called too if the step made no update (`skipped_steps` is 1).
    """


# Evaluation and report ------------------------------------------------------------------------


@hookspec
def mtlcore_evaluate(
    run: Run, task: Task, predictions: Sequence[Prediction]
) -> dict[str, float] | None:
    """Scores of one task's predictions by name; None for a task that is not this evaluator's.

    The answers of all evaluators are merged.
    """


@hookspec
def mtlcore_audit(  # type: ignore[empty-body]
    run: Run, predictions: Mapping[str, Sequence[Prediction]]
) -> list[Finding]:
    """Findings on the predictions of all tasks (task name -> predictions).

    At the end of training, when `every_n_steps` of an auditor is due, and by `mtlcore audit`.
    """


@hookspec
def mtlcore_report(run: Run) -> list[Section]:  # type: ignore[empty-body]
    """Sections to add to the run's report page."""
