"""Percentile bootstrap: how far a score could lie elsewhere with other rows of the same kind.

An Introduction to the Bootstrap (Efron and Tibshirani, Chapman & Hall 1993),
https://doi.org/10.1201/9780429246593, chapter 13

    rows of task t, drawn B times with replacement  ->  score_1 .. score_B
    interval = [2.5th, 97.5th percentile of them]

Tasks are drawn independently of each other; for the overall score, draw b of every task goes into
overall_b. Two models are compared on the same draws (a paired bootstrap).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from mtlcore.components import Evaluator
from mtlcore.errors import MtlcoreError, UserError
from mtlcore.seeds import generator

if TYPE_CHECKING:
    from torch import Tensor

    from mtlcore.evaluation.predictions import Prediction
    from mtlcore.evaluation.scores import Scores

LEVEL = 0.95
RESAMPLES = 1000
SLOW_RESAMPLES = 200
"""Of a metric that must be computed anew from all rows each time (13 ms per 100 rows for one)."""
CHUNK = 2**22
"""Row numbers drawn at a time: 32 MB."""

Resamples = int | Literal["auto"]

NO_SCORE = (UserError, ValueError, ArithmeticError, NotImplementedError)
"""What an evaluator raises for rows that it has no score for."""


@dataclass(frozen=True)
class Interval:
    """Where 95% of the resampled scores lie; `resamples` of them had a score."""

    low: float
    high: float
    resamples: int

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return vars(self).copy()

    def __str__(self) -> str:
        return f"[{self.low:.3f}, {self.high:.3f}]"


def require_resamples(resamples: Resamples) -> None:
    """Refuse a number of resamples that gives no percentiles; 0 stands for none at all."""
    if resamples != "auto" and resamples != 0 and resamples < 40:
        raise UserError(
            f"{resamples} resamples give no {LEVEL:.0%} interval",
            where="--resamples",
            fix=f"give 40 or more ({RESAMPLES} is usual), or 0 for no intervals",
        )


def count_for(evaluators: Sequence[Evaluator], resamples: Resamples) -> int:
    """How many resamples; "auto" takes fewer when one of the metrics is slow to resample."""
    require_resamples(resamples)
    if resamples != "auto":
        return resamples
    return RESAMPLES if all(is_quick(evaluator) for evaluator in evaluators) else SLOW_RESAMPLES


def is_quick(evaluator: Evaluator) -> bool:
    """Whether the metric has a way of its own to score many draws of rows."""
    cls = type(evaluator)
    return cls.row_scores is not Evaluator.row_scores or cls.resample is not Evaluator.resample


def draws(rows: int, resamples: int, *key: object) -> Iterator[Tensor]:
    """[b, rows] row numbers drawn with replacement, `resamples` in all, in bounded pieces."""
    draw = generator(*key, "bootstrap", rows)
    size = max(1, CHUNK // rows)
    for start in range(0, resamples, size):
        yield torch.randint(rows, (min(size, resamples - start), rows), generator=draw)


def resample(
    evaluator: Evaluator, predictions: Sequence[Prediction], resamples: int, *key: object
) -> Tensor:
    """[B] the metric on each draw of the rows; NaN where it has no value there."""
    scores: list[float] = []
    for drawn in draws(len(predictions), resamples, *key):
        try:
            scores += evaluator.resample(predictions, drawn)
        except NO_SCORE:
            scores += [_score_or_nan(evaluator, predictions, row) for row in drawn.tolist()]
    return torch.tensor(scores, dtype=torch.float64)


def _score_or_nan(
    evaluator: Evaluator, predictions: Sequence[Prediction], rows: Sequence[int]
) -> float:
    """A draw may lack what a metric needs, e.g. rows of a second class."""
    try:
        return float(evaluator.score([predictions[row] for row in rows]))
    except NO_SCORE:
        return math.nan


def resample_losses(predictions: Sequence[Prediction], resamples: int, *key: object) -> Tensor:
    """[B] mean loss per target token on each draw of the rows."""
    sums = torch.tensor([row.loss_sum for row in predictions], dtype=torch.float64)
    tokens = torch.tensor([row.tokens for row in predictions], dtype=torch.float64)
    parts = [
        sums[drawn].sum(1) / tokens[drawn].sum(1)
        for drawn in draws(len(predictions), resamples, *key)
    ]
    return torch.cat(parts)


def interval(values: Tensor) -> Interval | None:
    """The percentile interval of resampled scores [B]; None where fewer than half have a value."""
    known = values[torch.isfinite(values)]
    if not len(values) or 2 * len(known) < len(values):
        return None
    ends = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    low, high = torch.quantile(known, ends).tolist()
    return Interval(low, high, len(known))


def with_intervals(
    scores: Scores,
    evaluators: Mapping[str, Sequence[Evaluator]],
    answers: Mapping[str, Sequence[Prediction]],
    *,
    resamples: Resamples = "auto",
    seed: int = 0,
) -> Scores:
    """The same scores with intervals of the tasks' primary metrics and of the overall score."""
    primary = {name: evaluators[name][0] for name, s in scores.by_task.items() if s.primary}
    count = count_for(list(primary.values()), resamples)
    if not count:
        return scores
    by_task = dict(scores.by_task)
    values: dict[str, Tensor] = {}  # [B] of each task, in 0 .. 1
    for name, evaluator in primary.items():
        drawn = resample(evaluator, answers[name], count, seed, name)
        by_task[name] = replace(by_task[name], interval=interval(drawn))
        values[name] = torch.tensor(
            [evaluator.normalized(value) for value in drawn.tolist()], dtype=torch.float64
        )
    found = replace(scores, by_task=by_task)
    counted = [name for name in found.values if name in values]
    return replace(found, overall_interval=interval(_overall(found, values, counted)))


def _overall(scores: Scores, values: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """[B] the overall score of each draw."""
    if not names:
        return torch.empty(0, dtype=torch.float64)
    found = []
    for row in torch.stack([values[name] for name in names], dim=1).tolist():  # [T]
        if any(map(math.isnan, row)):  # an aggregator may lose it: min() goes by the order
            found.append(math.nan)
            continue
        try:
            found.append(scores.aggregate(dict(zip(names, row, strict=True))))
        except (MtlcoreError, ValueError, ArithmeticError):
            found.append(math.nan)
    return torch.tensor(found, dtype=torch.float64)
