"""Rules of the recipe that concern more than one field."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mtlcore.errors import did_you_mean, nearest
from mtlcore.recipe import path_of_inputs

if TYPE_CHECKING:
    from mtlcore.recipe import ComponentSpec, Recipe, SharingRecipe

KeyPath = tuple[str | int, ...]
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
LONGEST_NAME = 100  # a file name has at most 255 bytes, and names are parts of file names
SPLITS = ("train", "eval", "test")
DEVICE = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9])", re.IGNORECASE)
"""Names that Windows keeps for devices: a run folder may be copied there."""


@dataclass(frozen=True)
class FieldProblem:
    """What is wrong at one key path of a recipe; the reader adds file and line."""

    path: KeyPath
    message: str
    fix: str = ""
    reads: tuple[KeyPath, ...] = ()  # other keys that the rule looked at

    @property
    def where(self) -> str:
        return dotted(self.path)


def dotted(path: KeyPath) -> str:
    """`("regularization", 0, "name")` -> `regularization[0].name`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def problems_between_fields(recipe: Recipe) -> list[FieldProblem]:
    """Everything that is wrong between fields that are right by themselves."""
    return [
        *_tasks(recipe),
        *_inputs_of_tasks(recipe),
        *_sharing(recipe),
        *_names_used_twice(recipe),
        *_stages(recipe),
        *_start(recipe),
        *_schedule(recipe),
        *_best_model(recipe),
    ]


def _tasks(recipe: Recipe) -> Iterator[FieldProblem]:
    if not recipe.tasks:
        yield FieldProblem(("tasks",), "there is no task", "add one: `tasks: {name: {train: ...}}`")
        return
    for name, task in recipe.tasks.items():
        yield from _file_name(("tasks", name), recipe.tasks)
        if name == "shared":
            yield FieldProblem(
                ("tasks", name),
                "'shared' is the name of the adapter of all tasks",
                "call the task something else",
            )
        if task.split.eval + task.split.test >= 1:
            yield FieldProblem(
                ("tasks", name, "split"),
                f"eval + test is {task.split.eval + task.split.test:g}, nothing is left to learn",
                "the sum of both must be below 1",
                reads=(("tasks", name, "split"),),
            )
    if all(task.role == "auxiliary" for task in recipe.tasks.values()):
        yield FieldProblem(
            ("tasks",), "all tasks are auxiliary", "give at least one `role: main` (the default)"
        )


def _inputs_of_tasks(recipe: Recipe) -> Iterator[FieldProblem]:
    """`inputs_of` is for the train rows of auxiliary tasks, and names main ones."""
    for name, task in recipe.tasks.items():
        for split in SPLITS:
            source = getattr(task, split)
            if source is None or source.inputs_of is None:
                continue
            path: KeyPath = ("tasks", name, split, "inputs_of")
            if split != "train":
                yield FieldProblem(path, "is for train rows alone", "name a file")
            elif task.role != "auxiliary":
                what = "gives rows that are trained on by their own task too"
                fix = f"set tasks.{name}.role to auxiliary"
                yield FieldProblem(path, what, fix, (("tasks", name, "role"),))
            for option in ("path", "name", "split", "revision", "data_files"):
                given = getattr(source, option)
                if given not in (None, path_of_inputs(source.inputs_of)):
                    what = "has no meaning beside inputs_of"
                    yield FieldProblem(("tasks", name, split, option), what, "keep one of them")
            yield from _named_inputs(recipe, path, source.inputs_of)


def _named_inputs(
    recipe: Recipe, path: KeyPath, names: Literal["all"] | list[str]
) -> Iterator[FieldProblem]:
    main = [name for name, task in recipe.tasks.items() if task.role == "main"]
    if not names:
        yield FieldProblem(path, "names no task", "write `all`, or a list of main tasks")
    for index, name in enumerate(names if isinstance(names, list) else ()):
        if name not in main:
            what = f"{name!r} is an auxiliary task" if name in recipe.tasks else f"no task {name!r}"
            fix, reads = did_you_mean(name, main), (("tasks",),)
            yield FieldProblem((*path, index), what, fix, reads)


