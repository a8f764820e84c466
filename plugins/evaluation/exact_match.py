"""Share of rows whose text is exactly the target."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtlcore.components import Evaluator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtlcore.evaluation.predictions import Prediction


class ExactMatch(Evaluator):
    """Share of the rows whose output is the target, white space at the ends left out.

    SQuAD: 100,000+ Questions for Machine Comprehension of Text (EMNLP 2016),
    https://arxiv.org/abs/1606.05250

        exact match = #{strip(output) = strip(target)} / #rows      0 .. 1, more is better

    ignore_case: compare without regard to case (False). Nothing else is normalised.
    """

    name = "exact_match"
    paper = (
        "SQuAD: 100,000+ Questions for Machine Comprehension of Text (EMNLP 2016), "
        "https://arxiv.org/abs/1606.05250"
    )

    def __init__(self, *, ignore_case: bool = False) -> None:
        self.ignore_case = ignore_case

    def score(self, predictions: Sequence[Prediction]) -> float:
        """0 .. 1."""
        self.require(predictions)
        return sum(self.row_scores(predictions)) / len(predictions)

    def row_scores(self, predictions: Sequence[Prediction]) -> list[float]:
        """1 where the texts are the same, else 0."""
        pairs = [(row.output.strip(), row.target.strip()) for row in predictions]
        if self.ignore_case:
            pairs = [(output.casefold(), target.casefold()) for output, target in pairs]
        return [float(output == target) for output, target in pairs]
