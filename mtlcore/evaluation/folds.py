"""Cross-validation: every row of a task is an eval row once, and a train row k - 1 times.

A Study of Cross-Validation and Bootstrap for Accuracy Estimation and Model Selection (Kohavi,
IJCAI 1995), https://www.ijcai.org/Proceedings/95-2/Papers/016.pdf

The rows are those of the task's train and eval split; test rows stay out of all folds. Each fold
is written once as JSON lines, and the run of fold i is an ordinary run whose recipe names fold i
as its eval file and the others as its train files. With early stopping, or the best model at the
end, a fold's score is that of rows which helped to choose the step, and so a little too good.
"""

from __future__ import annotations

import gc
import json
import shutil
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlcore import api, checkpoint
from mtlcore.checkpoint_store import checkpoints
from mtlcore.data.sources import load_rows
from mtlcore.data.tasks import Task, load_tasks
from mtlcore.distributed import barrier, is_main, join_processes
from mtlcore.errors import MtlcoreError, UserError, counted, did_you_mean
from mtlcore.evaluation.kept import KeptRun
from mtlcore.evaluation.scores import Scores, TaskScore
from mtlcore.files import replace_text
from mtlcore.plugins import PluginManager
from mtlcore.recipe import Recipe
from mtlcore.recipe_file import LoadedRecipe
from mtlcore.run import RECIPE, load_tokenizer, write_json

if TYPE_CHECKING:
    from rich.table import Table

FOLDER, RESULT = "cv", "cv.json"
MAY_CHANGE = (
    "output_dir", "per_device_eval_batch_size", "logging_steps", "save_steps", "save_total_limit",
    "report_to", "run_name",
)  # fmt: skip
"""Keys of `training` that may differ between folds: a mean needs folds of the same training."""
NO_COLUMN = "none"
"""As `stratify`: do not keep the shares of the labels."""


@dataclass
class TaskFolds:
    """The rows of one task, dealt to folds."""

    task: str
    rows: list[dict[str, Any]]
    fold_of: list[int]
    """[rows] the fold, from 0."""
    test: list[dict[str, Any]]
    by: str | None
    stratify: str | None

    def rows_of(self, fold: int) -> list[dict[str, Any]]:
        """The rows of one fold, in the order of their files."""
        return [row for row, its in zip(self.rows, self.fold_of, strict=True) if its == fold]


