"""What a checkpoint holds of a run and its trainer, and how both go on from it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtlcore.checkpoint_store import (
    ADAPTERS,
    COMPONENTS,
    OPTIMIZER,
    STATE,
    Checkpoint,
    Snapshot,
    checkpoint_folder,
    checkpoints,
    open_checkpoint,
    step_of,
    supersede,
)
from mtlcore.commands import resume_command
from mtlcore.data.loader import Learned
from mtlcore.distributed import barrier, is_main, world_size
from mtlcore.errors import UserError, counted
from mtlcore.files import replace_text
from mtlcore.stages import ONLY_STAGE
from mtlcore.versions import versions

RESULT = "result.json"
"""In a run's folder: what it ended with; an unfinished run has none."""
SHOWN_LINES = 5

if TYPE_CHECKING:
    from mtlcore.recipe import Recipe
    from mtlcore.run import Run
    from mtlcore.trainer import Trainer


def snapshot(trainer: Trainer) -> Snapshot:
    """Copy all that a resumed run needs.

    No generator needs saving: every draw is a function of (seed, step).
    """
    run = trainer.run
    optimizer = trainer.optimizer.state_dict()["state"]
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    tensor_names: dict[str, list[str]] = {}
    for key, component in run.components.items():
        state = component.state_dict()
        tensor_names[key] = [name for name, value in state.items() if isinstance(value, Tensor)]
        tensors |= {f"{key}/{name}": state[name] for name in tensor_names[key]}
        values[key] = {k: value for k, value in state.items() if not isinstance(value, Tensor)}
    kept = {
        "step": run.step,
        "tasks": [task.name for task in run.tasks],
        "rows_drawn": run.rows_drawn,
        "scheduler": trainer.scheduler.state_dict(),
        "progress": trainer.progress_state(),
        "components": values,
        "component_tensors": tensor_names,
        "origin": _origin(run),
        "recipe": run.recipe.model_dump(mode="json"),
        "formats": {task.name: task.format.state_dict() for task in run.tasks},
        "head_options": {
            run.tasks[task].name: facts.options for task, facts in run.model.heads.facts.items()
        },
    }
    return Snapshot(
        run.step,
        {
            ADAPTERS: _copied(run.model.adapter_state()),
            OPTIMIZER: _copied(
                {
                    f"{index}.{key}": value
                    for index, moments in optimizer.items()
                    for key, value in moments.items()
                }
            ),
            COMPONENTS: _copied(tensors),
        },
        json.dumps(kept, indent=2),
    )


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()
    }


