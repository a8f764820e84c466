"""Whether a sampler or a row chooser plans the same rows whatever happens around it."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mtlcore.components import Sampler, rows_per_step
from mtlcore.data.batches import draw_rows
from mtlcore.errors import MtlcoreError, UserError
from mtlcore.stages import plan_stages
from mtlcore.testing.processes import in_processes
from mtlcore.testing.stateful import check_stateful
from mtlcore.testing.states import JSON, State, StateWatch, first_difference, load_state, parts_of
from mtlcore.testing.trial import NotConformant, Trial, disturb, open_trial

if TYPE_CHECKING:
    from mtlcore.components import Component
    from mtlcore.run import Run

Plan = list[dict[str, list[int]]]
"""The row ids of each task, step by step."""

STAGE_STEPS = 6
STEPS = 3 * STAGE_STEPS  # the second stage is twice as long: one of its tasks stops half way
STOPS = 2 * STAGE_STEPS
STOPPING = "sentiment"
ROWS = 12
PARTS = {
    "stages": f"[{{name: first, tasks: [sentiment, spelling], max_steps: {STAGE_STEPS}}},"
    f" {{name: second, tasks: [sentiment, spelling, definitions],"
    f" max_steps: {STEPS - STAGE_STEPS}}}]",
    "training": f"{{per_device_train_batch_size: {ROWS}, max_length: 96}}",
}


def check_sampler(
    cls: type[Component],
    options: Mapping[str, Any] | None = None,
    *,
    recipe: Sequence[str] = (),
) -> None:
    """Plan a run of two stages over and over: uninterrupted, disturbed, resumed, on two processes.

    cls: a class of kind `sampling` or `rows`; `options` are those of its constructor. A chooser
    chooses the rows of one task, which has labels and the columns `text` and `label`.
    recipe: ``key=value`` overrides, for a component that asks something of the recipe.

    In the second stage a third task joins; half way through it another one stops. Raises
    NotConformant (an AssertionError) if

    * the counts of a step do not sum to `rows_per_step`, or a task that is not trained has rows;
    * a task gets far fewer or more rows than `shares` says;
    * two fresh runs differ while others use the generators of random, numpy and torch;
    * the plan changes with the number of micro-batches or of processes;
    * a run that is resumed at any kind of moment plans other rows, once or again and again;
    * `check_stateful` finds something.
    """
    if cls.kind not in ("sampling", "rows"):
        raise UserError(
            f"{cls.__name__} is of kind {cls.kind!r} and plans no rows",
            fix="use check_stateful (or check_weighting)",
        )
    with open_trial(cls, options, recipe, PARTS) as trial:
        checks = _Checks(trial)
        checks.fresh_runs()
        checks.micro_batches()
        checks.resumed_runs()
        checks.often_resumed_run()
        checks.processes()
    check_stateful(cls, options, recipe=recipe)


@dataclass(frozen=True)
class _Saved:
    """What a checkpoint after so many steps would hold."""

    step: int
    state: State
    rows_drawn: list[int]


class _Checks:
    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.plan: Plan = []
        self.saved: list[_Saved] = []

    def fresh_runs(self) -> None:
        """The plan that all others must equal; each step is looked at by itself."""
        run = self._started(None)
        watch = StateWatch(self.trial.cls, self.trial.component(run))
        promised: list[list[float]] = []  # [steps, T]
        for step in range(STEPS):
            self.saved.append(_Saved(step, watch.look(f"before step {step}"), [*run.rows_drawn]))
            disturb(step)
            promised.append(self._enter(run, step))
            self.plan.append(self._step(run, step))
            self._check_step(run, step)
        self._check_shares(promised)
        disturbed = self._planned(0, STEPS, noise=STEPS)
        if first_difference(disturbed, self.plan) is None:
            return
        if first_difference(self._planned(0, STEPS), self.plan) is None:
            raise self._differs(
                disturbed,
                0,
                "a second run of the same seed, in which others drew from the global generators,",
                "draw from run.generator(step, '<a key of yours>'), never from the generators of "
                "random, numpy or torch, which every library may use",
            )
        raise self._differs(
            disturbed,
            0,
            "a second run of the same seed in this process",
            "keep nothing on the class or in the module: what a run changes belongs to the "
            "component, and to its state_dict",
        )

    def micro_batches(self) -> None:
        """Half as many rows in twice as many micro-batches."""
        self._require_same(
            self._planned(
                0, STEPS, per_device_train_batch_size=ROWS // 2, gradient_accumulation_steps=2
            ),
            "with the same rows per step in two micro-batches the run",
            "a plan is of a whole step: take its size from "
            "mtlcore.components.rows_per_step(run), not from the size of a batch",
        )

    def resumed_runs(self) -> None:
        """Resume at every kind of moment, in turn, and go on to the end."""
        for saved in self.saved:
            if not self._is_special(saved.step):
                continue
            self._require_same(
                self._planned(saved.step, STEPS, saved),
                f"a run that was resumed {self._moment(saved.step)}",
                "what the draw depends on must be in state_dict and be taken back by "
                f"load_state_dict ({JSON}), or be computed from run.seed, the step and "
                f"run.rows_drawn; at that step the state held {parts_of(saved.state)}",
                saved.step,
            )

    def often_resumed_run(self) -> None:
        """Resume before every single step, each time from the run that was resumed before."""
        saved, plan = self.saved[0], []
        for step in range(STEPS):
            run = self._started(saved)
            self._enter(run, step)
            plan.append(self._step(run, step))
            state = StateWatch(self.trial.cls, self.trial.component(run)).look("")
            saved = _Saved(step + 1, state, [*run.rows_drawn])
        self._require_same(
            plan,
            "a run that was resumed before every step",
            "load_state_dict must take back all that state_dict gives, so that the next "
            "state_dict gives it again",
        )

    def processes(self) -> None:
        """Two processes, each with half the rows."""
        plans = in_processes(
            2, lambda: self._planned(0, STEPS, per_device_train_batch_size=ROWS // 2)
        )
        for rank, plan in enumerate(plans):
            self._require_same(
                plan,
                f"process {rank} of two",
                "every process plans the rows of all: do not read the rank or the number of "
                "processes, and take the size of a step from "
                "mtlcore.components.rows_per_step(run), which counts them",
            )

    # -- one plan -----------------------------------------------------------------------------

    def _started(self, saved: _Saved | None, **training: Any) -> Run:
        """A run that has begun, or has gone on from what was saved."""
        run = self.trial.fresh(**training)
        component = self.trial.component(run)
        load_state(self.trial.cls, component, copy.deepcopy(saved.state) if saved else {})
        if saved is not None:
            run.step, run.rows_drawn = saved.step, [*saved.rows_drawn]
        self._set_tasks(run, run.step)
        run.check()
        run.plugins.hook.mtlcore_run_start(run=run)
        return run

    def _planned(
        self, start: int, stop: int, saved: _Saved | None = None, *, noise: int = 0, **training: Any
    ) -> Plan:
        """The plan of some steps; `noise` sets the global generators to others."""
        run = self._started(saved, **training)
        plan = []
        for step in range(start, stop):
            disturb(noise + step)
            self._enter(run, step)
            plan.append(self._step(run, step))
        return plan

    def _set_tasks(self, run: Run, step: int) -> None:
        stage = plan_stages(run)[step >= STAGE_STEPS]
        run.stage = stage.name
        run.active = [
            on and not (step >= STOPS and task.name == STOPPING)
            for task, on in zip(run.tasks, stage.active, strict=True)
        ]

    def _enter(self, run: Run, step: int) -> list[float]:
        """Begin a step as the trainer does; the result are the shares that are promised [T]."""
        self._set_tasks(run, step)
        if step in (0, STAGE_STEPS):
            run.plugins.hook.mtlcore_stage_start(run=run, stage=run.stage)
        try:
            return run.sampler.expected_shares(run, step) if self._promises(run) else []
        except UserError as error:
            problem = error.problem
            raise NotConformant(self.trial.cls, problem.message, fix=problem.fix) from error

    def _step(self, run: Run, step: int) -> dict[str, list[int]]:
        try:
            drawn = draw_rows(run, step)
        except (MtlcoreError, ValueError) as error:
            raise NotConformant(
                self.trial.cls,
                f"step {step}: {error}",
                fix="give counts [T] of 0 or more, and for each as many row ids of the task",
            ) from error
        run.step = step + 1
        if run.step in (STAGE_STEPS, STEPS):
            run.plugins.hook.mtlcore_stage_end(run=run, stage=run.stage)
        return {task.name: rows for task, rows in zip(run.tasks, drawn, strict=True)}

    def _promises(self, run: Run) -> bool:
        """Whether the sampler says its shares; one that plans steps by itself need not."""
        return type(run.sampler).shares is not Sampler.shares

    # -- what is wrong ------------------------------------------------------------------------

    def _check_step(self, run: Run, step: int) -> None:
        drawn = self.plan[step]
        counts = {name: len(rows) for name, rows in drawn.items()}
        if sum(counts.values()) != rows_per_step(run):
            raise NotConformant(
                self.trial.cls,
                f"step {step} takes {counts}, {sum(counts.values())} rows of {rows_per_step(run)}",
                fix="the counts must sum to mtlcore.components.rows_per_step(run)",
            )
        for task in run.tasks:
            if counts[task.name] and not run.is_active(task):
                raise NotConformant(
                    self.trial.cls,
                    f"step {step} takes {counts[task.name]} rows of {task.name!r}, which is not "
                    f"trained then (stage {run.stage!r})",
                    fix="leave out tasks for which run.is_active(task) is False",
                )

    def _check_shares(self, promised: Sequence[Sequence[float]]) -> None:
        """Five standard deviations of independent draws: no plan by chance is beyond them."""
        for task, shares in zip(self.trial.tasks, zip(*promised, strict=True), strict=False):
            expected = ROWS * sum(shares)
            drawn = sum(len(step[task.name]) for step in self.plan)
            if abs(drawn - expected) > 5 * math.sqrt(expected) + 1:
                raise NotConformant(
                    self.trial.cls,
                    f"{task.name!r} got {drawn} rows in {STEPS} steps, its shares promise "
                    f"{expected:.1f}",
                    fix="draw the counts so that each is right on average over the steps; "
                    "Sampler.mtlcore_plan_step does it from `shares`",
                )

    def _require_same(self, plan: Plan, who: str, fix: str, start: int = 0) -> None:
        if first_difference(plan, self.plan[start : start + len(plan)]) is not None:
            raise self._differs(plan, start, who, fix)

    def _differs(self, plan: Plan, start: int, who: str, fix: str) -> NotConformant:
        for step, (found, expected) in enumerate(zip(plan, self.plan[start:], strict=False), start):
            for name, rows in expected.items():
                if found[name] != rows:
                    return NotConformant(
                        self.trial.cls,
                        f"{who} takes other rows in step {step}: of "
                        f"{name!r} {_in_words(found[name])} and not {_in_words(rows)}",
                        fix=fix,
                    )
        raise AssertionError("the plans are the same")

    def _is_special(self, step: int) -> bool:
        """Whether it is a moment to resume at: a boundary, the step after it, an epoch's end."""
        near = {at + after for at in (0, STAGE_STEPS, STOPS) for after in (0, 1)}
        return step in near or step == STEPS - 1 or "end of an epoch" in self._moment(step)

    def _moment(self, step: int) -> str:
        """What is special about the time before a step, in words."""
        if step == 0:
            return "before the first step"
        if step == STAGE_STEPS:
            return "between two stages"
        if step == STOPS:
            return f"when {STOPPING} has stopped"
        drawn = self.saved[step].rows_drawn if step < len(self.saved) else []
        for task, count in zip(self.trial.tasks, drawn, strict=False):
            if count and count % len(task.train) == 0:
                return f"after step {step} (the end of an epoch of {task.name})"
        return f"after step {step} (within an epoch)"


def _in_words(rows: Sequence[int], limit: int = 12) -> str:
    shown = ", ".join(map(str, rows[:limit])) + ", ..." * (len(rows) > limit)
    return f"{len(rows)} rows [{shown}]"
