"""The score of the worst task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtlcore.components import Aggregator

if TYPE_CHECKING:
    from collections.abc import Mapping


class Worst(Aggregator):
    """Take the lowest score: a model is as good as its worst task.

    Distributionally Robust Neural Networks for Group Shifts (ICLR 2020),
    https://arxiv.org/abs/1911.08731: the accuracy of the worst group

        overall = min_t v_t         v_t score of task t in 0 .. 1
    """

    name = "worst"
    paper = (
        "Distributionally Robust Neural Networks for Group Shifts (ICLR 2020), "
        "https://arxiv.org/abs/1911.08731"
    )

    def aggregate(self, values: Mapping[str, float]) -> float:
        """The minimum over the tasks."""
        return min(values.values())
