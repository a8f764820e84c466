"""Add tasks to a finished run, and show what that did to its old ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlcore.api import prepare
from mtlcore.distributed import is_main
from mtlcore.errors import UserError
from mtlcore.recipe_file import read_part, read_recipe, recipe_from_mapping
from mtlcore.run import RECIPE, Run, write_json
from mtlcore.start import trained_tasks

if TYPE_CHECKING:
    from mtlcore.evaluation.scores import Scores, TaskScore
    from mtlcore.recipe_file import LoadedRecipe

STAGE = "adapt"
EPOCHS = 10.0
"""Passes over the new rows without `max_steps`: they are few."""
FORGETTING = "forgetting.json"
BEFORE = "before"
"""The folder of predictions made before the new tasks were learned."""


def adapt(
    folder: str | Path,
    task: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    max_steps: int | None = None,
    output_dir: str | Path | None = None,
    resume: bool | str | Path = False,
) -> Run:
    """Teach a finished run new tasks; returns the new run, whose folder has forgetting.json.

    `task` is a YAML file (or a mapping) with the part `tasks: {name: {...}}` of a recipe. The new
    recipe is that of the old run with these tasks, one stage that trains them alone, and `start`.
    The shared adapters and the new tasks' own are trained; the old tasks' own adapters and heads
    are frozen, and their rows are trained on only where `replay` adds them. `overrides` are
    ``key=value`` strings such as ``"replay=reservoir"`` or ``"regularization=[{name: ewc}]"``.
    """
    folder = Path(folder)
    new = _new_tasks(task)
    target = Path(output_dir) if output_dir else folder.with_name(f"{folder.name}-{'-'.join(new)}")
    if resume and (target / RECIPE).is_file():
        loaded = read_recipe(target / RECIPE, overrides)
        _require_same_start(loaded, folder)
        _require_same_steps(loaded, max_steps)
        _require_same_tasks(loaded, task, new, overrides)
    else:
        loaded = _recipe(folder, task, new, max_steps, target, overrides)
    trainer = prepare(loaded, resume=resume)
    run = trainer.run
    old = [task.name for task in run.tasks if task.name not in new]
    before = run.folder / "predictions" / BEFORE / "scores.json"
    if not (resume and before.is_file()):
        if run.step > 0:
            raise UserError(
                "the scores from before the new tasks are missing, and so are the weights of then",
                where=str(before),
                fix="copy the file back, or adapt anew into another folder",
            )
        _score_before(run, old)
    with loaded.locating_errors():
        trainer.train()
    scores = run.evaluate("test", save_as="test")
    if is_main():
        write_json(run.folder / FORGETTING, forgetting(run, before, scores))
    return run


def _require_same_start(loaded: LoadedRecipe, folder: Path) -> None:
    """A resumed run goes on from the run that it was begun with, which may be gone by now."""
    start = loaded.recipe.start
    if start is None or Path(start.run).resolve() != folder.resolve():
        raise UserError(
            f"{loaded.path.parent} was begun from {start.run if start else 'no other run'}, and "
            f"--resume keeps that; found {folder}",
            fix="name that run, or adapt anew into another folder",
        )


def _require_same_steps(loaded: LoadedRecipe, max_steps: int | None) -> None:
    """Nothing asked for may be passed over: a resumed run keeps the recipe that it has."""
    had = loaded.recipe.stages[-1].max_steps
    if max_steps is not None and max_steps != had:
        raise UserError(
            f"the run was started for {had or 'no fixed number of'} steps, and --resume keeps "
            f"that; found {max_steps}",
            where="--max-steps",
            fix="leave it out, or adapt anew into another folder",
        )


def _require_same_tasks(
    loaded: LoadedRecipe,
    task: str | Path | Mapping[str, Any],
    new: list[str],
    overrides: Sequence[str],
) -> None:
    """As with the steps: the tasks of a resumed run are those that it was begun with."""
    had = loaded.recipe.stages[-1].tasks
    found = f"found {', '.join(new)}"
    if set(new) == set(had):
        saved = read_part(loaded.path)
        saved["tasks"] = {name: part for name, part in saved["tasks"].items() if name not in had}
        given = _with_tasks(saved, task, overrides).recipe.tasks
        changed = [
            f"tasks.{name}.{key}"
            for name in new
            for key, value in loaded.recipe.tasks[name]
            if getattr(given[name], key) != value
        ]
        if not changed:
            return
        found = f"{', '.join(changed)} changed"
    raise UserError(
        f"the run was begun with {', '.join(had)}, and --resume keeps the tasks as they were; "
        f"{found}",
        where="the new task" if isinstance(task, Mapping) else str(task),
        fix="undo that, or adapt anew into another folder",
    )


def _recipe(
    folder: Path,
    task: str | Path | Mapping[str, Any],
    new: list[str],
    max_steps: int | None,
    target: Path,
    overrides: Sequence[str],
) -> LoadedRecipe:
    """The old run's recipe with the new tasks, the stage that trains them, and `start`."""
    if not (folder / RECIPE).is_file():
        raise UserError(f"{folder} holds no run", fix="give the folder of a run, e.g. runs/demo")
    for name in read_recipe(folder / RECIPE, check_files=False).recipe.tasks:
        if name in new:
            raise UserError(
                f"the run has a task {name!r} already",
                where=str(folder),
                fix="give the new task another name",
            )
    stage: dict[str, Any] = {"name": STAGE, "tasks": new}
    stage |= {"max_steps": max_steps} if max_steps else {"num_train_epochs": EPOCHS}
    recipe = {
        "start": {"run": str(folder.resolve())},
        "stages": [stage],
        "training": {"output_dir": str(target), "max_steps": None},
    }
    return _with_tasks(recipe, task, overrides, over=[folder / RECIPE])


