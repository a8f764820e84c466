"""Whether a run with a component goes on from its checkpoints as if it had never stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlcore import checkpoint
from mtlcore.checkpoint_store import checkpoint_folder, open_checkpoint
from mtlcore.hookspecs import hookimpl
from mtlcore.testing.states import JSON, StateWatch, first_difference, load_state, parts_of
from mtlcore.testing.trial import NotConformant, Trial, open_trial
from mtlcore.trainer import Trainer

if TYPE_CHECKING:
    from mtlcore.components import Component
    from mtlcore.run import Run

STAGE_STEPS = 3
LAST = 2 * STAGE_STEPS
PARTS = {
    "stages": f"[{{name: first, tasks: [sentiment, spelling], max_steps: {STAGE_STEPS}}},"
    f" {{name: second, tasks: [spelling, definitions], max_steps: {STAGE_STEPS}}}]",
    "training": "{per_device_train_batch_size: 6, learning_rate: 5e-3, max_length: 96,"
    " save_steps: 1, save_total_limit: 20, logging_steps: 1}",
}
MOMENTS = {1: "after the first step", STAGE_STEPS: "at the end of a stage"}
SEEN = ("rows", "tokens", "weights", "penalties", "losses", "grad_norms")
"""What is compared of a step's record: all that is no time and no memory."""


def check_stateful(
    cls: type[Component],
    options: Mapping[str, Any] | None = None,
    *,
    recipe: Sequence[str] = (),
) -> None:
    """Train a tiny run of two stages, resume it at several moments, and compare to the last bit.

    cls: a component class of any kind but `format`; `options` are those of its constructor.
    recipe: ``key=value`` overrides, for a component that asks something of the recipe.

    Raises NotConformant (an AssertionError) if

    * a resumed run differs: its losses, weights, rows, penalties, the component's state at the end,
      or the sections of its report;
    * `state_dict` returns what safetensors and JSON cannot hold, or what later steps change;
    * `load_state_dict({})` fails, before the first step or in a resumed run.
    """
    with open_trial(cls, options, recipe, PARTS) as trial:
        whole = trial.fresh("whole")
        load_state(cls, trial.component(whole), {})
        whole.plugins.register(_Probe(StateWatch(cls, trial.component(whole))))
        Trainer(whole).train()
        for step, moment in MOMENTS.items():
            resumed = _resume(trial, whole.folder, step, f"resumed-{step}")
            _compare(trial, whole.folder, resumed, step, moment)
        again = _resume(trial, trial.folder / "resumed-1", LAST - 1, "again")
        _compare(trial, whole.folder, again, LAST - 1, "after it was resumed once before")
        _resume(trial, whole.folder, STAGE_STEPS + 1, "forgetful", forget=True)


class _Probe:
    """Looks at the state after every step and stage, when the component has done its part."""

    def __init__(self, watch: StateWatch) -> None:
        self.watch = watch

    @hookimpl(trylast=True)
    def mtlcore_step_end(self, run: Run) -> None:
        self.watch.look(f"after step {run.step}")

    @hookimpl(trylast=True)
    def mtlcore_stage_end(self, run: Run, stage: str) -> None:
        self.watch.look(f"at the end of stage {stage!r}")


def _resume(trial: Trial, origin: Path, step: int, name: str, *, forget: bool = False) -> Run:
    """A fresh run that goes on from a step's checkpoint; with `forget` without the state."""
    run = trial.fresh(name)
    saved = checkpoint_folder(origin, step)
    start = checkpoint_folder(run.folder, step)
    shutil.copytree(saved, start)
    shutil.copy(origin / "metrics.jsonl", run.folder)
    trainer = Trainer(run)
    checkpoint.restore(trainer, open_checkpoint(start))
    if forget:
        load_state(trial.cls, trial.component(run), {})
    trainer.train()
    return run


def _compare(trial: Trial, whole: Path, run: Run, step: int, moment: str) -> None:
    """The resumed run against the one that was not interrupted."""
    for one, other in zip(_records(run.folder, step), _records(whole, step), strict=True):
        for part in SEEN:
            if difference := first_difference(one[part], other[part], part):
                raise _differs(trial, whole, step, moment, f"in step {one['step']} {difference}")
    found, wanted = _state(trial, run.folder, LAST), _state(trial, whole, LAST)
    if difference := first_difference(found, wanted, "state_dict()"):
        raise _differs(trial, whole, step, moment, f"at the end {difference}")
    if difference := first_difference(_sections(run.folder), _sections(whole), "report"):
        raise _differs(trial, whole, step, moment, f"at the end {difference}")


def _differs(trial: Trial, whole: Path, step: int, moment: str, what: str) -> NotConformant:
    held = parts_of(_state(trial, whole, step))
    return NotConformant(
        trial.cls,
        f"a run that was resumed {moment} (step {step}) goes on differently: {what}, compared with "
        "the run that was not interrupted",
        fix="return in state_dict all that the component remembers from step to step, and take it "
        f"all back in load_state_dict ({JSON}); at that step it held {held}",
    )


def _state(trial: Trial, folder: Path, step: int) -> dict[str, Any]:
    """The component's part of a checkpoint."""
    saved = open_checkpoint(checkpoint_folder(folder, step)).component_states()
    return saved.get(trial.key, {})


def _records(folder: Path, step: int) -> list[dict[str, Any]]:
    """What was told of the steps after this one."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line for line in map(json.loads, lines) if "losses" in line and line["step"] > step]


def _sections(folder: Path) -> Any:
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))["sections"]
