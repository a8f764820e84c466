"""A run that goes on from another: its weights, what its components remember, its tasks frozen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlcore import checkpoint
from mtlcore.checkpoint_store import (
    COMPONENTS,
    STATE,
    checkpoint_folder,
    checkpoints,
    open_checkpoint,
)
from mtlcore.errors import UserError
from mtlcore.evaluation.predictions import sum_losses
from mtlcore.recipe_file import read_recipe

if TYPE_CHECKING:
    from torch import Tensor

    from mtlcore.data.tasks import Task
    from mtlcore.recipe import Recipe, StartRecipe
    from mtlcore.run import Run

NEAREST_ROWS = 64
"""So many rows of a new task are tried with the adapters of each old one."""


def trained_tasks(recipe: Recipe) -> set[str]:
    """The tasks that some stage trains."""
    stages = [stage.tasks for stage in recipe.stages] or [list(recipe.tasks)]
    return {task for tasks in stages for task in tasks}


def frozen_tasks(recipe: Recipe) -> frozenset[str]:
    """Tasks whose own weights stay as the start run left them: those that no stage trains."""
    if recipe.start is None or not recipe.start.freeze_own:
        return frozenset()
    return frozenset(recipe.tasks) - trained_tasks(recipe)


def take_over(run: Run) -> None:
    """Give a new run the weights and memories of its start run.

    Weights with the same name are taken over; those of the new tasks' own adapters come from an
    old task (`own_from`, else the nearest), heads of new tasks stay as they are made. UserError
    if the base model, a shape or a scale differs.
    """
    start = run.recipe.start
    assert start is not None
    folder = Path(start.run)
    before, place = _start_run(folder, start)
    checkpoint.require_base_model(run, open_checkpoint(place, STATE))
    new = [task for task in run.tasks if task.name not in before.tasks]
    lost = [name for name in before.tasks if name not in run.recipe.tasks]
    if lost:
        raise UserError(
            f"the run {folder} has tasks that this recipe lacks: {', '.join(lost)}",
            where="tasks",
            fix="keep the tasks of the start run; a stage need not train them",
        )
    for name, source_name in start.own_from.items():
        if name in before.tasks or source_name not in before.tasks:
            raise UserError(
                f"own_from maps new tasks to old ones, found {name!r}: {source_name!r}",
                where="start.own_from",
                fix=f"new: {', '.join(t.name for t in new)}; old: {', '.join(before.tasks)}",
            )
    _require_same_function(run, before, folder)
    _require_same_options(run, place)
    saved = checkpoint.read_adapters(place)
    state = run.model.adapter_state()
    of_new = {key for task in new for key in run.model.adapter_state(owner=task.index)}
    missing = sorted(state.keys() - saved.keys() - of_new)
    left = sorted(saved.keys() - state.keys())
    if missing or left:
        raise UserError(
            f"the adapters of {folder} do not fit this recipe: {(missing or left)[0]!r} is "
            + ("not in it" if missing else "left over"),
            where="start.run",
            fix="keep lora, sharing, bottleneck and heads as in its recipe.yaml",
        )
    run.model.load_adapter_state({**state, **saved})
    for task in new:
        source = _source(run, start, task, [t for t in run.tasks if t not in new])
        if source is not None:
            _copy_own(run, source, task)
    _carry_over(run, place)


def unfinished_start(recipe: Recipe) -> list[str]:
    """What to tell, before all else, of a start run that has not ended."""
    start = recipe.start
    if start is None or start.step is not None:
        return []
    before, place = _start_run(Path(start.run), start)
    told = checkpoint.unfinished(Path(start.run), before, place)
    return [told] if told else []


def _start_run(folder: Path, start: StartRecipe) -> tuple[Recipe, Path]:
    recipe_file = folder / "recipe.yaml"
    found = checkpoints(folder)
    if not recipe_file.is_file() or not found:
        raise UserError(
            f"{folder} holds no trained run",
            where="start.run",
            fix="give the folder of a finished run, e.g. runs/demo",
        )
    place = found[-1]
    if start.step is not None:
        place = checkpoint_folder(folder, start.step)
        if place not in found:
            names = ", ".join(path.name for path in found)
            raise UserError(
                f"{folder} has no checkpoint of step {start.step}",
                where="start.step",
                fix=f"it has: {names}",
            )
    return read_recipe(recipe_file, check_files=False).recipe, place


def _require_same_function(run: Run, before: Recipe, folder: Path) -> None:
    """Weights mean something else with another scale, activation, pooling or set of members."""
    now, old = run.recipe.lora, before.lora
    ours = (now.lora_alpha / now.r, now.use_rslora)
    theirs = (old.lora_alpha / old.r, old.use_rslora)
    if ours != theirs:
        raise UserError(
            f"the adapters of {folder} were trained with lora_alpha / r = {theirs[0]:g}"
            f"{' (rslora)' if theirs[1] else ''}, this recipe has {ours[0]:g}"
            f"{' (rslora)' if ours[1] else ''}",
            where="lora",
            fix="keep lora as in its recipe.yaml",
        )
    tasks = run.recipe.tasks
    changed = [f"tasks.{n}.head" for n, t in before.tasks.items() if tasks[n].head != t.head]
    if (mine := run.recipe.bottleneck) and (then := before.bottleneck):
        for key in ("scaling", "non_linearity"):
            if getattr(mine, key) != getattr(then, key):
                changed.append(f"bottleneck.{key}")
    groups = run.recipe.sharing.groups if run.recipe.sharing else {}
    for name, group in (before.sharing.groups if before.sharing else {}).items():
        if name in groups and not set(group.tasks) <= set(groups[name].tasks):
            changed.append(f"sharing.groups.{name}.tasks")
    if changed:
        raise UserError(
            f"{', '.join(changed)} differ from what the adapters of {folder} were trained with",
            where=changed[0],
            fix="keep them as in its recipe.yaml",
        )


def _require_same_options(run: Run, place: Path) -> None:
    """A head that is taken over chooses between the options that it was trained with."""
    options: dict[str, list[str]] = open_checkpoint(place, STATE).state()["head_options"]
    for name, then in options.items():
        now = run.model.heads.facts[run.task(name).index].options or ()
        if list(now) != then:
            raise UserError(
                f"the head of {name!r} was trained to choose between {', '.join(then)}; its rows "
                f"have the options {', '.join(now)}",
                where=f"tasks.{name}.format",
                fix="keep the labels of the start run, in their order, or add the rows as a task "
                "of another name",
            )


def _source(run: Run, start: StartRecipe, task: Task, old: list[Task]) -> Task | None:
    """The old task whose own adapter a new one starts from."""
    if task.name in start.own_from:
        return run.task(start.own_from[task.name])
    has_own = any(a.owner is not None and a.family != "head" for a in run.model.layout.adapters)
    if not start.nearest or not has_own:
        return None
    if task.recipe.head is not None:
        run.note(
            f"task {task.name!r} starts from a fresh adapter of its own: without a trained head "
            "nothing tells which old task is the nearest; start.own_from can name one"
        )
        return None
    rows = list(task.train)[:NEAREST_ROWS]
    tokens = sum(label != -100 for row in rows for label in row.labels)
    losses = {other.name: sum(sum_losses(run, other, rows)) / tokens for other in old}
    nearest = min(losses, key=losses.__getitem__)
    told = ", ".join(f"{name} {loss:.3f}" for name, loss in sorted(losses.items()))
    run.note(
        f"task {task.name!r} starts from the own adapter of {nearest!r}, with which its rows have "
        f"the lowest loss ({told})"
    )
    return run.task(nearest)


def _copy_own(run: Run, source: Task, target: Task) -> None:
    """Copy own adapters by name, but no head: its labels are those of its task."""
    state = run.model.adapter_state()
    heads = {a.name for a in run.model.layout.adapters if a.family == "head"}
    theirs: dict[str, Tensor] = {
        key.removesuffix(source.name) + target.name: value
        for key, value in run.model.adapter_state(owner=source.index).items()
        if not any(key.endswith(f".{head}") for head in heads)
    }
    run.model.load_adapter_state({**state, **theirs})


def carry_over(run: Run) -> None:
    """Give the components of a new run what those of its start run remembered, and no weights."""
    start = run.recipe.start
    assert start is not None
    _carry_over(run, _start_run(Path(start.run), start)[1])


def _carry_over(run: Run, place: Path) -> None:
    """Components that outlive a run get what those of the same kind and name remembered."""
    states: dict[tuple[str, str], dict[str, Any]] = {}
    for key, state in open_checkpoint(place, STATE, COMPONENTS).component_states().items():
        states[_kind_and_name(key)] = state
    for key, component in run.components.items():
        found = states.get(_kind_and_name(key))
        if component.carries_over and found:
            component.load_state_dict(found)


def _kind_and_name(key: str) -> tuple[str, str]:
    """ "regularization[1]:ewc" -> ("regularization", "ewc"); no kind has a name twice."""
    where, _, name = key.rpartition(":")
    return where.partition("[")[0], name