def _with_tasks(
    recipe: dict[str, Any],
    task: str | Path | Mapping[str, Any],
    overrides: Sequence[str],
    over: Sequence[Path] = (),
) -> LoadedRecipe:
    """A recipe, which lies over files, with the tasks to add."""
    if isinstance(task, Mapping):
        tasks = {**recipe.get("tasks", {}), **task["tasks"]}
        return recipe_from_mapping({**recipe, "tasks": tasks}, overrides, over=over)
    return recipe_from_mapping(recipe, overrides, over=[*over, task])


def _score_before(run: Run, old: Sequence[str]) -> None:
    scored = [task.name for task in run.tasks_with_rows("test") if task.name in old]
    if not scored:
        run.note("no old task has eval or test rows: what becomes of them is not measured")
        if is_main():
            folder = run.folder / "predictions" / BEFORE
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "scores.json", {"tasks": {}})
        return
    run.evaluate("test", tasks=scored, save_as=BEFORE)


def _new_tasks(task: str | Path | Mapping[str, Any]) -> list[str]:
    part = dict(task) if isinstance(task, Mapping) else read_part(task)
    where = "the new task" if isinstance(task, Mapping) else str(task)
    tasks = part.pop("tasks", None)
    if not isinstance(tasks, Mapping) or not tasks or part:
        found = f"found {', '.join(map(repr, part))}" if part else "it has none"
        raise UserError(
            f"should hold the tasks to add and nothing else, {found}",
            where=where,
            fix="write `tasks: {name: {train: ..., format: ...}}`; give other keys as key=value",
        )
    return list(tasks)


def forgetting(run: Run, before: Path, after: Scores) -> dict[str, Any]:
    """What became of the old tasks: their primary metric (or loss) before and after.

    `change` is after - before, its sign such that positive is better. `mean_change` is the mean
    over the old main tasks that have a metric, each mapped to 0 .. 1 first: the backward transfer
    of Lopez-Paz & Ranzato (NeurIPS 2017, https://arxiv.org/abs/1706.08840) for one added stage.
    `new_tasks` have no score before: the old run knows nothing of them.
    """
    old = json.loads(before.read_text(encoding="utf-8"))["tasks"]
    rows: dict[str, dict[str, Any]] = {}
    changes: list[float] = []
    for name, scores in old.items():
        now = after.by_task[name]
        metric, is_now = _headline(now)
        was = scores[metric]
        evaluators = run.evaluators[name]
        sign = 1 if evaluators and evaluators[0].greater_is_better else -1
        rows[name] = {
            "metric": metric,
            "before": was,
            "after": is_now,
            "change": sign * (is_now - was),
        }
        if now.primary and not now.auxiliary:
            changes.append(evaluators[0].normalized(is_now) - evaluators[0].normalized(was))
    return {
        "split": after.split,
        "tasks": rows,
        "new_tasks": {
            name: dict(zip(("metric", "after"), _headline(now), strict=True))
            for name, now in after.by_task.items()
            if name in trained_tasks(run.recipe)
        },
        "mean_change": sum(changes) / len(changes) if changes else None,
    }


def _headline(score: TaskScore) -> tuple[str, float]:
    """The primary metric of a task and its value; the loss without a metric."""
    return (score.primary, score.metrics[score.primary]) if score.primary else ("loss", score.loss)
