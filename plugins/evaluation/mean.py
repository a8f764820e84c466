"""The mean of the tasks' scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtlcore.components import Aggregator, NotNegative
from mtlcore.errors import UserError, require_tasks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mtlcore.errors import Problem
    from mtlcore.recipe import Recipe


class Mean(Aggregator):
    """Count every task once, or by its weight: the arithmetic mean of the scores.

    GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding (ICLR
    2019), https://arxiv.org/abs/1804.07461

        overall = sum_t w_t v_t / sum_t w_t         v_t score of task t in 0 .. 1

    weights: task name -> weight >= 0; a task that is not named has 1 (default: all have 1).
    """

    name = "mean"
    paper = (
        "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding "
        "(ICLR 2019), https://arxiv.org/abs/1804.07461"
    )

    def __init__(self, *, weights: dict[str, NotNegative] | None = None) -> None:
        self.weights = weights or {}

    def mtlcore_check(self, recipe: Recipe) -> list[Problem]:
        """Refuse a weight of a task that the recipe does not have."""
        require_tasks(self.weights, recipe.tasks, "overall.weights")
        return []

    def aggregate(self, values: Mapping[str, float]) -> float:
        """The mean over the tasks."""
        weights = {name: self.weights.get(name, 1.0) for name in values}
        total = sum(weights.values())
        if not total:
            raise UserError(
                f"overall.weights of {', '.join(values)} are all 0: there is no mean",
                where="overall",
                fix="give a scored main task a weight above 0",
            )
        return sum(weights[name] * value for name, value in values.items()) / total
