"""Best models and early stopping: of a stage as a whole, and of each task by itself."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mtlcore.errors import UserError

if TYPE_CHECKING:
    from mtlcore.evaluation.scores import Scores, TaskScore
    from mtlcore.run import Run


@dataclass
class Best:
    """The best evaluation seen: its value, its step, and how many came after it."""

    value: float | None = None
    step: int | None = None
    stale: int = 0

    def see(self, value: float, step: int, *, greater_is_better: bool) -> bool:
        """Take in an evaluation; True if it is the best so far."""
        sign = 1 if greater_is_better else -1
        if math.isnan(value):
            self.stale += 1
            return False
        if self.value is None or sign * value > sign * self.value:
            self.value, self.step, self.stale = value, step, 0
            return True
        self.stale += 1
        return False

    def is_stale(self, patience: int | None) -> bool:
        """Whether patience is over."""
        return patience is not None and self.stale >= patience


class Judge:
    """Follows the evaluations of one stage.

    The stage is judged by `training.metric_for_best_model`. A task with an
    `early_stopping_patience` of its own is judged by its primary metric, or by its loss where the
    recipe's metric is a loss or the task has no metric.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.recipe = run.recipe.training
        self.best = Best()
        patience = {name: task.early_stopping_patience for name, task in run.recipe.tasks.items()}
        self.patience = {name: count for name, count in patience.items() if count is not None}
        self.tasks = {name: Best() for name in self.patience}

    @property
    def metric(self) -> str:
        """What the stage is judged by."""
        return self.recipe.metric_for_best_model

    @property
    def by_loss(self) -> bool:
        """Whether models are judged by losses alone."""
        losses = {f"eval_{name}_loss" for name in self.run.recipe.tasks}
        return self.metric in {"eval_loss", *losses}

    @property
    def judges_stage(self) -> bool:
        """Whether the stage as a whole has a best model."""
        recipe = self.recipe
        return recipe.load_best_model_at_end or recipe.early_stopping_patience is not None

    @property
    def needs_metrics(self) -> bool:
        """Whether evaluations must score outputs too."""
        return (self.judges_stage or bool(self.patience)) and not self.by_loss

    @property
    def best_steps(self) -> set[int]:
        """Steps whose checkpoints hold somebody's best weights."""
        found = {best.step for best in (self.best, *self.tasks.values())}
        return {step for step in found if step is not None}

    @property
    def own_steps(self) -> dict[str, int]:
        """The tasks whose own best step is not that of the stage, with that step."""
        return {
            name: best.step
            for name, best in self.tasks.items()
            if best.step is not None and best.step != self.best.step
        }

    def forget(self, task: str) -> None:
        """A task's own weights become those of the stage's best step, of whatever value."""
        self.tasks[task] = Best(step=self.best.step, stale=self.tasks[task].stale)

    def see(self, scores: Scores) -> bool:
        """Take in an evaluation at `run.step`; True if it is the best of the stage or of a task."""
        step, new = self.run.step, False
        if self.judges_stage:
            value = self._value(scores.flat())
            new = self.best.see(value, step, greater_is_better=self._greater_is_better())
        for name, best in self.tasks.items():
            if self.run.is_active(self.run.task(name)) and name in scores.by_task:
                value, greater = self._task_value(scores.by_task[name])
                new |= best.see(value, step, greater_is_better=greater)
        return new

    def weigh_up(self, scores: Scores) -> tuple[float, bool]:
        """The value of the stage in scores not taken in, and whether its best beats them."""
        value = self._value(scores.flat())
        sign = 1 if self._greater_is_better() else -1
        best = self.best.value
        return value, best is not None and not sign * value >= sign * best  # NaN is worse, too

    def stale_tasks(self) -> list[str]:
        """Active tasks whose patience is over."""
        return [
            name
            for name, best in self.tasks.items()
            if best.is_stale(self.patience[name]) and self.run.is_active(self.run.task(name))
        ]

    def is_stale(self) -> bool:
        """Whether the patience with the whole stage is over."""
        return self.best.is_stale(self.recipe.early_stopping_patience)

    def state(self) -> dict[str, Any]:
        """For checkpoints."""
        return {
            "metric": self.metric,
            "best": asdict(self.best),
            "metric_of_task": {name: self._task_metric(name) for name in self.tasks},
            "tasks": {name: asdict(best) for name, best in self.tasks.items()},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Set what `state` gave; another metric, or a new patience, judges afresh."""
        if self._is_judged_as_before("the stage", state["metric"], self.metric):
            self.best = Best(**state["best"])
        for name, best in state["tasks"].items():
            if name in self.tasks:
                now = self._task_metric(name)
                before = state.get("metric_of_task", {}).get(name, now)
                stopped = not self.run.is_active(self.run.task(name))
                if stopped or self._is_judged_as_before(f"task {name!r}", before, now):
                    self.tasks[name] = Best(**best)

    def _is_judged_as_before(self, who: str, before: str, now: str) -> bool:
        if before != now:
            self.run.note(f"{who} is judged by {now} from now on, not {before}")
        return before == now

    def _task_metric(self, name: str) -> str:
        """What a task is judged by: its primary metric, or its loss."""
        evaluators = self.run.evaluators[name]
        return "loss" if self.by_loss or not evaluators else evaluators[0].name

    def _value(self, flat: dict[str, float]) -> float:
        if self.metric not in flat:
            raise UserError(
                f"the evaluation gave no {self.metric!r}",
                where="training.metric_for_best_model",
                fix=f"choose one of {', '.join(sorted(flat))}",
            )
        return flat[self.metric]

    def _task_value(self, score: TaskScore) -> tuple[float, bool]:
        if self.by_loss or score.value is None:
            return score.loss, False
        return score.value, True

    def _greater_is_better(self) -> bool:
        """As the recipe says, else as the metric itself does."""
        if self.recipe.greater_is_better is not None:
            return self.recipe.greater_is_better
        for task, evaluators in self.run.evaluators.items():
            for evaluator in evaluators:
                if self.metric == f"eval_{task}_{evaluator.name}":
                    return evaluator.greater_is_better
        return not self.by_loss
