"""The geometric mean of the tasks' scores."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mtlcore.components import Aggregator
from mtlcore.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping


class GeometricMean(Aggregator):
    """Multiply the scores and take the root: equal ratios count alike, at any level of score.

    How Not to Lie with Statistics: The Correct Way to Summarize Benchmark Results (CACM 1986),
    https://doi.org/10.1145/5666.5673

        overall = (prod_t v_t)^(1/T)        v_t score of task t in 0 .. 1

    One task at 0 makes it 0. Scores below 0 are an error.
    """

    name = "geometric_mean"
    paper = (
        "How Not to Lie with Statistics: The Correct Way to Summarize Benchmark Results (CACM "
        "1986), https://doi.org/10.1145/5666.5673"
    )

    def aggregate(self, values: Mapping[str, float]) -> float:
        """The geometric mean over the tasks."""
        for name, value in values.items():
            if value < 0:
                raise UserError(
                    f"geometric_mean has no meaning for the score {value:g} of task {name!r}",
                    where="overall",
                    fix="use overall: mean or worst, or a metric that is never below 0",
                )
        if not all(values.values()):
            return 0.0
        return math.exp(sum(map(math.log, values.values())) / len(values))
