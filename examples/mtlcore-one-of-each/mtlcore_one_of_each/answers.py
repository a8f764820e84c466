"""What looks at answers and scores: an evaluator, an aggregator and an auditor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from mtlcore.components import Aggregator, Auditor, Count, Evaluator, Finding, NotNegative


class LengthRatio(Evaluator):
    """Mean length of the answers over that of the targets, in characters; 1 is right."""

    name = "length_ratio"

    def score(self, predictions: Sequence[Any]) -> float:
        """Sum of lengths over sum of lengths."""
        return sum(len(p.output) for p in predictions) / sum(len(p.target) for p in predictions)

    def normalized(self, score: float) -> float:
        """1 at the right length, 0 for empty answers, towards 0 for endless ones."""
        return min(score, 1 / score) if score else 0.0


class Median(Aggregator):
    """Count the task in the middle: one very good or very bad task changes nothing."""

    name = "median"

    def aggregate(self, values: Mapping[str, float]) -> float:
        """The median over the tasks."""
        return median(values.values())


class EmptyAnswers(Auditor):
    """Find tasks whose answers are empty for some rows."""

    name = "empty_answers"

    def __init__(
        self, *, every_n_steps: Count | None = None, fail_above: NotNegative | None = None
    ) -> None:
        self.every_n_steps = every_n_steps
        self.fail_above = fail_above

    def audit(self, run: Any, predictions: Mapping[str, Sequence[Any]]) -> list[Finding]:
        """The share of empty answers, task by task."""
        findings = []
        for name, answers in predictions.items():
            share = sum(not answer.output for answer in answers) / len(answers)
            failed = self.fail_above is not None and share > self.fail_above
            message = f"{share:.0%} of the answers are empty"
            limit = self.fail_above
            findings.append(Finding(self.name, name, share, message, failed, limit=limit))
        return findings
