"""The harmonic mean of the tasks' scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtlcore.components import Aggregator
from mtlcore.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping


class HarmonicMean(Aggregator):
    """Average the reciprocals: low scores pull harder than in any other mean.

    Zero-Shot Learning: A Comprehensive Evaluation of the Good, the Bad and the Ugly (TPAMI 2019),
    https://arxiv.org/abs/1707.00600, section 5.2

        overall = T / sum_t (1 / v_t)       v_t score of task t in 0 .. 1

    One task at 0 makes it 0. Scores below 0 are an error.
    """

    name = "harmonic_mean"
    paper = (
        "Zero-Shot Learning: A Comprehensive Evaluation of the Good, the Bad and the Ugly (TPAMI "
        "2019), https://arxiv.org/abs/1707.00600"
    )

    def aggregate(self, values: Mapping[str, float]) -> float:
        """The harmonic mean over the tasks."""
        for name, value in values.items():
            if value < 0:
                raise UserError(
                    f"harmonic_mean has no meaning for the score {value:g} of task {name!r}",
                    where="overall",
                    fix="use overall: mean or worst, or a metric that is never below 0",
                )
        if not all(values.values()):
            return 0.0
        return len(values) / sum(1 / value for value in values.values())
