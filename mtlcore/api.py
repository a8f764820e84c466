"""What Python users call: train a recipe, load a run."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtlcore import checkpoint, checkpoint_store
from mtlcore.checkpoint_store import Checkpoint, open_checkpoint
from mtlcore.distributed import barrier, is_main, join_processes
from mtlcore.errors import UserError, require_tasks
from mtlcore.plugins import changed_plugins
from mtlcore.recipe import Recipe
from mtlcore.recipe_file import LoadedRecipe, read_recipe, recipe_from_mapping
from mtlcore.run import ENVIRONMENT, RECIPE, Run
from mtlcore.run_folder import require_no_run, require_writable
from mtlcore.run_lock import RunLock
from mtlcore.start import take_over, unfinished_start
from mtlcore.system_errors import telling_disk_errors, telling_memory_of_loading
from mtlcore.terminal import outliving_readers
from mtlcore.trainer import Trainer


def train(
    recipe: str | Path | Mapping[str, Any] | LoadedRecipe,
    overrides: Sequence[str] = (),
    *,
    resume: bool | str | Path = False,
) -> Run:
    """Train a recipe and return the finished run.

    The recipe is a YAML file, a mapping of the same form, or one that `read_recipe` has read (then
    with its overrides). `overrides` are ``key=value`` strings, such as
    ``"training.learning_rate=1e-4"``. `resume=True` goes on from the newest checkpoint in the run's
    folder, a path from that checkpoint; without it a folder that already holds a run is an error.
    """
    loaded = _read(recipe, overrides)
    trainer = prepare(loaded, resume=resume)
    with loaded.locating_errors():
        trainer.train()
    return trainer.run


@outliving_readers()
def prepare(loaded: LoadedRecipe, *, resume: bool | str | Path = False) -> Trainer:
    """A run that is ready to train: fresh, or at the checkpoint to go on from.

    It holds the lock of a folder that is there already until it was trained.
    """
    folder = loaded.output_dir
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file", where="training.output_dir", fix="give a folder")
    if not folder.is_dir():  # else its lock will tell
        require_writable(folder)
    join_processes()
    lock = RunLock(folder)
    try:
        with telling_disk_errors(folder), telling_memory_of_loading():
            if folder.is_dir():
                lock.acquire()
            return _prepared(loaded, lock, resume)
    except BaseException:
        lock.release()
        raise


def _prepared(loaded: LoadedRecipe, lock: RunLock, resume: bool | str | Path) -> Trainer:
    folder, notes = loaded.output_dir, list(loaded.notes)
    saved = _checkpoint_to_resume(loaded, resume, notes)
    if saved is not None:
        notes += require_same_recipe(loaded.recipe, saved.state()["recipe"], saved.folder)
    elif resume and (folder / RECIPE).is_file():
        notes += require_same_recipe(loaded.recipe, recorded_recipe(folder), folder / RECIPE)
    with loaded.locating_errors():
        if saved is None:
            notes = [*unfinished_start(loaded.recipe), *notes]
        run = Run(loaded.recipe, folder, notes=notes)
        run.lock = lock
        if saved is None and run.recipe.start is not None:
            take_over(run)
    trainer = Trainer(run)
    if saved is not None:
        for missing in _missing_records(trainer, saved):
            run.note(f"warning: {missing}; it is written anew")
        checkpoint.restore(trainer, saved)
        run.note(f"resumed from {saved.folder} at step {run.step}")
        for change in _changed_plugins(run):
            run.note(f"warning: since the run was started, {change}")
    elif resume:
        checkpoint.begin(run)
    return trainer


def _missing_records(trainer: Trainer, saved: Checkpoint) -> list[str]:
    """Which files are not in the run's folder any more, though they were written before."""
    run, state = trainer.run, saved.state()
    progress = state["progress"]
    planned = progress["stage_start"] + trainer.stages[-1].steps
    told = {
        RECIPE: "the recipe is compared with that of the checkpoint",
        ENVIRONMENT: "what it told of the start of the run, such as its plugins, is not compared",
    }
    # With more steps to come, an earlier try to go on has taken the result away.
    if checkpoint.has_ended(progress, run.recipe) and state["step"] >= planned:
        told[checkpoint.RESULT] = "the run had come to its end"
    return [
        f"{run.folder / name} is missing ({what})"
        for name, what in told.items()
        if not (run.folder / name).exists()
    ]


def _changed_plugins(run: Run) -> list[str]:
    """What the record of the interrupted run says of its plugins, against what is active now."""
    try:
        record = json.loads((run.folder / ENVIRONMENT).read_text(encoding="utf-8"))
        return changed_plugins(record["plugins"], run.plugins.active())
    except FileNotFoundError:
        return []
    except (OSError, ValueError, LookupError, TypeError) as error:
        return [f"{ENVIRONMENT} cannot be read, so its plugins were not compared ({error})"]


def _read(
    recipe: str | Path | Mapping[str, Any] | LoadedRecipe, overrides: Sequence[str]
) -> LoadedRecipe:
    if isinstance(recipe, LoadedRecipe):
        return recipe
    if isinstance(recipe, Mapping):
        return recipe_from_mapping(recipe, overrides)
    return read_recipe(recipe, overrides)


