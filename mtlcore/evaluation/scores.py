"""Scores by task and over all tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class TaskScore:
    """One task: mean loss per target token, metrics by name, the primary one first.

    `value` is the primary metric mapped to 0 (worst) .. 1 (best), None without a metric.
    """

    loss: float
    rows: int
    metrics: Mapping[str, float]
    primary: str | None
    value: float | None
    auxiliary: bool = False


@dataclass(frozen=True)
class Scores:
    """The scores of one model on one split."""

    split: str
    by_task: Mapping[str, TaskScore]

    @property
    def _counted(self) -> dict[str, TaskScore]:
        """The main tasks; all of them when only auxiliary ones were scored."""
        main = {name: score for name, score in self.by_task.items() if not score.auxiliary}
        return main or dict(self.by_task)

    @property
    def loss(self) -> float:
        """Mean of the main tasks' losses: each task counts once."""
        losses = [score.loss for score in self._counted.values()]
        return sum(losses) / len(losses)

    @property
    def overall(self) -> float | None:
        """Mean over the main tasks of their primary metrics, each mapped to 0 .. 1."""
        values = [s.value for s in self._counted.values() if s.value is not None]
        return sum(values) / len(values) if values else None

    @property
    def worst(self) -> str | None:
        """The main task with the lowest primary metric."""
        values = {n: s.value for n, s in self._counted.items() if s.value is not None}
        return min(values, key=values.__getitem__) if values else None

    def flat(self, prefix: str = "eval") -> dict[str, float]:
        """Hugging Face's keys: eval_<task>_loss, eval_<task>_<metric>, and eval_overall."""
        found = {f"{prefix}_loss": self.loss}
        for name, score in self.by_task.items():
            found[f"{prefix}_{name}_loss"] = score.loss
            found |= {f"{prefix}_{name}_{metric}": v for metric, v in score.metrics.items()}
        if self.overall is not None:
            found[f"{prefix}_overall"] = self.overall
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, for files and --json."""
        tasks = {
            name: {"loss": score.loss, "rows": score.rows, **score.metrics}
            for name, score in self.by_task.items()
        }
        return {"split": self.split, "tasks": tasks, "loss": self.loss, "overall": self.overall}

    def table(self, title: str = "") -> Table:
        """A rich table: one line per task, then the overall score."""
        from rich.table import Table

        table = Table(title=title or f"scores on {self.split}")
        for column, justify in (("task", "left"), ("rows", "right"), ("loss", "right")):
            table.add_column(column, justify=justify)  # type: ignore[arg-type]
        table.add_column("metrics")
        for name, score in self.by_task.items():
            metrics = "  ".join(f"{metric} {value:.3f}" for metric, value in score.metrics.items())
            label = f"{name} (auxiliary)" if score.auxiliary else name
            table.add_row(label, str(score.rows), f"{score.loss:.3f}", metrics)
        overall = "" if self.overall is None else f"overall {self.overall:.3f}"
        table.add_section()
        table.add_row("all", "", f"{self.loss:.3f}", overall)
        return table
