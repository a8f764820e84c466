"""One plugin of each kind; the module's `mtlcore_components` tells which."""

from __future__ import annotations

from mtlcore.components import Component
from mtlcore.hookspecs import hookimpl
from mtlcore_one_of_each.answers import EmptyAnswers, LengthRatio, Median
from mtlcore_one_of_each.rows import KeyValue, LastRows, NewestFirst, RoundRobin
from mtlcore_one_of_each.training import LossAverages, SmallWeights


@hookimpl
def mtlcore_components() -> list[type[Component]]:
    """Everything in this package."""
    return [
        EmptyAnswers,
        KeyValue,
        LastRows,
        LengthRatio,
        LossAverages,
        Median,
        NewestFirst,
        RoundRobin,
        SmallWeights,
    ]
