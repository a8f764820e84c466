"""The checkpoints of a run on the disk: written whole or not at all, verified before they are read.

A checkpoint is a folder of safetensors and JSON, sealed by a manifest (`mtlcore.manifest`). It is
written under a hidden name, synced, and then renamed, so that whatever ends the process, the folder
`step-000200` is complete or is not there.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mtlcore import manifest
from mtlcore.files import naming, sync
from mtlcore.manifest import DamagedError

ADAPTERS, OPTIMIZER, COMPONENTS, STATE = (
    "adapters.safetensors",
    "optimizer.safetensors",
    "components.safetensors",
    "state.json",
)
FILES = (ADAPTERS, OPTIMIZER, COMPONENTS, STATE)
STATE_KEYS = {
    "step", "tasks", "rows_drawn", "scheduler", "progress", "components", "component_tensors",
    "origin", "recipe", "formats", "head_options",
}  # fmt: skip
_NAME = re.compile(r"step-\d+")


@dataclass
class Snapshot:
    """What a checkpoint will hold, copied, so that training can go on while it is written."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    """File name -> tensors on the CPU by name."""
    state: str
    """The text of state.json."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files were verified; `open_checkpoint` makes one."""

    folder: Path

    def state(self) -> dict[str, Any]:
        """What is kept as JSON: step, tasks, progress, states of components ..."""
        state: dict[str, Any] = json.loads((self.folder / STATE).read_text(encoding="utf-8"))
        if missing := STATE_KEYS - state.keys():
            raise DamagedError(
                f"{STATE} lacks {', '.join(sorted(missing))}",
                where=str(self.folder),
                fix="it was written by another version of mtlcore: train with that one",
            )
        if _NAME.fullmatch(self.folder.name) and step_of(self.folder) != state["step"]:
            raise DamagedError(
                f"it holds step {state['step']}, not that of its name",
                where=str(self.folder),
                fix=f"give the folder its name back: step-{state['step']:06d}",
            )
        return state

    def tensors(self, file: str) -> dict[str, Tensor]:
        """The tensors of one of its files, by name, on the CPU."""
        return load_file(self.folder / file)

    def component_states(self) -> dict[str, dict[str, Any]]:
        """What each component kept, by its key in `run.components`."""
        state, tensors = self.state(), self.tensors(COMPONENTS)
        return {
            key: values
            | {name: tensors[f"{key}/{name}"] for name in state["component_tensors"][key]}
            for key, values in state["components"].items()
        }


def open_checkpoint(folder: Path, *names: str) -> Checkpoint:
    """Verify the files `names` of a checkpoint, by default all; DamagedError if one is not right.

    Of a checkpoint that was opened with names only those files may be read.
    """
    manifest.verify(folder, names or FILES)
    return Checkpoint(folder)


def checkpoint_folder(run_folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return run_folder / "checkpoints" / f"step-{step:06d}"


def checkpoints(run_folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; they may be damaged."""
    found = (run_folder / "checkpoints").glob("step-*")
    return sorted((path for path in found if _NAME.fullmatch(path.name)), key=step_of)


def step_of(folder: Path) -> int:
    """The step that a checkpoint's folder is named after."""
    return int(folder.name.removeprefix("step-"))


def newest_until(run_folder: Path, step: int) -> Path | None:
    """The newest checkpoint of a step or one before it; it may be damaged."""
    found = [folder for folder in checkpoints(run_folder) if step_of(folder) <= step]
    return found[-1] if found else None


def newest_good(run_folder: Path, *, with_best: bool) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and why newer ones were passed over.

    `with_best`: those that hold the best weights so far, which a run that ends with its best
    weights will want, must verify too.
    """
    passed_over = []
    for folder in reversed(checkpoints(run_folder)):
        try:
            found = open_checkpoint(folder)
            best = best_steps(found.state())
            for step in sorted(best) if with_best else ():
                open_checkpoint(checkpoint_folder(run_folder, step), ADAPTERS)
        except DamagedError as error:
            whose = (
                "" if error.problem.where == str(folder) else f"{Path(error.problem.where).name} "
            )
            passed_over.append(f"{folder.name} is passed over: {whose}{error.problem.message}")
        else:
            return found, passed_over
    return None, passed_over


def best_steps(state: Mapping[str, Any]) -> set[int]:
    """The steps whose checkpoints hold somebody's best weights, as a checkpoint remembers them."""
    judge = state["progress"]["judge"]
    found = {best["step"] for best in (judge["best"], *judge["tasks"].values())}
    return {step for step in found if step is not None}


def write(run_folder: Path, snapshot: Snapshot) -> Path:
    """Write a checkpoint whole, or not at all; it is on the disk when this returns."""
    final = checkpoint_folder(run_folder, snapshot.step)
    partial = _hidden(final, "partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for name, tensors in snapshot.tensors.items():
            _save_tensors(tensors, partial / name)
        with naming(partial / STATE):
            (partial / STATE).write_text(snapshot.state, encoding="utf-8")
        manifest.seal(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # a full disk needs the space
        raise
    old = _set_aside(final) if final.exists() else None  # the same step before its stage ended
    os.replace(partial, final)
    sync(final.parent)
    sync(run_folder)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # it wraps what the system said: "... (os error 28)"
        found = re.search(r"os error (\d+)", str(error))
        number = int(found[1]) if found else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error


def finish_interrupted_write(run_folder: Path) -> None:
    """Do the renames that a killed process did not come to, and remove what it began to write."""
    for partial in (run_folder / "checkpoints").glob(".step-*.partial"):
        final = partial.with_name(partial.name.removeprefix(".").removesuffix(".partial"))
        try:
            manifest.verify(partial)
        except DamagedError:
            shutil.rmtree(partial)
        else:  # complete; one of the same step before its stage ended may still be in its place
            if final.exists():
                shutil.rmtree(partial)
            else:
                os.replace(partial, final)
    for old in (run_folder / "checkpoints").glob(".step-*.old"):
        shutil.rmtree(old)


def supersede(run_folder: Path, step: int) -> Iterable[tuple[Path, Path]]:
    """Rename the checkpoints of later steps, which are about to be run and saved again.

    Gives the old and new path of each.
    """
    for folder in checkpoints(run_folder):
        if step_of(folder) > step:
            number = 1
            while (kept := folder.with_name(f"superseded-{number}-{folder.name}")).exists():
                number += 1
            os.replace(folder, kept)
            yield folder, kept


def prune(run_folder: Path, keep: int | None, best: Collection[int]) -> None:
    """Delete the oldest checkpoints beyond `keep`, never one of the best."""
    if keep is None:
        return
    for folder in checkpoints(run_folder)[:-keep]:
        if step_of(folder) not in best:
            if folder.is_symlink():  # put there by hand; what it leads to is not ours
                folder.unlink()
                continue
            old = _set_aside(folder)  # at once: half a checkpoint would be a damaged one
            shutil.rmtree(old)


def _set_aside(folder: Path) -> Path:
    """Give a checkpoint the hidden name under which it waits for its end."""
    old = _hidden(folder, "old")
    shutil.rmtree(old, ignore_errors=True)  # of a process that was killed here
    os.replace(folder, old)
    return old


def _hidden(final: Path, what: str) -> Path:
    return final.with_name(f".{final.name}.{what}")