def _origin(run: Run) -> dict[str, Any]:
    """What the weights depend on beside the recipe."""
    return {
        "processes": world_size(),
        "data": {
            f"{task.name}.{name}": split.fingerprint
            for task in run.tasks
            for name, split in task.splits().items()
        },
        "base_model": run.base_fingerprint,
        "device": run.device.type,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def take_learned(run: Run, saved: Checkpoint) -> None:
    """Give a run without rows what the formats and heads took from those it was trained on."""
    state = saved.state()
    trained_on = state["origin"]["data"]
    learned = {
        name: Learned(kept, trained_on[f"{name}.train"]) for name, kept in state["formats"].items()
    }
    run.take_learned(learned, state["head_options"])


def restore(trainer: Trainer, saved: Checkpoint) -> None:
    """Set run and trainer to the state of a checkpoint; anything missing is an error."""
    run = trainer.run
    state = saved.state()
    _compare_origin(run, state["origin"])
    load_adapters(run, saved)
    trainer.load_progress_state(state["progress"])  # its stage, with an optimizer of its own
    trainer.require_steps_left()
    grouped: dict[int, dict[str, Tensor]] = {}
    for name, value in saved.tensors(OPTIMIZER).items():
        index, _, key = name.partition(".")
        grouped.setdefault(int(index), {})[key] = value
    current = trainer.optimizer.state_dict()
    trainer.optimizer.load_state_dict({"state": grouped, "param_groups": current["param_groups"]})
    trainer.scheduler.load_state_dict(state["scheduler"])
    for group, rate in zip(
        trainer.optimizer.param_groups, state["scheduler"]["_last_lr"], strict=True
    ):
        group["lr"] = rate
    component_states = saved.component_states()
    for key, component in run.components.items():
        component.load_state_dict(component_states.get(key, {}))
    run.rows_drawn = list(state["rows_drawn"])
    _require_best(trainer, saved.folder)
    if is_main():
        (run.folder / RESULT).unlink(missing_ok=True)  # it told of an end that is another now
        _trim_records(trainer)
        for folder, kept in supersede(run.folder, run.step):
            run.note(f"{folder.name} is after the checkpoint resumed from: kept as {kept.name}")
    barrier()


def _compare_origin(run: Run, then: dict[str, Any]) -> None:
    """Refuse other rows or another number of processes; tell what may change the last bits."""
    now = _origin(run)
    for key in then["data"].keys() | now["data"].keys():
        task, _, split = key.rpartition(".")
        if then["data"].get(key) != now["data"].get(key) and split != "test":  # not trained on
            raise UserError(
                f"the {split} rows of {task!r} are not those that the run was begun with",
                where=f"tasks.{task}.{split}",
                fix="bring its file back; or begin another run from the weights of this one: "
                f"start: {run.folder}",
            )
    if then["processes"] != now["processes"]:
        before = counted(then["processes"], "process", "processes")
        raise UserError(
            f"the run was begun by {before}, now there "
            f"{'is' if now['processes'] == 1 else 'are'} {now['processes']}: its steps would take "
            "other numbers of rows",
            fix=f"start it with {before} again",
        )
    changed = [
        f"{name} {then['versions'].get(name, 'unknown')} -> {version}"
        for name, version in now["versions"].items()
        if then["versions"].get(name) != version
    ]
    changed += [f"{k} {then[k]} -> {now[k]}" for k in ("device", "threads") if then[k] != now[k]]
    if changed:
        run.note(
            f"since the checkpoint was written: {', '.join(changed)}; the weights may differ in "
            "their last bits from those of a run that was not interrupted"
        )


def _require_best(trainer: Trainer, folder: Path) -> None:
    """The best checkpoints so far must be there: at the end of the stage it would be too late."""
    if not trainer.recipe.load_best_model_at_end:
        return
    for step in sorted(trainer.judge.best_steps):
        best = checkpoint_folder(trainer.run.folder, step)
        if not best.is_dir():
            raise UserError(
                f"the best checkpoint so far, that of step {step}, is not in {trainer.run.folder}",
                where=str(folder),
                fix=f"copy it there from {folder.parent}, resume from a checkpoint that has it, or "
                "set training.load_best_model_at_end=false",
            )
        open_checkpoint(best, ADAPTERS)


def begin(run: Run) -> None:
    """Clear the records of a run that was ended before its first checkpoint."""
    aside = sorted(path.name for path in (run.folder / "checkpoints").glob("superseded-*"))
    if aside or (run.folder / RESULT).exists():
        raise UserError(
            f"{run.folder} has no checkpoint any more, though it had some",
            where="training.output_dir",
            fix=f"go on from one that was set aside (--resume {run.folder}/checkpoints/{aside[-1]})"
            if aside
            else "copy one there, or train into another training.output_dir",
        )
    if is_main():
        _trim(run, "metrics.jsonl", lambda line: False)
        _trim(run, "audits.jsonl", lambda line: False)
    barrier()


def _trim_records(trainer: Trainer) -> None:
    """Drop the lines of what comes after the checkpoint: it is about to be written again.

    That is all of later steps, and of this step what was still to be done.
    """
    step, due = trainer.run.step, trainer.due

    def keep_metrics(line: dict[str, Any]) -> bool:
        if line["step"] < step:
            return True
        done = (trainer.stage_ended or "combined" not in line) and (
            "eval" not in due or "eval_loss" not in line
        )
        return bool(line["step"] == step) and done

    def keep_audits(line: dict[str, Any]) -> bool:
        return bool(line["step"] < step + ("audit" not in due))

    metrics = trainer.run.folder / "metrics.jsonl"
    if not metrics.exists() and step >= trainer.run.recipe.training.logging_steps:
        trainer.run.note(f"warning: {metrics} is missing: the record begins anew at step {step}")
    _trim(trainer.run, "metrics.jsonl", keep_metrics)
    _trim(trainer.run, "audits.jsonl", keep_audits)


def _trim(run: Run, name: str, keep: Callable[[dict[str, Any]], bool]) -> None:
    path = run.folder / name
    if not path.exists():
        return
    damaged: list[str] = []
    # By "\n" alone: texts in a line may hold other ends of lines, such as U+2028.
    *lines, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
    kept = []
    for number, line in enumerate(lines, 1):
        try:
            if keep(json.loads(line)):
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            damaged.append(f"{path}:{number}")
    if damaged:
        copy = path.with_name(f"{path.name}.damaged")
        shutil.copyfile(path, copy)
        run.note(
            f"warning: damaged lines are left out: {', '.join(damaged[:SHOWN_LINES])}"
            + (f" ({len(damaged)} in all)" if len(damaged) > SHOWN_LINES else "")
            + f"; the file as it was is {copy}"
        )
    replace_text(path, "".join(kept))


def load_adapters(run: Run, saved: Checkpoint) -> None:
    """Set the adapters and the step of a run from a checkpoint."""
    require_base_model(run, saved)
    run.model.load_adapter_state(saved.tensors(ADAPTERS))
    run.step = saved.state()["step"]


def require_base_model(run: Run, saved: Checkpoint) -> None:
    """Refuse adapters that were trained on another base model."""
    known = saved.state()["origin"]["base_model"]
    if known != run.base_fingerprint:
        raise UserError(
            f"the base model is not the one that {saved.folder} was trained on: its weights or its "
            f"configuration changed ({known[:12]} then, {run.base_fingerprint[:12]} now)",
            where="model.name_or_path",
            fix="use the same base model; adapters fit no other",
        )


def read_adapters(folder: Path) -> dict[str, Tensor]:
    """All adapter weights of a checkpoint, by name."""
    return open_checkpoint(folder, ADAPTERS).tensors(ADAPTERS)


def load_adapters_of(run: Run, step: int | None, *, owner: int | None = None) -> None:
    """Take the adapters of another step of this run; with `owner` only those of that one task."""
    assert step is not None
    saved = read_adapters(checkpoint_folder(run.folder, step))
    if owner is not None:
        mine = run.model.adapter_state(owner=owner).keys()
        saved = {**run.model.adapter_state(), **{name: saved[name] for name in mine}}
    run.model.load_adapter_state(saved)


def read_state(folder: Path) -> dict[str, Any]:
    """The JSON state of a checkpoint."""
    return open_checkpoint(folder, STATE).state()


def best_step(folder: Path) -> int | None:
    """The step of the best evaluation of a stage that goes on; None if it ended or none was."""
    progress = read_state(folder)["progress"]
    if progress["stage_ended"]:  # and took the best weights itself
        return None
    best: int | None = progress["judge"]["best"]["step"]
    return best


def has_ended(progress: Mapping[str, Any], recipe: Recipe) -> bool:
    """Whether a checkpoint with this progress is the last of its run."""
    last = recipe.stages[-1].name if recipe.stages else ONLY_STAGE
    return bool(progress["stage_ended"] and progress["stage"] == last)


def unfinished(run_folder: Path, recipe: Recipe, used: Path | None = None) -> str | None:
    """What to tell of a run whose last stage has not ended; None if it has.

    `used` is the checkpoint whose weights are taken, by default the newest.
    """
    newest = checkpoints(run_folder)[-1]
    progress = read_state(newest)["progress"]
    if has_ended(progress, recipe):
        return None
    planned = f" of {progress['planned_steps']}" if "planned_steps" in progress else ""
    return (
        f"warning: the run {run_folder} is unfinished: its newest checkpoint is that of step "
        f"{step_of(newest)}{planned}; the weights used are those of step "
        f"{step_of(used or newest)}; to go on: {resume_command(run_folder)} (or the verb that "
        "began it, with --resume)"
    )
