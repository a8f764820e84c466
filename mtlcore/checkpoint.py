"""Everything a run needs to go on as if it had never stopped, in safetensors and JSON."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mtlcore.distributed import barrier, is_main
from mtlcore.errors import UserError
from mtlcore.stages import ONLY_STAGE

if TYPE_CHECKING:
    from mtlcore.recipe import Recipe
    from mtlcore.run import Run
    from mtlcore.trainer import Trainer

ADAPTERS, OPTIMIZER, COMPONENTS, STATE = (
    "adapters.safetensors",
    "optimizer.safetensors",
    "components.safetensors",
    "state.json",
)


def checkpoint_folder(run_folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return run_folder / "checkpoints" / f"step-{step:06d}"


def checkpoints(run_folder: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first."""
    return sorted((run_folder / "checkpoints").glob("step-[0-9]*"), key=step_of)


def step_of(folder: Path) -> int:
    """The step that a checkpoint's folder is named after."""
    return int(folder.name.removeprefix("step-"))


def save(trainer: Trainer) -> Path:
    """Write a checkpoint into a folder beside its place, then rename it.

    No generator needs saving: every draw is a function of (seed, step).
    """
    run = trainer.run
    final = checkpoint_folder(run.folder, run.step)
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _save_tensors(partial / ADAPTERS, run.model.adapter_state())
    optimizer = trainer.optimizer.state_dict()["state"]
    _save_tensors(
        partial / OPTIMIZER,
        {f"{i}.{key}": value for i, state in optimizer.items() for key, value in state.items()},
    )
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for key, component in run.components.items():
        for name, value in component.state_dict().items():
            if isinstance(value, Tensor):
                tensors[f"{key}/{name}"] = value
            else:
                values.setdefault(key, {})[name] = value
    _save_tensors(partial / COMPONENTS, tensors)
    state = {
        "step": run.step,
        "tasks": [task.name for task in run.tasks],
        "rows_drawn": run.rows_drawn,
        "scheduler": trainer.scheduler.state_dict(),
        "progress": trainer.progress_state(),
        "components": values,
    }
    (partial / STATE).write_text(json.dumps(state, indent=2), encoding="utf-8")
    if final.exists():  # of this step before its stage ended
        old = final.with_name(f".{final.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(final, old)
        os.replace(partial, final)
        shutil.rmtree(old)
    else:
        os.replace(partial, final)
    return final


def restore(trainer: Trainer, folder: Path) -> None:
    """Set run and trainer to the state of a checkpoint; anything missing is an error."""
    run = trainer.run
    state = load_adapters(run, folder)
    names = [task.name for task in run.tasks]
    if state["tasks"] != names:
        raise UserError(
            f"the checkpoint's tasks are {state['tasks']}, the recipe's are {names}",
            where=str(folder),
            fix="resume with the recipe that the run was started with (recipe.yaml in its folder)",
        )
    trainer.load_progress_state(state["progress"])  # its stage, with an optimizer of its own
    saved = _load_tensors(folder / OPTIMIZER)
    grouped: dict[int, dict[str, Tensor]] = {}
    for name, value in saved.items():
        index, _, key = name.partition(".")
        grouped.setdefault(int(index), {})[key] = value
    current = trainer.optimizer.state_dict()
    trainer.optimizer.load_state_dict({"state": grouped, "param_groups": current["param_groups"]})
    trainer.scheduler.load_state_dict(state["scheduler"])
    for group, rate in zip(
        trainer.optimizer.param_groups, state["scheduler"]["_last_lr"], strict=True
    ):
        group["lr"] = rate
    saved_states = component_states(folder)
    for key, component in run.components.items():
        component.load_state_dict(saved_states.get(key, {}))
    run.rows_drawn = list(state["rows_drawn"])
    _require_best(trainer, folder)
    if is_main():
        _trim(run, "metrics.jsonl", ended=trainer.stage_ended)
        _trim(run, "audits.jsonl")
        _supersede(run)
    barrier()


def _require_best(trainer: Trainer, folder: Path) -> None:
    """The best checkpoints so far must be there: at the end of the stage it would be too late."""
    if not trainer.recipe.load_best_model_at_end:
        return
    for step in sorted(trainer.judge.best_steps):
        if not (checkpoint_folder(trainer.run.folder, step) / ADAPTERS).is_file():
            raise UserError(
                f"the best checkpoint so far, that of step {step}, is not in {trainer.run.folder}",
                where=str(folder),
                fix=f"copy it there from {folder.parent}, resume from a checkpoint that has it, or "
                "set training.load_best_model_at_end=false",
            )


def component_states(folder: Path) -> dict[str, dict[str, Any]]:
    """What each component kept, by its key in `run.components`."""
    states: dict[str, dict[str, Any]] = {
        key: dict(values) for key, values in read_state(folder)["components"].items()
    }
    for name, value in _load_tensors(folder / COMPONENTS).items():
        key, _, part = name.rpartition("/")
        states.setdefault(key, {})[part] = value
    return states


def _trim(run: Run, name: str, *, ended: bool = True) -> None:
    """Drop the lines of what comes after the checkpoint: it is about to be written again.

    That is all of later steps, and of this step what the end of a stage adds unless it has `ended`.
    """
    path = run.folder / name
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = []
        for line in lines:
            found = json.loads(line) if line.endswith("\n") else {"step": math.inf}
            if found["step"] < run.step + (ended or "combined" not in found):
                kept.append(line)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text("".join(kept), encoding="utf-8")
        os.replace(partial, path)


def _supersede(run: Run) -> None:
    """Rename checkpoints of later steps: those steps are about to be run and saved again."""
    for folder in checkpoints(run.folder):
        if step_of(folder) > run.step:
            number = 1
            while (kept := folder.with_name(f"superseded-{number}-{folder.name}")).exists():
                number += 1
            os.replace(folder, kept)
            run.note(f"{folder.name} is after the checkpoint resumed from: kept as {kept.name}")


def load_adapters(run: Run, folder: Path) -> dict[str, Any]:
    """Set the adapters and the step of a run from a checkpoint; returns its JSON state."""
    state = read_state(folder)
    require_base_model(run, folder.parents[1])
    run.model.load_adapter_state(_load_tensors(folder / ADAPTERS))
    run.step = state["step"]
    return state


def require_base_model(run: Run, folder: Path) -> None:
    """Refuse adapters of a run that was trained on another base model, where that is recorded."""
    try:
        environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        known = environment["base_model"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if known != run.base_fingerprint:
        raise UserError(
            f"the base model is not the one that {folder} was trained on: its weights or its "
            f"configuration changed ({known[:12]} then, {run.base_fingerprint[:12]} now)",
            where="model.name_or_path",
            fix="use the same base model; adapters fit no other",
        )


def read_adapters(folder: Path) -> dict[str, Tensor]:
    """All adapter weights of a checkpoint, by name."""
    return _load_tensors(folder / ADAPTERS)


def load_adapters_of(run: Run, step: int | None, *, owner: int | None = None) -> None:
    """Take the adapters of another step of this run; with `owner` only those of that one task."""
    assert step is not None
    saved = read_adapters(checkpoint_folder(run.folder, step))
    if owner is not None:
        mine = run.model.adapter_state(owner=owner).keys()
        saved = {**run.model.adapter_state(), **{name: saved[name] for name in mine}}
    run.model.load_adapter_state(saved)


def read_state(folder: Path) -> dict[str, Any]:
    """The JSON state of a checkpoint; a part that is missing is an error."""
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
        missing = {
            "step",
            "tasks",
            "rows_drawn",
            "scheduler",
            "progress",
            "components",
        } - state.keys()
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"cannot read {STATE}: {error}", where=str(folder), fix="choose another checkpoint"
        ) from error
    if missing:
        raise UserError(
            f"{STATE} lacks {', '.join(sorted(missing))}",
            where=str(folder),
            fix="choose another checkpoint",
        )
    return state


def best_step(folder: Path) -> int | None:
    """The step of the best evaluation of a stage that goes on; None if it ended or none was."""
    progress = read_state(folder)["progress"]
    if progress["stage_ended"]:  # and took the best weights itself
        return None
    best: int | None = progress["judge"]["best"]["step"]
    return best


def unfinished(run_folder: Path, recipe: Recipe, used: Path | None = None) -> str | None:
    """What to tell of a run whose last stage has not ended; None if it has.

    `used` is the checkpoint whose weights are taken, by default the newest.
    """
    newest = checkpoints(run_folder)[-1]
    progress = read_state(newest)["progress"]
    last = recipe.stages[-1].name if recipe.stages else ONLY_STAGE
    if progress["stage_ended"] and progress["stage"] == last:
        return None
    planned = f" of {progress['planned_steps']}" if "planned_steps" in progress else ""
    return (
        f"warning: the run {run_folder} is unfinished: its newest checkpoint is that of step "
        f"{step_of(newest)}{planned}; the weights used are those of step "
        f"{step_of(used or newest)}; to go on: mtlcore train {run_folder}/recipe.yaml --resume "
        "(or the verb that began it, with --resume)"
    )


def prune(run_folder: Path, keep: int | None, best: Collection[int]) -> None:
    """Delete the oldest checkpoints beyond `keep`, never one of the best."""
    if keep is None:
        return
    for folder in checkpoints(run_folder)[:-keep]:
        if step_of(folder) not in best:
            shutil.rmtree(folder)


def _save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path)


def _load_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own type, OSError and more
        raise UserError(
            f"cannot read {path.name}: {error}",
            where=str(path.parent),
            fix="choose another checkpoint",
        ) from error