def _file_name(path: KeyPath, names: Iterable[str]) -> Iterator[FieldProblem]:
    """What keeps the last key of `path`, one of `names`, from being a part of a file name."""
    name = str(path[-1])
    safe = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_-")[:LONGEST_NAME] or "task"
    if not SAFE_NAME.fullmatch(name):
        what = (
            f"a name is made of letters, digits, _ and -, and begins with no sign, found {name!r}"
        )
        yield FieldProblem(path, what, f"call it {safe!r}")
    elif len(name) > LONGEST_NAME:
        what = f"a name has at most {LONGEST_NAME} characters, found {len(name)}"
        yield FieldProblem(path, what, "give it a shorter one")
    elif DEVICE.fullmatch(name):
        what = f"{name!r} is the name of a device on Windows, where no file can be called so"
        yield FieldProblem(path, what, f"call it '{name}_task'")
    for other in names:
        if other == name:
            return
        if other.lower() == name.lower():
            what = f"{other!r} and {name!r} differ by case only, and their files would be the same"
            yield FieldProblem(path, f"{what} on macOS and Windows", "rename one")


def _sharing(recipe: Recipe) -> Iterator[FieldProblem]:
    sharing = recipe.sharing
    if sharing is None:
        return
    for group, members in sharing.groups.items():
        path: KeyPath = ("sharing", "groups", group)
        yield from _file_name(path, sharing.groups)
        for index, task in enumerate(members.tasks):
            if task not in recipe.tasks:
                yield FieldProblem(
                    (*path, "tasks", index), f"no task {task!r}", did_you_mean(task, recipe.tasks)
                )
            elif task in members.tasks[:index]:
                yield FieldProblem((*path, "tasks", index), f"{task!r} stands here twice")
    for kind in ("shared", "own"):
        if getattr(sharing, f"{kind}_layers") is not None and not getattr(sharing, kind):
            yield FieldProblem(
                ("sharing", f"{kind}_layers"),
                f"has nothing to act on: sharing.{kind} is 0",
                f"give sharing.{kind} a rank, or remove it",
                reads=(("sharing", kind),),
            )
    narrow = recipe.bottleneck
    if not (sharing.shared or sharing.own or (narrow and (narrow.shared or narrow.own))):
        yield from _without_adapter(recipe, sharing)


def _without_adapter(recipe: Recipe, sharing: SharingRecipe) -> Iterator[FieldProblem]:
    fix = "set sharing.shared or sharing.own above 0"
    reads: tuple[KeyPath, ...] = (("sharing",),)
    if not sharing.groups:
        message = "all ranks are 0, so there is nothing to train"
        yield FieldProblem(("sharing",), message, fix, reads)
        return
    members = {task for group in sharing.groups.values() for task in group.tasks}
    alone = [task for task in recipe.tasks if task not in members]
    if alone:
        message = f"no adapter for {', '.join(alone)}: shared and own are 0 and no group has them"
        yield FieldProblem(("sharing", "groups"), message, f"{fix}, or add them to a group", reads)


def _names_used_twice(recipe: Recipe) -> Iterator[FieldProblem]:
    slots: list[tuple[KeyPath, Sequence[ComponentSpec]]] = [
        (("regularization",), recipe.regularization),
        (("monitoring",), recipe.monitoring),
        (("auditing",), recipe.auditing),
    ]
    slots += [(("tasks", name, "metrics"), task.metrics) for name, task in recipe.tasks.items()]
    for path, specs in slots:
        for name, count in Counter(spec.name for spec in specs).items():
            if count > 1:
                yield FieldProblem(path, f"{name!r} stands here {count} times", "keep one", (path,))


