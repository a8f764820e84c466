"""The training loop: one mixed batch, one backward, per-task gradients, one update."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import get_scheduler

from mtlcore import checkpoint
from mtlcore.checkpoint_writer import CheckpointWriter
from mtlcore.conflicts import Effect
from mtlcore.data.batches import Batch, micro_batches, plan_rows
from mtlcore.distributed import (
    all_reduce_sum,
    any_process,
    barrier,
    is_main,
    rank,
    sum_by_name,
    world_size,
)
from mtlcore.errors import MtlcoreError, UserError, counted
from mtlcore.files import append_text, make_folder, replacing
from mtlcore.gradients import Direction, Gradients, folds_rows
from mtlcore.judge import Judge
from mtlcore.losses import Outputs
from mtlcore.nonfinite import Guard
from mtlcore.progress import Progress
from mtlcore.recipe_file import write_recipe
from mtlcore.records import StepRecord, Totals
from mtlcore.run import RECIPE, Run, write_json
from mtlcore.run_folder import require_no_run
from mtlcore.seeds import seed_of
from mtlcore.stages import plan_stages
from mtlcore.stop_signals import InterruptedByStop, RunStopped
from mtlcore.system_errors import telling_system_errors
from mtlcore.terminal import outliving_readers
from mtlcore.watchdog import LossWatchdog

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtlcore.components import Auditor
    from mtlcore.data.example import Example
    from mtlcore.evaluation.scores import Scores


class Trainer:
    """Trains the adapters of a run.

    `run.plugins.hook` decides which rows, which penalties and which task weights; the trainer
    knows none of them by name.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.recipe = run.recipe.training
        self.gradients = Gradients(
            run.model,
            [task.recipe.loss_weight for task in run.tasks],
            mode=self.recipe.gradients,
        )
        if self.gradients.mode == "multi_pass":
            run.note("gradients: multi_pass, one backward pass per task and micro-batch")
        if run.weighting.needs != "nothing" and not self.gradients.has_shared:
            run.note(
                f"warning: weighting {run.weighting.name!r} is not asked: no trained weight is "
                "shared between tasks"
            )
        self.stages = plan_stages(run)
        self.last_weights = [1.0 / len(run.tasks)] * len(run.tasks)
        self.effect = Effect([task.name for task in run.tasks])
        self.task_peaks = [0.0] * len(run.tasks)
        self.totals = Totals()
        self.guard = Guard(run)
        self.watchdog = LossWatchdog(run)
        self.penalties: dict[str, float] = {}
        self.due: list[str] = []  # what is still to be done after the step of now
        self._saved: object = None  # where the training was at the last checkpoint
        self.writer = CheckpointWriter(run.folder)
        self.enter_stage(0)

    # -- one step -----------------------------------------------------------------------------

    def train_step(self) -> StepRecord:
        """One optimizer step: this is the page to read first."""
        run, guard = self.run, self.guard
        started = time.perf_counter()
        if run.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(run.device)
        guard.start()
        rows: Sequence[Example] = plan_rows(run, run.step)  # sorted by task, for all processes
        batches, weights = self.measure(rows)  # J [T, P]
        while found := guard.agree():  # a loss is not finite, here or in another process
            rows = guard.rows_left(found, rows)  # without these, or none at all
            batches, weights = self.measure(rows, weights)
        norms: dict[str, float] = {}
        if rows:
            weights, norms = self.combine(weights)  # .grad = Jᵀ w, and each task's own
        if not guard.makes_update:
            self.optimizer.zero_grad()  # nothing moves without a gradient, momentum included
        rate = self.set_learning_rate()
        self.optimizer.step()
        self.scheduler.step()
        guard.end()
        if guard.makes_update:
            again = partial(self.losses_again, batches)
            run.plugins.hook.mtlcore_after_update(run=run, losses_again=again)
        run.step += 1
        record = self.record(batches, weights, norms, rate, time.perf_counter() - started)
        run.plugins.hook.mtlcore_step_end(run=run, record=record.to_json())
        self.watchdog.see(record)
        return record

    def measure(
        self, rows: Sequence[Example], known: Tensor | Direction | None = None
    ) -> tuple[list[Batch], Tensor | Direction | None]:
        """Forward and backward passes over this process's share of the rows of a step.

        Returns its micro-batches, and the task weights if they were given before the backward pass:
        [T'], of the T' tasks in the step, mostly None. Those `known` from an earlier measurement of
        the step are kept where the same tasks are in it. Once a loss that is not finite is found,
        the other micro-batches are only searched for more.
        """
        run, gradients = self.run, self.gradients
        torch.manual_seed(seed_of(run.seed, run.step, "dropout", rank()))
        self.penalties = {}
        before = gradients.present
        batches = self.micro_batches(rows)
        gradients.start(sum_columns([batch.counts for batch in batches], len(run.tasks)))
        weights = known if gradients.present == before else None
        for batch in batches:
            outputs = self.forward(batch, share=1 / len(batches))  # loss sums [T]
            if self.guard.found:
                continue
            weights = self.weights_before_backward(outputs, len(batches), weights)
            gradients.backward(outputs.loss_sums, weights)  # J [T, P], or one row if w is known
        if rows and not batches:  # fewer rows are left than there are processes
            weights = self.weights_before_backward(None, 0, weights)
        gradients.leave()
        return batches, weights

    @torch.no_grad()
    def losses_again(self, batches: Sequence[Batch]) -> Tensor:
        """[T'] the step's losses, task penalties included, with the weights of now.

        With a weighting inside the recipe's, those of the tasks that the inner one is given.
        """
        run = self.run
        torch.manual_seed(seed_of(run.seed, run.step, "dropout", rank()))
        sums = torch.zeros(len(run.tasks), dtype=torch.float64)
        for batch in batches:
            with run.autocast():
                outputs: Outputs = run.model(batch, draw=(run.seed, run.step))
                losses = outputs.loss_sums
                found = run.plugins.hook.mtlcore_penalties(run=run, batch=batch, outputs=outputs)
                for penalty in (penalty for some in found for penalty in some or ()):
                    if penalty.on == "task":
                        losses = losses + penalty.value
            sums += losses.double().cpu()
        run.model.routing.leave()
        given = run.weighting.inner_places(run, self.gradients.present)
        return self.gradients.mean_losses_of(all_reduce_sum(sums))[list(given)]

    def combine(
        self, weights: Tensor | Direction | None
    ) -> tuple[Tensor | Direction | None, dict[str, float]]:
        """J [T, P] -> the gradient of every weight; returns task weights and norms before clipping.

        Where a gradient is not finite, and the recipe does not say stop, there is no update:
        (None, {}).
        """
        run, gradients = self.run, self.gradients
        gradients.finish(weights)
        if not self.guard.gradients_are_finite(gradients.norms(), weights):
            return None, {}
        if weights is None and gradients.has_shared:
            weights = self.weigh(gradients.mean_losses())  # reads G [T', T'] as it needs
        gradients.apply(weights)
        self.add_weight_penalties()
        run.plugins.hook.mtlcore_before_update(run=run, gradients=gradients)
        norms = gradients.clip(self.recipe.max_grad_norm)
        return (weights, norms) if self.guard.gradients_are_finite(norms, weights) else (None, {})

    def set_learning_rate(self) -> float:
        """That of the schedule, lowered where losses or gradients were not finite."""
        rate = float(self.scheduler.get_last_lr()[0]) * self.guard.factor
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def next_batches(self) -> list[Batch]:
        """The micro-batches of the next step for this rank."""
        return self.micro_batches(plan_rows(self.run, self.run.step))

    def micro_batches(self, rows: Sequence[Example]) -> list[Batch]:
        """This rank's share of the rows of a step."""
        run = self.run
        return micro_batches(
            run,
            rows,
            flat=run.model.flat,
            rank=rank(),
            world_size=world_size(),
            device=run.device,
        )

    def forward(self, batch: Batch, share: float = 1.0) -> Outputs:
        """One forward pass; task penalties are added to the loss sums, if these are finite.

        Penalties on the batch have their own backward here, times `share`: that of this
        micro-batch in the step, so that a step's penalty is the mean over its micro-batches.
        """
        run = self.run
        run.model.train()
        with run.autocast():
            outputs: Outputs = run.model(batch, draw=(run.seed, run.step))  # of the dropout masks
            if slow := run.model.routing.attention_slow:
                run.note(f"attention takes one call for each length of rows: {slow}")
            self.guard.see(batch, outputs)
            if self.guard.found:
                return outputs
            for penalty in self._penalties(batch, outputs, share):
                if penalty.on == "task":
                    outputs = outputs._replace(loss_sums=outputs.loss_sums + penalty.value)
                elif penalty.on == "batch":
                    self.gradients.penalty_backward(penalty.value * share / world_size())
        return outputs

    def weights_before_backward(
        self, outputs: Outputs | None, micro_batches: int, known: Tensor | Direction | None
    ) -> Tensor | None:
        """Task weights [T'] where they do not depend on gradients; they save J its memory.

        `outputs` is None in a process without rows.
        """
        if not self.gradients.has_shared or self.gradients.mode != "one_pass":
            return None
        components = self.run.components.values()
        needs = self.run.weighting.needs_at(self.run.step, self.gradients.present)
        if not folds_rows(needs, components, micro_batches * world_size()):
            return None
        if needs == "nothing":
            weights = known if known is not None else self.weigh()
        elif outputs is None:
            return None
        else:
            weights = self.weigh(self.gradients.mean_losses_of(outputs.loss_sums))
        if isinstance(weights, Direction):
            raise MtlcoreError(
                f"the weighting {self.run.weighting.name!r} gave a Direction, which is made of the "
                f"rows of J, but declares needs = {needs!r}: set needs = 'rows' on its class"
            )
        return weights

    def weigh(self, losses: Tensor | None = None) -> Tensor | Direction:
        """Ask the weighting: mean losses [T'] of the present tasks -> weights."""
        run = self.run
        if run.weighting.needs == "nothing":
            losses = None
        weights: Tensor | Direction | None = run.plugins.hook.mtlcore_weigh_tasks(
            run=run, losses=losses, gradients=self.gradients
        )
        if weights is None:
            raise MtlcoreError("no component answered mtlcore_weigh_tasks")
        self._require_one_for_each_task(weights)
        values = weights.vector if isinstance(weights, Direction) else weights
        if not torch.isfinite(values).all():
            raise UserError(
                f"step {run.step + 1}: the weighting {run.weighting.name!r} gave weights that "
                f"are not finite: {values.tolist() if values.numel() < 100 else '...'}",
                where="weighting",
                fix="give it other options or take another one; a component of yours: "
                "mtlcore.testing.check_weighting",
            )
        dtype = self.gradients.arena.dtype
        if not torch.isfinite(values.to(dtype)).all():
            raise UserError(
                f"step {run.step + 1}: the weighting {run.weighting.name!r} gave weights up to "
                f"{float(values.abs().max()):.3g}, too large for gradients in "
                f"{str(dtype).removeprefix('torch.')}",
                where="weighting",
                fix="give it options that make smaller weights",
            )
        return weights

    def _require_one_for_each_task(self, weights: object) -> None:
        if isinstance(weights, Direction):
            return
        count = len(self.gradients.present)
        if isinstance(weights, Tensor):
            if weights.ndim in (1, 2) and weights.shape[-1] == count:
                return
            found = f"weights of shape {list(weights.shape)}"
        else:
            found = repr(weights)
        raise UserError(
            f"step {self.run.step + 1}: the weighting {self.run.weighting.name!r} gave {found}, "
            f"not a tensor [{count}] for the {counted(count, 'task')} of the step",
            where="weighting",
            fix="return a weight for each of gradients.present, which "
            "mtlcore.testing.check_weighting checks",
        )

    def _penalties(
        self, batch: Batch | None, outputs: Outputs | None, share: float = 1.0
    ) -> list[Any]:
        found = self.run.plugins.hook.mtlcore_penalties(run=self.run, batch=batch, outputs=outputs)
        penalties = [penalty for some in found for penalty in some or ()]
        for penalty in penalties:
            allowed = ("task", "batch") if batch is not None else ("weights",)
            if penalty.on not in allowed:
                raise MtlcoreError(
                    f"penalty {penalty.name!r} acts on {penalty.on!r} but was returned from the "
                    f"call for {' and '.join(allowed)} penalties"
                )
            # The record sums over processes: of those on weights, all have the same one.
            parts = {"task": 1.0, "batch": share / world_size(), "weights": 1 / world_size()}
            value = float(penalty.value.detach().sum()) * parts[penalty.on]
            self.penalties[penalty.name] = self.penalties.get(penalty.name, 0.0) + value
            self.guard.see_penalty(penalty.name, value)
        return penalties

    def add_weight_penalties(self) -> None:
        """Add the gradients of penalties on the weights, after Jᵀ w."""
        for penalty in self._penalties(None, None):
            parameters = [p for _, p in self.run.model.trainable_parameters()]
            grads = torch.autograd.grad(penalty.value, parameters, allow_unused=True)
            self.gradients.add_to_update(parameters, grads)

    def record(
        self,
        batches: list[Batch],
        weights: Tensor | Direction | None,
        norms: dict[str, float],
        rate: float,
        seconds: float,
    ) -> StepRecord:
        """What the step did, by task name."""
        names = [task.name for task in self.run.tasks]
        gradients = self.gradients
        conflicts = self.effect.see(gradients, weights)
        if isinstance(weights, Tensor):
            flat = weights if weights.ndim == 1 else weights.mean(0)
            for task, weight in zip(gradients.present, flat.tolist(), strict=True):
                self.last_weights[task] = weight  # an absent task keeps its last one
        penalties, self.penalties = self.penalties if self.guard.makes_update else {}, {}
        if self.run.plugins.implements("mtlcore_penalties"):
            penalties = sum_by_name(penalties)
        rows = torch.zeros(len(names), dtype=torch.long)
        for batch in batches:
            for task, start, stop in batch.rows:
                rows[task] += stop - start
        tokens = torch.tensor(sum_columns([batch.tokens for batch in batches], len(names)))
        all_reduce_sum(rows)
        all_reduce_sum(tokens)
        peak = peak_memory_mb(self.run.device)
        for task, count in enumerate(rows.tolist()):
            if count:
                self.task_peaks[task] = max(self.task_peaks[task], peak)
        record = StepRecord(
            step=self.run.step,
            stage=self.run.stage,
            losses={names[task]: loss for task, loss in gradients.raw_losses().items()},
            weights=dict(zip(names, self.last_weights, strict=True)),
            learning_rate=rate,
            grad_norms=norms,
            rows=dict(zip(names, rows.tolist(), strict=True)),
            tokens=dict(zip(names, tokens.tolist(), strict=True)),
            seconds=seconds,
            task_seconds=dict(
                zip(names, (tokens / tokens.sum().clamp(min=1) * seconds).tolist(), strict=True)
            ),
            penalties=penalties,
            peak_memory_mb=peak,
            task_peak_memory_mb=dict(zip(names, self.task_peaks, strict=True)),
            skipped_rows=dict(self.guard.skipped_rows),
            skipped_steps=int(not self.guard.makes_update),
            **conflicts,
        )
        self.totals.add(record)
        return record

    # -- the run ------------------------------------------------------------------------------

    def train(self) -> None:
        """Train from `run.step` to the end of the last stage.

        A first SIGTERM or SIGINT ends it after the step, with a checkpoint, by `RunStopped`.
        """
        run = self.run
        try:
            run.check()
            if run.plugins.implements("mtlcore_audit"):
                run.tasks_with_rows("eval")  # now, not after the training
            run.plugins.hook.mtlcore_run_start(run=run)  # may refuse too: no file yet
            with outliving_readers(), telling_system_errors(run), run.signals:
                self._begin_records()
                self._train_stages()
                self._end_run()
        finally:
            run.lock.release()
        for tracker in run.accelerator.trackers:
            tracker.finish()

    def _begin_records(self) -> None:
        run, recipe = self.run, self.recipe
        if is_main():
            if not run.lock.held:  # a folder of our own, unless another process was faster
                make_folder(run.folder)
                run.lock.acquire()
                if run.step == 0:
                    require_no_run(run.folder)
            with replacing(run.folder / RECIPE) as partial:
                write_recipe(run.recipe, partial)
            write_json(run.folder / "environment.json", run.environment())
        if recipe.report_to:
            run.accelerator.init_trackers(recipe.run_name or run.folder.name)

    def _train_stages(self) -> None:
        with Progress(self._steps_from(0), self.run.step) as progress:
            try:
                if self.stage_ended:
                    self._go_on()
                while not self.stage_ended:
                    self._train_stage(progress)
                    self._end_stage()
                    if self.stage_index + 1 < len(self.stages):
                        self._stop_if_asked()
                        self.enter_stage(self.stage_index + 1)
            finally:
                self.writer.wait()

    def _end_run(self) -> None:
        run = self.run
        self._warn_without_effect()
        run.plugins.hook.mtlcore_run_end(run=run)
        if run.plugins.implements("mtlcore_audit"):
            interrupted = True
            with suppress(InterruptedByStop), run.signals.interrupting():
                run.audit("eval")
                interrupted = False
            if any_process(interrupted):
                self._stop_if_asked()
        sections = [s for some in run.plugins.hook.mtlcore_report(run=run) for s in some or ()]
        if is_main():
            write_json(run.folder / checkpoint.RESULT, self._result(sections))

    def enter_stage(self, index: int) -> None:
        """Set tasks, optimizer and learning rate schedule of a stage, which begins at this step."""
        run, stage = self.run, self.stages[index]
        self.stage_index, self.stage_start, self.stage_ended = index, run.step, False
        run.stage, run.active = stage.name, list(stage.active)
        self.judge = Judge(run)
        self.optimizer = self._make_optimizer(stage.learning_rate)
        warmup = self.recipe.warmup_steps or math.ceil(self.recipe.warmup_ratio * stage.steps)
        self.scheduler = get_scheduler(
            self.recipe.lr_scheduler_type,
            self.optimizer,
            num_warmup_steps=warmup,
            num_training_steps=stage.steps,
        )

    def require_steps_left(self) -> None:
        """Refuse fewer steps than a resumed stage has behind it: it would end as if it had them."""
        last = self.stage_start + self.stages[self.stage_index].steps
        if self.run.step > last:
            raise UserError(
                f"the run is at step {self.run.step} already, past the {last} that it is to have",
                where="training.max_steps",
                fix=f"give more than {self.run.step} steps, or resume from an earlier checkpoint "
                "(--resume FOLDER)",
            )

    def _go_on(self) -> None:
        """Resumed from the end of a stage: enter the next one, or go on if it got more steps."""
        run, stage = self.run, self.stages[self.stage_index]
        if run.step < self.stage_start + stage.steps and not self._should_stop():
            best = self.judge.best.step if self.recipe.load_best_model_at_end else None
            weights = f", from its best weights, those of step {best}" if best is not None else ""
            run.note(f"stage {stage.name!r} had ended at step {run.step} and goes on{weights}")
            self.stage_ended = False
        elif self.stage_index + 1 < len(self.stages):
            self.enter_stage(self.stage_index + 1)
        else:
            run.note(f"the run had ended at step {run.step}: there is nothing left to train")

    def _train_stage(self, progress: Progress) -> None:
        """Train to the end of the stage: evaluations, checkpoints, early stopping."""
        run, recipe = self.run, self.recipe
        last = self.stage_start + self.stages[self.stage_index].steps
        if run.step == self.stage_start:
            run.plugins.hook.mtlcore_stage_start(run=run, stage=run.stage)
        if self.due:  # the run was stopped between its last step and this
            self._after_step(progress, last)
        while run.step < last and not self._should_stop():
            record = self.train_step()
            progress.step(record)
            if run.step % recipe.logging_steps == 0 or run.step == last:
                self._log(record.to_json())
            self.due = [
                what
                for what, is_due in (
                    ("eval", self._due(recipe.eval_steps)),
                    ("audit", bool(self._due_auditors(last))),
                    ("save", self._due(recipe.save_steps)),
                )
                if is_due
            ]
            self._after_step(progress, last)
        if run.step < last:
            run.note(self._why_stopped())

    def _after_step(self, progress: Progress, last: int) -> None:
        """Evaluate, audit and save, as far as it is due; a signal ends the run in between."""
        self._stop_if_asked()
        with suppress(InterruptedByStop), self.run.signals.interrupting():
            if "eval" in self.due:
                self._evaluate(progress)
            if "audit" in self.due:
                self._audit(self._due_auditors(last))
                self.due.remove("audit")
        self._stop_if_asked()
        if "save" in self.due:
            self.due.remove("save")
            if self.run.step < last and not self._should_stop():  # else the stage's end saves
                self.save()
        self.writer.poll()

    def _due_auditors(self, last: int) -> list[Auditor]:
        """Those of this step; after the last step of all, the run itself audits."""
        is_end = self.run.step == last and self.stage_index + 1 == len(self.stages)
        return [a for a in self.run.auditors if self._due(a.every_n_steps) and not is_end]

    def _stop_if_asked(self) -> None:
        """End with a checkpoint, if a signal asked for it."""
        run = self.run
        if not run.signals.asked():
            return
        if self._saved != self._place():
            self.save()
        self.writer.wait()
        barrier()
        signal = run.signals.received
        raise RunStopped(
            f"stopped by {signal.name if signal else 'a signal to another process'} after step "
            f"{run.step}, all of which is saved in {run.folder}; to go on, give the same command "
            "again with --resume"
        )

    def _should_stop(self) -> bool:
        return self.judge.is_stale() or not any(self.run.active)

    def _why_stopped(self) -> str:
        if not any(self.run.active):
            return f"stopped early at step {self.run.step}: every task of the stage has stopped"
        return (
            f"stopped early at step {self.run.step}: no better {self.judge.metric} since "
            f"step {self.judge.best.step}"
        )

    def _end_stage(self) -> None:
        """End with the best weights if asked for, let plugins look, and save all that."""
        run = self.run
        if self.recipe.load_best_model_at_end:
            self._take_best_weights()
        run.plugins.hook.mtlcore_stage_end(run=run, stage=run.stage)
        self.stage_ended = True
        self.save()

    def _take_best_weights(self) -> None:
        """Those of the best evaluation; own ones of a task judged by itself: of its own best.

        Unless these together score worse than the best evaluation did.
        """
        run, judge = self.run, self.judge
        self.writer.wait()
        barrier()
        if judge.best.step is None:
            run.note(f"stage {run.stage!r} had no evaluation, so it ends with its last weights")
        elif judge.best.step != run.step:
            checkpoint.load_adapters_of(run, judge.best.step)
            run.note(f"the best model is that of step {judge.best.step}")
        own = judge.own_steps
        for name, step in own.items():
            checkpoint.load_adapters_of(run, step, owner=run.task(name).index)
        # Where nothing is shared, each task answers as it did at its own best step.
        if own and judge.best.step is not None and self.gradients.has_shared:
            own = self._keep_if_not_worse(own)
        for name, step in own.items():
            run.note(f"the own weights of {name} are those of step {step}")

    def _keep_if_not_worse(self, own: dict[str, int]) -> dict[str, int]:
        """Score weights of several steps together; back to the stage's best where they are worse.

        Returns the tasks that keep own weights of another step.
        """
        run, best = self.run, self.judge.best
        started = time.perf_counter()
        scores = self._score_eval_rows()
        value, worse = self.judge.weigh_up(scores)
        seconds = time.perf_counter() - started
        found = {**scores.flat(), "eval_seconds": seconds}
        steps = {run.stage: best.step, **own}
        self._log({"step": run.step, "stage": run.stage, "combined": found, "from_steps": steps})
        told = (
            f"scored together, the weights of step {best.step} and the own ones of "
            f"{', '.join(f'{name} (step {step})' for name, step in own.items())} have "
            f"{self.judge.metric} {value:.4f}, those of step {best.step} alone {best.value:.4f}"
        )
        if worse:
            checkpoint.load_adapters_of(run, best.step)
            told += ": the stage ends with these"
            for name in own:
                self.judge.forget(name)
        run.note(told)
        return {} if worse else own

    def _audit(self, auditors: list[Auditor]) -> None:
        run = self.run
        for found in run.audit("eval", auditors, max_rows=self.recipe.eval_max_rows):
            if found.failed:
                run.note(f"step {run.step}: audit {found.name} of {found.task}: {found.message}")

    def _warn_without_effect(self) -> None:
        """A weighting that looked at the tasks and changed nothing: say so."""
        run = self.run
        was_asked = run.step > run.weighting.schedule.warmup
        weighs = self.gradients.has_shared and run.weighting.needs != "nothing"
        if was_asked and weighs and (warning := self.effect.warning(run.weighting.name)):
            run.note(warning)

    def _result(self, sections: list[Any]) -> dict[str, Any]:
        return {
            "step": self.run.step,
            "best_step": self.judge.best.step,
            "best_value": self.judge.best.value,
            "own_steps": self.judge.own_steps if self.recipe.load_best_model_at_end else {},
            "totals": asdict(self.totals),
            "conflicts": self.effect.to_json(),
            "notes": self.run.notes,
            "sections": [asdict(section) for section in sections],
        }

    def _due(self, every: int | None) -> bool:
        return every is not None and self.run.step % every == 0

    def _evaluate(self, progress: Progress) -> None:
        """Score the eval split, remember the best, stop tasks whose patience is over."""
        run = self.run
        started = time.perf_counter()
        scores = self._score_eval_rows()
        progress.evaluation(run.step, scores)
        values = {**scores.flat(), "eval_seconds": time.perf_counter() - started}
        self._log({"step": run.step, "stage": run.stage, **values})
        self._judge(scores)

    def _score_eval_rows(self) -> Scores:
        return self.run.evaluate(
            "eval",
            outputs=self.recipe.eval_metrics or self.judge.needs_metrics,
            max_rows=self.recipe.eval_max_rows,
        )

    def _judge(self, scores: Scores) -> None:
        run, judge = self.run, self.judge
        best = judge.see(scores)
        for name in judge.stale_tasks():
            run.active[run.task(name).index] = False
            run.note(
                f"task {name!r} stopped at step {run.step}: no better score since "
                f"step {judge.tasks[name].step}"
            )
        self.due.remove("eval")
        if best:
            self.save()

    def save(self) -> None:
        """Begin to write a checkpoint of now; when it is written, old ones are pruned."""
        if "save" in self.due:
            self.due.remove("save")
        self._saved = self._place()
        if is_main():
            # While the weights may be spoilt, no sound checkpoint makes room for one of them.
            doubtful = self.guard.in_a_row or self.watchdog.above
            self.writer.save(
                checkpoint.snapshot(self),
                keep=None if doubtful else self.recipe.save_total_limit,
                best=self.judge.best_steps,
            )

    def _place(self) -> object:
        return self.stage_index, self.run.step, tuple(self.due), self.stage_ended

    def _log(self, values: dict[str, Any]) -> None:
        if is_main():
            line = json.dumps(readable(values), allow_nan=False)
            append_text(self.run.folder / "metrics.jsonl", line + "\n")
        if self.recipe.report_to:
            numbers = {k: v for k, v in _one_level(values).items() if isinstance(v, int | float)}
            self.run.accelerator.log(numbers, step=values["step"])

    # -- set-up and state ---------------------------------------------------------------------

    def _make_optimizer(self, learning_rate: float) -> torch.optim.Optimizer:
        """AdamW with one parameter group per adapter, and the weight decay of its task.

        Fused: with thousands of small factors the loop over parameters would cost 5% of a CPU step.
        """
        model = self.run.model
        groups = [
            {
                "params": model.adapter_parameters(adapter.name),
                "name": adapter.name,
                "weight_decay": self._weight_decay(adapter.owner),
            }
            for adapter in model.layout.adapters
            if not adapter.frozen
        ]
        return torch.optim.AdamW(
            groups,
            lr=learning_rate,
            betas=(self.recipe.adam_beta1, self.recipe.adam_beta2),
            eps=self.recipe.adam_epsilon,
            fused=True,
        )

    def _weight_decay(self, owner: int | None) -> float:
        own = None if owner is None else self.run.tasks[owner].recipe.weight_decay
        return self.recipe.weight_decay if own is None else own

    def _steps_from(self, index: int) -> int:
        """The steps of a stage and those after it."""
        return sum(stage.steps for stage in self.stages[index:])

    def progress_state(self) -> dict[str, Any]:
        """What the loop itself remembers, for checkpoints."""
        return {
            "stage": self.run.stage,
            "stage_start": self.stage_start,
            "stage_ended": self.stage_ended,
            "due": self.due,
            "planned_steps": self.stage_start + self._steps_from(self.stage_index),
            "active": self.run.active,
            "judge": self.judge.state(),
            "last_weights": self.last_weights,
            "effect": self.effect.state(),
            "totals": asdict(self.totals),
            "notes": self.run.notes,
            "nonfinite": self.guard.state(),
            "watchdog": self.watchdog.state(),
        }

    def load_progress_state(self, state: dict[str, Any]) -> None:
        """Set what `progress_state` gave, and enter its stage."""
        self.enter_stage([stage.name for stage in self.stages].index(state["stage"]))
        self.stage_start, self.stage_ended = state["stage_start"], state["stage_ended"]
        self.due = list(state["due"])
        self.run.active = list(state["active"])
        self.judge.load_state(state["judge"])
        self.last_weights = list(state["last_weights"])
        self.effect.load_state(state["effect"])
        self.totals = Totals(**state["totals"])
        self.run.notes[:0] = [note for note in state["notes"] if note not in self.run.notes]
        self.guard.load_state(state["nonfinite"])
        self.watchdog.load_state(state["watchdog"])
        peaks = self.totals.task_peak_memory_mb
        self.task_peaks = [peaks.get(task.name, 0.0) for task in self.run.tasks]


def peak_memory_mb(device: torch.device) -> float:
    """The highest memory use: of the GPU since its last reset, else of this process so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    bytes_per_unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * bytes_per_unit / 2**20


def sum_columns(rows: Sequence[Sequence[int]], columns: int) -> list[int]:
    """The sums by column; zeros where there is no row."""
    return [sum(row[column] for row in rows) for column in range(columns)]


def readable(value: Any) -> Any:
    """The same with null for a number that is not finite: JSON has no name for it."""
    if isinstance(value, dict):
        return {key: readable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [readable(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _one_level(values: dict[str, Any]) -> dict[str, Any]:
    """{"losses": {"a": 1}} -> {"train/a/losses": 1}: how trackers group curves."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= {f"train/{name}/{key}": inner for name, inner in value.items()}
        else:
            flat[key] = value
    return flat
