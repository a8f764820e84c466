"""Share of rows whose chosen option is the right one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtlcore.components import Evaluator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtlcore.evaluation.predictions import Prediction


class Accuracy(Evaluator):
    """Share of the rows whose chosen option is the right one.

    A Systematic Analysis of Performance Measures for Classification Tasks (Information Processing
    & Management 2009), https://doi.org/10.1016/j.ipm.2009.03.002

        accuracy = #{choice = label} / #rows        0 .. 1, more is better

    A row without a choice counts as wrong. Same as scikit-learn's `accuracy_score`.
    """

    name = "accuracy"
    paper = (
        "A Systematic Analysis of Performance Measures for Classification Tasks (Information "
        "Processing & Management 2009), https://doi.org/10.1016/j.ipm.2009.03.002"
    )
    inputs = "label"

    def score(self, predictions: Sequence[Prediction]) -> float:
        """0 .. 1."""
        self.require(predictions)
        return sum(self.row_scores(predictions)) / len(predictions)

    def row_scores(self, predictions: Sequence[Prediction]) -> list[float]:
        """1 where the choice is right, else 0."""
        return [float(row.choice == row.label) for row in predictions]