def _stages(recipe: Recipe) -> Iterator[FieldProblem]:
    names = Counter(stage.name for stage in recipe.stages)
    for index, stage in enumerate(recipe.stages):
        path: KeyPath = ("stages", index)
        if names[stage.name] > 1:
            yield FieldProblem(
                (*path, "name"), f"two stages are called {stage.name!r}", "rename one"
            )
        for place, task in enumerate(stage.tasks):
            if task not in recipe.tasks:
                fix = did_you_mean(task, recipe.tasks)
                yield FieldProblem((*path, "tasks", place), f"no task {task!r}", fix)
            elif task in stage.tasks[:place]:
                yield FieldProblem((*path, "tasks", place), f"{task!r} stands here twice")
        if stage.max_steps is not None and stage.num_train_epochs is not None:
            yield FieldProblem(
                (*path, "max_steps"), "num_train_epochs is given too", "give one of the two"
            )
    if not recipe.stages:
        return
    if recipe.training.max_steps is not None:
        yield FieldProblem(
            ("training", "max_steps"),
            "has no meaning in a run with stages",
            "give max_steps to each stage",
            reads=(("stages",),),
        )
    trained = {task for stage in recipe.stages for task in stage.tasks}
    idle = [task for task in recipe.tasks if task not in trained]
    misspelt = trained - set(recipe.tasks)  # told above; each is one of the idle, most likely
    if len(idle) > len(misspelt) and recipe.start is None:
        yield FieldProblem(
            ("stages",),
            f"no stage trains {', '.join(idle)}",
            "name it in the tasks of a stage, or remove the task",
            reads=(("tasks",), ("stages",)),
        )


def _start(recipe: Recipe) -> Iterator[FieldProblem]:
    for new, old in recipe.start.own_from.items() if recipe.start else ():
        for task, path in ((new, ("start", "own_from")), (old, ("start", "own_from", new))):
            if task not in recipe.tasks:
                others = [name for name in recipe.tasks if task == new or name != new]
                yield FieldProblem(path, f"no task {task!r}", did_you_mean(task, others))


def _schedule(recipe: Recipe) -> Iterator[FieldProblem]:
    training = recipe.training
    if training.warmup_ratio and training.warmup_steps:
        yield FieldProblem(
            ("training", "warmup_steps"), "warmup_ratio is given too", "give one of the two"
        )
    if training.lr_scheduler_type == "constant" and (
        training.warmup_ratio or training.warmup_steps
    ):
        yield FieldProblem(
            ("training", "lr_scheduler_type"),
            "`constant` has no warm-up",
            "use constant_with_warmup, or take the warm-up away",
        )


def _best_model(recipe: Recipe) -> Iterator[FieldProblem]:
    training = recipe.training
    users = [
        key
        for key in ("load_best_model_at_end", "early_stopping_patience")
        if getattr(training, key)
    ]
    paths: list[KeyPath] = [("training", key) for key in users]
    paths += [
        ("tasks", name, "early_stopping_patience")
        for name, task in recipe.tasks.items()
        if task.early_stopping_patience
    ]
    for path in paths:
        if training.eval_steps is None:
            yield FieldProblem(
                path,
                "needs scores from during the training, and eval_steps is not set",
                "set training.eval_steps",
                reads=(("training", "eval_steps"),),
            )
    path = ("training", "metric_for_best_model")
    metric = training.metric_for_best_model
    losses = {"eval_loss", *(f"eval_{task}_loss" for task in recipe.tasks)}
    scores = {"eval_overall"} | {
        f"eval_{name}_{spec.name}" for name, task in recipe.tasks.items() for spec in task.metrics
    }
    # an evaluator may give several numbers (rouge: eval_news_rouge_l)
    is_score = metric in scores or any(
        metric.startswith(f"{score}_") for score in scores if score != "eval_overall"
    )
    if metric not in losses and not is_score:
        match = nearest(metric, losses | scores)
        known = "eval_overall, eval_loss, eval_<task>_loss or eval_<task>_<metric>"
        fix = f"did you mean {match!r}?" if match else f"use {known}"
        metrics = tuple(("tasks", task, "metrics") for task in recipe.tasks)
        yield FieldProblem(path, f"no task and metric give {metric!r}", fix, reads=metrics)
    elif users and metric == "eval_overall" and not _main_metrics(recipe):
        yield FieldProblem(
            path,
            f"{users[0]} needs eval_overall, and no main task has a metric",
            "give `metrics` to a task, or set `metric_for_best_model: eval_loss`",
            reads=tuple(("tasks", task) for task in recipe.tasks),
        )


def _main_metrics(recipe: Recipe) -> list[ComponentSpec]:
    return [spec for task in recipe.tasks.values() if task.role == "main" for spec in task.metrics]