MAY_CHANGE = (
    "output_dir", "max_steps", "num_train_epochs", "per_device_eval_batch_size", "logging_steps",
    "eval_steps", "eval_max_rows", "eval_metrics", "save_steps", "save_total_limit",
    "load_best_model_at_end", "metric_for_best_model", "greater_is_better",
    "early_stopping_patience", "report_to", "run_name", "on_nonfinite_loss",
    "loss_watchdog_threshold", "loss_watchdog_patience",
)  # fmt: skip
"""Keys of `training` that a resumed run may change: no finite step depends on them."""


def recorded_recipe(folder: Path) -> dict[str, Any]:
    """The recipe that a run's folder keeps, as plain data."""
    recipe = read_recipe(folder / RECIPE, check_files=False).recipe
    return recipe.model_dump(mode="json")


def require_same_recipe(
    recipe: Recipe,
    before: Mapping[str, Any],
    where: Path,
    may_change: Collection[str] = MAY_CHANGE,
) -> list[str]:
    """Refuse to go on with another seed, split, rank, method ...: that would be another run.

    `before` is the recipe so far, as plain data, recorded in `where`. Returns what is told of the
    keys that were changed and may be.
    """
    then, now = _flat(before), _flat(recipe.model_dump(mode="json"))
    changed = {
        key: f"{key}: {then.get(key, 'unset')} -> {now.get(key, 'unset')}"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key)
    }
    allowed = {f"training.{key}" for key in may_change}
    if refused := [line for key, line in changed.items() if key not in allowed]:
        raise UserError(
            "the recipe is not that of the run to be resumed:\n  " + "\n  ".join(refused),
            where=str(where),
            fix="resume with recipe.yaml in the folder of that run, or repeat the key=value "
            "arguments of its first start; for another run from its weights name its folder under "
            "`start` and give another training.output_dir",
        )
    return [f"changed since the run was begun: {line}" for line in changed.values()]


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    if not isinstance(value, Mapping) or not value:
        return {path: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{path}.{key}" if path else str(key))
    return found


def _checkpoint_to_resume(
    loaded: LoadedRecipe, resume: bool | str | Path, notes: list[str]
) -> Checkpoint | None:
    """Which checkpoint to start from, if any; refuses to train over an existing run.

    What the user should know of the choice is added to `notes`.
    """
    folder = loaded.output_dir
    if not resume:
        require_no_run(folder)
        return None
    if is_main():
        checkpoint_store.finish_interrupted_write(folder)
    barrier()
    if isinstance(resume, str | Path) and str(resume) != "auto":
        if not any((Path(resume) / file).exists() for file in checkpoint_store.FILES):
            raise UserError(
                f"{resume} is no checkpoint",
                fix="give a folder like runs/x/checkpoints/step-000200",
            )
        return open_checkpoint(Path(resume))
    with_best = loaded.recipe.training.load_best_model_at_end
    newest, passed_over = checkpoint_store.newest_good(folder, with_best=with_best)
    if newest is not None:
        notes += [f"warning: {told}" for told in passed_over]
        return newest
    if passed_over:
        raise UserError(
            "no checkpoint can be gone on from:\n  " + "\n  ".join(passed_over),
            where=str(folder),
            fix="copy a good one there, or train anew into another training.output_dir",
        )
    notes.append(f"there is no checkpoint in {folder} yet: the run begins at step 0")
    return None


def load(folder: str | Path, *, step: int | None = None, tasks: Iterable[str] = ()) -> Run:
    """Load a finished (or interrupted) run with the adapters it ended with.

    That is the newest checkpoint, or of an interrupted run that asks for it the best one; `step`
    picks another. A note tells that a run is unfinished. `tasks` are names that it must have, which
    is seen to before the model is loaded.
    The tasks' rows are read only when an evaluation asks for them; label sets are those that the
    run was trained with, whatever its files hold now.
    """
    folder = Path(folder)
    if not (folder / RECIPE).is_file():
        raise UserError(f"{folder} holds no run", fix="give the folder of a run, e.g. runs/demo")
    loaded = read_recipe(folder / RECIPE, check_files=False)
    require_tasks(tasks, loaded.recipe.tasks)
    chosen = checkpoint_to_load(folder, loaded.recipe, step)
    saved = open_checkpoint(chosen, checkpoint_store.ADAPTERS, checkpoint_store.STATE)
    with loaded.locating_errors(), telling_memory_of_loading():
        run = Run(loaded.recipe, folder, splits=())
        checkpoint.take_learned(run, saved)
    checkpoint.load_adapters(run, saved)
    if told := checkpoint.unfinished(folder, loaded.recipe, chosen):
        run.note(told)
    return run


def checkpoint_to_load(folder: Path, recipe: Recipe, step: int | None) -> Path:
    found = checkpoint_store.checkpoints(folder)
    if step is not None:
        chosen = checkpoint_store.checkpoint_folder(folder, step)
        if chosen not in found:
            steps = ", ".join(path.name for path in found) or "none"
            raise UserError(f"{folder} has no checkpoint of step {step}", fix=f"it has: {steps}")
        return chosen
    if not found:
        raise UserError(f"{folder} has no checkpoint", fix="train it first (mtlcore train)")
    if recipe.training.load_best_model_at_end:
        best = checkpoint.best_step(found[-1])
        if best is not None:
            return checkpoint_store.checkpoint_folder(folder, best)
    return found[-1]
