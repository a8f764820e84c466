"""A task with rows of its own, for choosers: no model, no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from mtlcore.components import RowChooser
from mtlcore.data.example import Example
from mtlcore.data.splits import Counts, Split
from mtlcore.recipe import TaskRecipe
from mtlcore.testing import stand_in_run
from mtlcore_plugins.sampling.equal import Equal

WORDS = ("bad", "good", "fine", "odd", "new", "old", "big", "low", "red", "dry")


def rows_of(
    labels: Sequence[int | None] = (),
    *,
    fields: Sequence[Mapping[str, Any]] = (),
    prompts: Sequence[str] = (),
    lengths: Sequence[int] = (),
    options: Sequence[Sequence[str]] = (),
) -> Split:
    """Train rows with these labels, columns, prompts and lengths in tokens."""
    count = max(len(labels), len(fields), len(prompts), len(lengths))
    examples = []
    for row in range(count):
        length = lengths[row] if lengths else 3
        label = labels[row] if labels else None
        examples.append(
            Example(
                task="a",
                row=row,
                prompt=prompts[row] if prompts else "",
                target="",
                input_ids=(5,) * length,
                labels=(5,) * length,
                prompt_length=0,
                options=tuple(options[row]) if options else WORDS if label is not None else (),
                label=label,
                fields=fields[row] if fields else {},
            )
        )
    return Split("train", tuple(examples), Counts(), "a.jsonl", "", "")


def run_of(rows: Split, *, seed: int = 0, steps: int = 100, rows_per_step: int = 8) -> Any:
    """A run whose only task "a" has these train rows; `run.notes` is what the user was told."""
    run = stand_in_run({"a": len(rows)}, seed=seed, rows_per_step=rows_per_step)
    run.tasks[0].train = rows
    run.tasks[0].recipe = TaskRecipe.model_validate({"train": "a.jsonl", "format": "text"})
    run.notes = []
    run.note = run.notes.append
    run.active = [True]
    run.sampler = Equal()
    run.recipe.stages = []
    run.recipe.training.max_steps = steps
    run.recipe.training.learning_rate = 1e-3
    return run


def draw(
    chooser: RowChooser, run: Any, counts: Sequence[int], *, start: int | None = None
) -> list[list[int]]:
    """The rows of steps of the given counts; `start` sets how many rows were drawn before."""
    [task] = run.tasks
    if start is not None:
        run.rows_drawn[0] = start
    steps = []
    for step, count in enumerate(counts):
        steps.append(chooser.choose(run, step, task, count))
        assert len(steps[-1]) == count
        assert all(0 <= row < len(task.train) for row in steps[-1])
        run.rows_drawn[0] += count
    return steps


def flat(steps: Sequence[Sequence[int]]) -> list[int]:
    """All rows of several steps."""
    return [row for step in steps for row in step]


def started(chooser: RowChooser, run: Any) -> RowChooser:
    """The chooser after the hooks of a run's start."""
    chooser.tasks = ("a",)
    chooser.mtlcore_check(run.recipe, run.tasks)  # type: ignore[attr-defined]
    chooser.mtlcore_run_start(run)  # type: ignore[attr-defined]
    return chooser


def stage_of(*tasks: str) -> Any:
    """A stage of a recipe that trains these tasks."""
    return SimpleNamespace(
        name="s", tasks=list(tasks), max_steps=10, num_train_epochs=None, learning_rate=None
    )


def tasks_of(rows: Mapping[str, int], *, steps: int = 100) -> Any:
    """A run for samplers: tasks with so many rows; `run.notes` is what the user was told."""
    run = stand_in_run(rows)
    run.active = [True] * len(run.tasks)
    run.is_active = lambda task: run.active[task.index]
    run.notes = []
    run.note = run.notes.append
    run.recipe.stages = []
    run.recipe.training.max_steps = steps
    run.recipe.training.learning_rate = 1e-3
    return run
