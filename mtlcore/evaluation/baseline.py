"""Single-task baselines: T independent adapters on one frozen model, all trained in one run.

The adapters of a layer stand side by side in rank space and a row passes through those of its task
alone, so T single-task models cost one backbone, and their rows fill one batch. Losses, clipping,
dropout, early stopping and the choice of the best weights are per task: what comes out is what T
separate runs give (tests/evaluation/test_baseline.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlcore import api, checkpoint
from mtlcore.errors import UserError, require_tasks
from mtlcore.hookspecs import hookimpl
from mtlcore.plugins import PluginManager
from mtlcore.recipe import ComponentSpec, Recipe, SharingRecipe
from mtlcore.recipe_file import LoadedRecipe, read_recipe
from mtlcore.run import RECIPE

if TYPE_CHECKING:
    from mtlcore.run import Run

BASELINE = "baseline"
"""The folder of the baseline run inside a run's folder."""
NEVER = 10**9
"""A patience that is never over: the task is followed for its best weights alone."""


class OwnSharesOfRows:
    """Keeps a task's rows per step as they are when another task has stopped early.

    In a multi-task run the others would share them; a single-task run knows nothing of others. A
    step in which only stopped tasks would have rows goes to the others: it needs some.
    """

    @hookimpl
    def mtlcore_plan_step(self, run: Run, step: int) -> list[int] | None:
        """The counts of all tasks, less those of the tasks that have stopped."""
        active, run.active = run.active, [True] * len(run.tasks)
        try:
            counts = run.sampler.mtlcore_plan_step(run, step)
        finally:
            run.active = active
        kept = [count * on for count, on in zip(counts, active, strict=True)]
        return kept if any(kept) else None


def prepare(
    source: str | Path,
    overrides: Sequence[str] = (),
    *,
    tasks: Sequence[str] | None = None,
    auxiliary: bool = False,
) -> LoadedRecipe:
    """The recipe of the baselines of a run (its folder) or of a recipe file.

    `tasks`: some of its tasks; default all main tasks, with `auxiliary` the auxiliary ones too. The
    result goes to ``baseline/`` in the run's folder, or to ``runs/<name>-baseline``.
    """
    path = Path(source)
    if not path.is_dir():
        loaded = read_recipe(path, overrides)
        folder = loaded.output_dir.with_name(f"{loaded.output_dir.name}-{BASELINE}")
        return derive(loaded, folder, tasks=tasks, auxiliary=auxiliary)
    if not (path / RECIPE).is_file():
        raise UserError(
            f"{path} holds no run", fix="give the folder of a run, or a recipe (a YAML file)"
        )
    loaded = read_recipe(path / RECIPE, overrides)
    used = api.checkpoint_to_load(path, loaded.recipe, None)
    if told := checkpoint.unfinished(path, loaded.recipe, used):
        loaded.notes.insert(0, told)
    state = checkpoint.read_state(used)
    return derive(loaded, path / BASELINE, tasks=tasks, auxiliary=auxiliary, state=state)


def derive(
    loaded: LoadedRecipe,
    folder: Path,
    *,
    tasks: Sequence[str] | None = None,
    auxiliary: bool = False,
    state: dict[str, Any] | None = None,
) -> LoadedRecipe:
    """The recipe that trains an adapter of its own for each task, all else being equal.

    Each adapter has as many ranks as the task uses in the multi-task recipe. `state` is the JSON
    state of that run's checkpoint, if it was run.
    """
    recipe, notes = loaded.recipe, []
    names = _chosen(recipe, tasks, auxiliary)
    data = recipe.model_dump(mode="json")
    defaults = {name: field.default for name, field in Recipe.model_fields.items()}
    classes = PluginManager.load(local=recipe.plugins.load, disable=recipe.plugins.disable)
    components = classes.components()

    def needs_gradients(kind: str, spec: ComponentSpec) -> bool:
        info = components.get((kind, spec.name))
        return info is not None and info.cls.needs in ("gramian", "rows")

    data["sharing"] = own_ranks(recipe, names).model_dump(mode="json")
    if recipe.bottleneck is not None:
        width = recipe.bottleneck.shared + recipe.bottleneck.own
        data["bottleneck"] |= {"shared": 0, "own": width}
    data["weighting"] = defaults["weighting"].model_dump(mode="json")
    for key in ("stages", "monitoring", "auditing"):
        data[key] = []
    data |= {"start": None, "replay": None}
    if needs_gradients("sampling", recipe.sampling):
        data["sampling"] = defaults["sampling"].model_dump(mode="json")
        notes.append(
            f"sampling {recipe.sampling.name!r} looks at the gradients of several tasks: the "
            f"baselines draw their rows by {defaults['sampling'].name!r}"
        )
    data["regularization"] = []
    for spec in recipe.regularization:
        cls = getattr(components.get(("regularization", spec.name)), "cls", None)
        if getattr(cls, "acts_on", "") == "batch" or getattr(cls, "carries_over", False):
            notes.append(
                f"regularization {spec.name!r} ties tasks to each other or to earlier ones: the "
                "baselines are trained without it"
            )
        else:
            data["regularization"].append(spec.model_dump(mode="json"))
    data["tasks"] = {name: data["tasks"][name] for name in names}
    for name in names:
        data["tasks"][name]["role"] = "main"
    data["training"] |= _training(recipe, names, state, notes)
    data["training"]["output_dir"] = str(folder)
    _judge_by_task(recipe, names, data)
    made = Recipe.model_validate(data)
    return replace(loaded, recipe=made, notes=[*loaded.notes, *notes])


