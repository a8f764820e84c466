"""What the steps of a run did, as metrics.jsonl and result.json tell it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

N = TypeVar("N", int, float)

UNTURNED = 0.9999
"""Mean cosine of updates with the mean gradient (0.8 degrees) above which they count as equal."""


@dataclass
class StepRecord:
    """What one step did; `metrics.jsonl` has one line per record.

    `task_seconds` shares the step's `seconds` out by tokens: the tasks run in one pass together.
    `peak_memory_mb` is that of the step on a GPU, of the process so far on a CPU;
    `task_peak_memory_mb` the highest of the steps so far that had rows of the task.

    From the task gradients of the shared weights, each times its `loss_weight`, in a step whose
    Gramian a component had measured (else None; None too in a step without an update):

    * `task_norms` by present task;
    * `conflict_rate`, share of the pairs of tasks whose cosine is below 0;
    * `norm_spread`, largest over smallest norm;
    * `update_cosine`, of the update with the mean gradient (`conflicts.update_cosine`); None also
      where one of the two is 0, and of a `Direction`, which G does not know.

    Gradients of 0 are left out; where fewer than two are left, the last three are None.

    `weights` by scope are means over the scopes, and `weight_spread` their standard deviations over
    the scopes by present task, else None.

    `skipped_rows` are rows by task whose loss was not finite; they are not among `rows` and
    `tokens`. `skipped_steps` is 1 if the step made no update. Where the losses of the step
    are not finite, `losses` is empty and `loss` None.
    """

    step: int
    stage: str
    losses: dict[str, float]
    weights: dict[str, float]
    learning_rate: float
    grad_norms: dict[str, float]
    rows: dict[str, int]
    tokens: dict[str, int]
    seconds: float = 0.0
    task_seconds: dict[str, float] = field(default_factory=dict)
    penalties: dict[str, float] = field(default_factory=dict)
    peak_memory_mb: float = 0.0
    task_peak_memory_mb: dict[str, float] = field(default_factory=dict)
    skipped_rows: dict[str, int] = field(default_factory=dict)
    skipped_steps: int = 0
    task_norms: dict[str, float] | None = None
    conflict_rate: float | None = None
    norm_spread: float | None = None
    update_cosine: float | None = None
    weight_spread: dict[str, float] | None = None

    @property
    def loss(self) -> float | None:
        """Mean of the losses of the tasks that were in the step; None if there was none."""
        return sum(self.losses.values()) / len(self.losses) if self.losses else None

    def to_json(self) -> dict[str, Any]:
        """The record's line in metrics.jsonl."""
        return {"loss": self.loss, **vars(self)}


@dataclass
class Totals:
    """What the steps of a run took in sum, by task: its cost."""

    rows: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    task_seconds: dict[str, float] = field(default_factory=dict)
    task_peak_memory_mb: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    skipped_rows: dict[str, int] = field(default_factory=dict)
    skipped_steps: int = 0

    def add(self, record: StepRecord) -> None:
        """Take in one step."""
        _add(self.rows, record.rows)
        _add(self.tokens, record.tokens)
        _add(self.task_seconds, record.task_seconds)
        _add(self.skipped_rows, record.skipped_rows)
        self.seconds += record.seconds
        self.skipped_steps += record.skipped_steps
        self.task_peak_memory_mb = dict(record.task_peak_memory_mb)


def _add(sums: dict[str, N], values: Mapping[str, N]) -> None:
    for name, value in values.items():
        sums[name] = sums.get(name, 0) + value
