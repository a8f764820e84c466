"""The mean of the tasks' scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtlcore.components import Aggregator

if TYPE_CHECKING:
    from collections.abc import Mapping


class Mean(Aggregator):
    """Count every task once: the arithmetic mean of the scores."""

    name = "mean"

    def aggregate(self, values: Mapping[str, float]) -> float:
        """The mean over the tasks."""
        return sum(values.values()) / len(values)