def train(loaded: LoadedRecipe, *, resume: bool | str | Path = False) -> Run:
    """Train what `prepare` or `derive` made."""
    trainer = api.prepare(loaded, resume=resume)
    trainer.run.plugins.register(OwnSharesOfRows())
    with loaded.locating_errors():
        trainer.train()
    return trainer.run


def _chosen(recipe: Recipe, tasks: Sequence[str] | None, auxiliary: bool) -> list[str]:
    alone = {n: task for n, task in recipe.tasks.items() if task.train.inputs_of is None}
    if tasks is None:
        return [n for n, task in alone.items() if auxiliary or task.role == "main"]
    require_tasks(tasks, recipe.tasks)
    for name in tasks:
        if name not in alone:
            raise UserError(
                f"{name!r} learns the inputs of other tasks, and has no baseline without them",
                fix="leave it out",
            )
    return [name for name in recipe.tasks if name in tasks]


def own_ranks(recipe: Recipe, names: Sequence[str]) -> SharingRecipe:
    """An adapter for each task alone, with all the ranks that its rows pass through.

    Where tasks differ in ranks or in layers, each gets groups of which it is the only member.
    """
    parts = {name: _ranks(recipe, name) for name in names}
    first = parts[names[0]]
    if len(first) == 1 and all(part == first for part in parts.values()):
        [(layers, r)] = first.items()
        own_layers = None if layers is None else list(layers)
        return SharingRecipe(shared=0, own=r, own_layers=own_layers)
    groups: dict[str, Any] = {}
    for name in names:
        for layers, r in parts[name].items():
            group = name
            while group in groups or (group != name and group in names):
                group += "-more"
            groups[group] = {
                "tasks": [name],
                "r": r,
                "layers_to_transform": None if layers is None else list(layers),
            }
    return SharingRecipe.model_validate({"shared": 0, "own": 0, "groups": groups})


def _ranks(recipe: Recipe, task: str) -> dict[tuple[int, ...] | None, int]:
    """Layers (None is all) -> the ranks that a task has there."""
    sharing = recipe.sharing
    if sharing is None:
        return {None: recipe.lora.r}
    parts = [(sharing.shared_layers, sharing.shared), (sharing.own_layers, sharing.own)]
    parts += [(g.layers_to_transform, g.r) for g in sharing.groups.values() if task in g.tasks]
    found: dict[tuple[int, ...] | None, int] = {}
    for layers, r in parts:
        if r:
            key = None if layers is None else tuple(sorted(layers))
            found[key] = found.get(key, 0) + r
    return found


def _training(
    recipe: Recipe, names: Sequence[str], state: dict[str, Any] | None, notes: list[str]
) -> dict[str, Any]:
    """Steps and rows per step: each task gets what it got beside the others."""
    training = recipe.training
    changes: dict[str, Any] = {"report_to": []}
    left_out = [name for name in recipe.tasks if name not in names]
    if recipe.stages:
        given = [stage.max_steps for stage in recipe.stages]
        if state is None and None in given:
            raise UserError(
                "how many steps the stages take is known when they were trained",
                where="stages",
                fix="train the recipe first, then give its run folder; or set max_steps of each",
            )
        steps = state["step"] if state is not None else sum(count or 0 for count in given)
        changes["max_steps"] = steps
        notes.append(f"the baselines have one stage of {steps} steps with all tasks")
    elif training.max_steps is None and left_out and state is not None:
        changes["max_steps"] = state["step"]
    if left_out:
        share = len(names) / len(recipe.tasks)
        if state is not None and sum(state["rows_drawn"]):
            drawn = dict(zip(state["tasks"], state["rows_drawn"], strict=True))
            share = sum(drawn.get(name, 0) for name in names) / sum(drawn.values()) or share
        rows = max(1, round(training.per_device_train_batch_size * share))
        changes["per_device_train_batch_size"] = rows
        notes.append(
            f"without {', '.join(left_out)} a batch has {rows} rows instead of "
            f"{training.per_device_train_batch_size}"
        )
    if recipe.start is not None:
        notes.append(f"the baselines start from the base model, not from {recipe.start.run}")
    return changes


def _judge_by_task(recipe: Recipe, names: Sequence[str], data: dict[str, Any]) -> None:
    """Early stopping and the best weights of each task by itself, as a run of its own has them."""
    training = recipe.training
    has_metric = any(recipe.tasks[name].metrics for name in names)
    by_loss = training.metric_for_best_model.endswith("_loss") or not has_metric
    data["training"] |= {
        "metric_for_best_model": "eval_loss" if by_loss else "eval_overall",
        "greater_is_better": None,
        "early_stopping_patience": None,
    }
    for name in names:
        own = recipe.tasks[name].early_stopping_patience or training.early_stopping_patience
        if own is None and training.load_best_model_at_end:
            own = NEVER
        data["tasks"][name]["early_stopping_patience"] = own
