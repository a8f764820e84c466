"""Scores by task and over all tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from mtlcore.evaluation.bootstrap import Interval


@dataclass(frozen=True)
class TaskScore:
    """One task: mean loss per target token, metrics by name, the primary one first.

    `value` is the primary metric mapped to 0 (worst) .. 1 (best), None without a metric;
    `interval` that of the primary metric in its own unit, where it was asked for.
    """

    loss: float
    rows: int
    metrics: Mapping[str, float]
    primary: str | None
    value: float | None
    auxiliary: bool = False
    interval: Interval | None = None


def arithmetic_mean(values: Mapping[str, float]) -> float:
    """Every task counts once."""
    return sum(values.values()) / len(values)


@dataclass(frozen=True)
class Scores:
    """The scores of one model on one split; `aggregate` makes the overall score of the tasks'."""

    split: str
    by_task: Mapping[str, TaskScore]
    aggregate: Callable[[Mapping[str, float]], float] = arithmetic_mean
    overall_interval: Interval | None = None

    @property
    def counted(self) -> dict[str, TaskScore]:
        """The main tasks, for `loss` all of them when only auxiliary ones were scored."""
        main = {name: score for name, score in self.by_task.items() if not score.auxiliary}
        return main or dict(self.by_task)

    @property
    def values(self) -> dict[str, float]:
        """What the overall score is made of: the primary metric of each main task, in 0 .. 1."""
        main = {n: s for n, s in self.by_task.items() if not s.auxiliary}
        return {n: s.value for n, s in main.items() if s.value is not None}

    @property
    def loss(self) -> float:
        """Mean of the main tasks' losses: each task counts once."""
        losses = [score.loss for score in self.counted.values()]
        return sum(losses) / len(losses)

    @property
    def overall(self) -> float | None:
        """One number of the main tasks' primary metrics, each mapped to 0 .. 1."""
        values = self.values
        return float(self.aggregate(values)) if values else None

    @property
    def worst(self) -> str | None:
        """The main task with the lowest primary metric."""
        values = self.values
        return min(values, key=values.__getitem__) if values else None

    def flat(self, prefix: str = "eval") -> dict[str, float]:
        """Hugging Face's keys: eval_<task>_loss, eval_<task>_<metric>, and eval_overall.

        Intervals follow as eval_<task>_<metric>_low and _high, eval_overall_low and _high.
        """
        found = {f"{prefix}_loss": self.loss}
        for name, score in self.by_task.items():
            found[f"{prefix}_{name}_loss"] = score.loss
            found |= {f"{prefix}_{name}_{metric}": v for metric, v in score.metrics.items()}
            if score.interval is not None:
                found[f"{prefix}_{name}_{score.primary}_low"] = score.interval.low
                found[f"{prefix}_{name}_{score.primary}_high"] = score.interval.high
        if self.overall is not None:
            found[f"{prefix}_overall"] = self.overall
        if self.overall_interval is not None:
            found[f"{prefix}_overall_low"] = self.overall_interval.low
            found[f"{prefix}_overall_high"] = self.overall_interval.high
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, for files and --json."""
        tasks: dict[str, dict[str, Any]] = {}
        for name, score in self.by_task.items():
            tasks[name] = {"loss": score.loss, "rows": score.rows, **score.metrics}
            if score.interval is not None:
                tasks[name]["interval"] = {"metric": score.primary, **score.interval.to_json()}
        found = {"split": self.split, "tasks": tasks, "loss": self.loss, "overall": self.overall}
        if self.overall_interval is not None:
            found["overall_interval"] = self.overall_interval.to_json()
        return found

    def table(self, title: str = "") -> Table:
        """A rich table: one line per task, then the overall score."""
        from rich.table import Table

        has_intervals = self.overall_interval is not None or any(
            score.interval is not None for score in self.by_task.values()
        )
        table = Table(title=title or f"scores on {self.split}")
        for column, justify in (("task", "left"), ("rows", "right"), ("loss", "right")):
            table.add_column(column, justify=justify)  # type: ignore[arg-type]
        table.add_column("metrics" + (" (95% interval)" if has_intervals else ""))
        for name, score in self.by_task.items():
            metrics = "  ".join(
                f"{metric} {value:.3f}"
                + (f" {score.interval}" if score.interval and metric == score.primary else "")
                for metric, value in score.metrics.items()
            )
            label = f"{name} (auxiliary)" if score.auxiliary else name
            table.add_row(label, str(score.rows), f"{score.loss:.3f}", metrics.replace("[", "\\["))
        overall = "" if self.overall is None else f"overall {self.overall:.3f}"
        if self.overall_interval is not None:
            overall += f" {self.overall_interval}"
        table.add_section()
        table.add_row("all", "", f"{self.loss:.3f}", overall.replace("[", "\\["))
        return table