def cross_validate(
    loaded: LoadedRecipe,
    folds: int = 5,
    *,
    by: str | None = None,
    stratify: str | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Train and score k runs; mean and standard deviation per task go to ``cv.json``.

    `by`: column whose equal values stay in one fold. `stratify`: column whose shares are the same
    in every fold; by default that of the labels, "none" for no column. Where they are not given, a
    task's own `split.by` and `split.stratify` hold. The runs lie in ``cv/fold-1`` ... of the
    recipe's run folder. All that can be wrong with the folds is said before any training.
    With `resume` folds that were scored are kept, and the interrupted one goes on.
    """
    folder = loaded.output_dir / FOLDER
    if folder.exists() and not resume:
        raise UserError(
            f"{folder} already holds a cross-validation",
            fix="go on with --resume, choose another training.output_dir, or delete the folder",
        )
    if resume and not folder.exists():
        raise UserError(
            f"there is no cross-validation in {folder}", fix="start it without --resume first"
        )
    plans = plan_folds(loaded.recipe, folds, by=by, stratify=stratify)
    join_processes()
    write_folds(plans, folds, folder / "data", keep=any(folder.glob("fold-*")))
    barrier()
    recipes = [fold_recipe(loaded.recipe, plans, fold, folds, folder) for fold in range(folds)]
    try:  # a fold whose rows cannot be read is found before the first is trained
        for recipe in recipes:
            _load(recipe)
    except MtlcoreError:
        if is_main() and not any(folder.glob("fold-*")):
            shutil.rmtree(folder)
        raise
    scores = []
    for recipe in recipes:
        scores.append(_run_fold(replace(loaded, recipe=recipe)))
        gc.collect()  # one model at a time: modules and hooks refer to each other
    found = summary(plans, scores)
    if is_main():
        write_json(loaded.output_dir / RESULT, found)
    return found


def _run_fold(loaded: LoadedRecipe) -> Scores:
    """Train and score one fold, from where it was left; or what it was scored, if it was."""
    folder = loaded.output_dir
    if (folder / RECIPE).is_file():
        before = api.recorded_recipe(folder)
        api.require_same_recipe(loaded.recipe, before, folder / RECIPE, MAY_CHANGE)
        if checkpoints(folder) and (found := _kept_scores(folder)) is not None:
            return found
    trainer = api.prepare(loaded, resume=folder.exists())
    with loaded.locating_errors():
        trainer.train()
    return trainer.run.evaluate("eval", save_as="eval")


def _kept_scores(folder: Path) -> Scores | None:
    """The scores of a fold that was trained to its end and scored; else None."""
    kept = KeptRun(folder, "eval")
    if kept.unfinished is not None:
        return None
    try:
        file = folder / "predictions" / "eval" / "scores.json"
        found = json.loads(file.read_text(encoding="utf-8"))
        if not (folder / checkpoint.RESULT).is_file() or found["step"] != kept.step:
            return None
        tasks = {name: _task_score(kept, name, values) for name, values in found["tasks"].items()}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Scores(found["split"], tasks, kept.aggregator.aggregate)


def _task_score(kept: KeptRun, task: str, found: dict[str, Any]) -> TaskScore:
    metrics = {name: v for name, v in found.items() if name not in ("loss", "rows", "interval")}
    first = next(iter(kept.evaluators[task]), None)
    return TaskScore(
        loss=found["loss"],
        rows=found["rows"],
        metrics=metrics,
        primary=first.name if first else None,
        value=first.normalized(metrics[first.name]) if first else None,
        auxiliary=kept.is_auxiliary(task),
    )


def plan_folds(
    recipe: Recipe, folds: int, *, by: str | None = None, stratify: str | None = None
) -> list[TaskFolds]:
    """Deal the rows of every task with rows of its own; UserError where that cannot be done."""
    if folds < 2:
        raise UserError(
            f"{folds} folds leave nothing to learn", where="--folds", fix="give 2 or more"
        )
    own = [task for task in _load(recipe) if task.recipe.train.inputs_of is None]
    return [_plan(recipe, task, folds, by, stratify) for task in own]


def _load(recipe: Recipe) -> list[Task]:
    plugins = PluginManager.load(local=recipe.plugins.load, disable=recipe.plugins.disable)
    return load_tasks(recipe, load_tokenizer(recipe), plugins)


def _plan(
    recipe: Recipe, task: Task, folds: int, by: str | None, stratify: str | None
) -> TaskFolds:
    given = recipe.tasks[task.name]
    rows = _raw_rows(task, "train") + (_raw_rows(task, "eval") if task.eval is not None else [])
    column = stratify or given.split.stratify or _label_column(task)
    plan = TaskFolds(
        task=task.name,
        rows=rows,
        fold_of=[],
        test=_raw_rows(task, "test") if task.test is not None else [],
        by=by or given.split.by,
        stratify=None if column == NO_COLUMN else column,
    )
    for option, name in (("--by", plan.by), ("--stratify", plan.stratify)):
        columns = {key for row in rows for key in row}
        if name is not None and name not in columns:
            raise UserError(
                f"the rows of task {task.name!r} have no column {name!r}",
                where=option,
                fix=did_you_mean(name, columns),
            )
    _require_enough(plan, folds)
    seed = recipe.training.seed if given.split.seed is None else given.split.seed
    plan.fold_of = _deal(plan, folds, seed)
    for fold in range(folds):
        if fold not in plan.fold_of:
            raise UserError(
                f"task {task.name!r}: fold {fold + 1} of {folds} would be empty, because the "
                f"values of {plan.by!r} are of very unlike size",
                where="--folds",
                fix="use fewer folds, or another column",
            )
    return plan


def _raw_rows(task: Task, split: str) -> list[dict[str, Any]]:
    """The rows of a split as its file has them: those that were used, each once."""
    examples = getattr(task, split)
    source = getattr(task.recipe, split) or task.recipe.train  # held out of train
    rows = load_rows(source, task.name, f"tasks.{task.name}.{split}")
    return [rows[example.row] for example in examples]


def _label_column(task: Task) -> str | None:
    """The file's column of the label, for formats that have one."""
    column = task.format.label_column
    return task.recipe.columns.get(column, column) if column else None


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _require_enough(plan: TaskFolds, folds: int) -> None:
    count = len(plan.rows)
    if count < folds:
        raise UserError(
            f"task {plan.task!r} has {counted(count, 'row')}, too few for {folds} folds",
            where="--folds",
            fix=f"use at most {count} folds" if count > 1 else "add rows",
        )
    if plan.by is not None:
        groups = len({_key(row.get(plan.by)) for row in plan.rows})
        if groups < folds:
            raise UserError(
                f"task {plan.task!r} has {groups} values of {plan.by!r}, too few for {folds} folds",
                where="--folds",
                fix=f"use at most {groups} folds, or another column"
                if groups > 1
                else "leave --by",
            )
    if plan.stratify is not None:
        counts = Counter(_key(row.get(plan.stratify)) for row in plan.rows)
        value, least = min(counts.items(), key=lambda item: (item[1], item[0]))
        if least < folds:
            raise UserError(
                f"task {plan.task!r} has {least} rows with {plan.stratify} = {value}, too few for "
                f"{folds} folds with equal shares",
                where="--folds",
                fix="use fewer folds, add rows of it, or give --stratify none",
            )


def _deal(plan: TaskFolds, folds: int, seed: int) -> list[int]:
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    kinds = {
        (False, False): KFold,
        (False, True): StratifiedKFold,
        (True, False): GroupKFold,
        (True, True): StratifiedGroupKFold,
    }
    kind = kinds[plan.by is not None, plan.stratify is not None]
    dealer = kind(n_splits=folds, shuffle=True, random_state=seed % 2**32)
    labels = [_key(row.get(plan.stratify)) for row in plan.rows] if plan.stratify else None
    groups = [_key(row.get(plan.by)) for row in plan.rows] if plan.by else None
    fold_of = [-1] * len(plan.rows)
    for fold, (_, mine) in enumerate(dealer.split(plan.rows, labels, groups)):
        for row in mine.tolist():
            fold_of[row] = fold
    return fold_of


def write_folds(
    plans: Sequence[TaskFolds], folds: int, folder: Path, *, keep: bool = False
) -> None:
    """``<task>/fold-1.jsonl`` ..., ``<task>/test.jsonl``; UserError for what JSON cannot hold.

    With `keep` runs have begun on them: then they must be what they were.
    """
    texts: dict[Path, str] = {}
    for plan in plans:
        parts = {f"fold-{fold + 1}.jsonl": plan.rows_of(fold) for fold in range(folds)}
        if plan.test:
            parts["test.jsonl"] = plan.test
        for name, rows in parts.items():
            texts[folder / plan.task / name] = "".join(_line(row, plan.task) for row in rows)
    for path, text in texts.items():
        if keep and not (path.is_file() and path.read_bytes() == text.encode()):
            raise UserError(
                f"the folds are not those of the cross-validation to be resumed: {path} differs",
                fix="give the same --folds, --by, --stratify and rows, or choose another "
                "training.output_dir",
            )
        if not keep and is_main():
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_text(path, text)


def _line(row: dict[str, Any], task: str) -> str:
    try:
        return json.dumps(row, ensure_ascii=False) + "\n"
    except (TypeError, ValueError):
        column = next(key for key, value in row.items() if not _is_json(value))
        raise UserError(
            f"column {column!r} of task {task!r} holds {type(row[column]).__name__}, which a JSON "
            "file cannot hold",
            where=f"tasks.{task}.train",
            fix="turn the column into text or numbers, or remove it",
        ) from None


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def fold_recipe(
    recipe: Recipe, plans: Sequence[TaskFolds], fold: int, folds: int, folder: Path
) -> Recipe:
    """The recipe that evaluates on one fold and learns from the others."""
    data = recipe.model_dump(mode="json")
    for plan in plans:
        place = (folder / "data" / plan.task).absolute()
        names = [f"fold-{number + 1}.jsonl" for number in range(folds)]
        held_out = names.pop(fold)
        data["tasks"][plan.task] |= {
            "train": {"path": str(place), "data_files": names},
            "eval": str(place / held_out),
            "test": str(place / "test.jsonl") if plan.test else None,
            "split": {"eval": 0, "test": 0},
            "max_rows": None,  # the rows were drawn before they were dealt
        }
    data["training"]["output_dir"] = str(folder / f"fold-{fold + 1}")
    if recipe.training.run_name is not None:
        data["training"]["run_name"] = f"{recipe.training.run_name}-fold-{fold + 1}"
    return Recipe.model_validate(data)


def summary(plans: Sequence[TaskFolds], scores: Sequence[Scores]) -> dict[str, Any]:
    """Values of all folds, their mean and standard deviation (of the sample, k - 1)."""
    tasks: dict[str, Any] = {}
    for plan in plans:
        found = [score.by_task[plan.task] for score in scores]
        primary = found[0].primary
        tasks[plan.task] = {
            "rows": len(plan.rows),
            "by": plan.by,
            "stratify": plan.stratify,
            "metric": primary or "loss",
            **_spread([f.metrics[primary] if primary else f.loss for f in found]),
            "metrics": {
                name: _spread([score.metrics[name] for score in found]) for name in found[0].metrics
            },
            "loss": _spread([score.loss for score in found]),
        }
    overall = [score.overall for score in scores if score.overall is not None]
    return {
        "folds": len(scores),
        "split": "eval",
        "tasks": tasks,
        "overall": _spread(overall) if overall else None,
        "loss": _spread([score.loss for score in scores]),
    }


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "values": list(values),
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values),
    }


def table(found: dict[str, Any]) -> Table:
    """A rich table: mean and standard deviation of every metric over the folds."""
    from rich.table import Table

    result = Table(title=f"{found['folds']} folds: mean and standard deviation")
    for column in ("task", "rows", "metric", "mean", "std", "folds"):
        right = column not in ("task", "metric", "folds")
        result.add_column(column, justify="right" if right else "left")

    def add(first: str, rows: str, name: str, spread: dict[str, Any]) -> None:
        values = " ".join(f"{value:.3f}" for value in spread["values"])
        result.add_row(first, rows, name, f"{spread['mean']:.3f}", f"{spread['std']:.3f}", values)

    for task, values in found["tasks"].items():
        parts = {**values["metrics"], "loss": values["loss"]}
        for place, (name, spread) in enumerate(parts.items()):
            add(task if place == 0 else "", str(values["rows"]) if place == 0 else "", name, spread)
    result.add_section()
    if found["overall"] is not None:
        add("all", "", "overall", found["overall"])
    add("" if found["overall"] else "all", "", "loss", found["loss"])
    return result
