"""Intervals and tests that auditors share: rates, means of paired differences, groups."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtlcore.evaluation.bootstrap import draws, interval
from mtlcore.seeds import generator

Z = 1.959963984540054
"""The standard normal's 97.5th percentile."""
CHUNK = 2**22
"""Numbers drawn at a time: 32 MB."""


@dataclass(frozen=True)
class Mean:
    """A mean with its 95% bootstrap interval and the p-value of a sign-flip test."""

    value: float
    low: float
    high: float
    p: float

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"mean": self.value, "low": self.low, "high": self.high, "p": self.p}


def rate_interval(count: int, n: int) -> tuple[float, float]:
    """The 95% interval of a share of n rows (Wilson, JASA 1927): of use at 0 and n too."""
    share, middle = count / n, Z * Z / (2 * n)
    half = Z * math.sqrt(share * (1 - share) / n + (Z / (2 * n)) ** 2)
    scale = 1 + Z * Z / n
    return max((share + middle - half) / scale, 0.0), min((share + middle + half) / scale, 1.0)


def paired_means(differences: Tensor, resamples: int, *key: object) -> tuple[list[Mean], float]:
    """Means of paired differences [n, columns], and the p-value of all columns together.

    Rows are drawn with replacement for the intervals. For the p-values the sign of each row is
    flipped at random, as it may be if the members of a pair are exchangeable: p is the share of
    flips with a mean as far from 0 (of all: with any column's as far as the farthest, so that
    many columns do not find something by chance; Westfall and Young 1993).
    """
    differences = differences.double()
    n = len(differences)
    means = differences.mean(0)  # [columns]
    drawn = torch.cat([differences[rows].mean(1) for rows in draws(n, resamples, *key)])
    at_least = torch.zeros_like(means)
    any_at_least, farthest = 0.0, means.abs().max()
    draw = generator(*key, "sign flips")
    size = max(1, CHUNK // n)
    for start in range(0, resamples, size):
        count = min(size, resamples - start)
        signs = torch.randint(2, (count, n), generator=draw).double() * 2 - 1
        flipped = (signs @ differences / n).abs()  # [count, columns]
        slack = 1e-12 * farthest  # a sum of the same numbers in another order is no less far
        at_least += (flipped >= means.abs() - slack).sum(0)
        any_at_least += float((flipped.amax(1) >= farthest - slack).sum())
    found = []
    for column, mean in enumerate(means.tolist()):
        ends = interval(drawn[:, column])
        assert ends is not None
        p = (1 + at_least[column].item()) / (1 + resamples)
        found.append(Mean(mean, ends.low, ends.high, p))
    return found, (1 + any_at_least) / (1 + resamples)


def spreads(scores: Tensor, groups: Tensor, resamples: int, *key: object) -> tuple[float, Tensor]:
    """The largest mean of a group minus the smallest, and the same of groups drawn by lot.

    scores [n], groups [n] numbers from 0; drawn [resamples], with group sizes as they are. Equal
    keys and n give the same draws.
    """
    scores, n = scores.double(), len(scores)
    sizes = torch.bincount(groups).double()

    def spread(values: Tensor) -> Tensor:  # [count, n] -> [count]
        sums = values.new_zeros(len(values), len(sizes)).index_add(1, groups, values)
        means = sums / sizes
        return means.amax(1) - means.amin(1)

    draw = generator(*key, "permutations")
    size, drawn = max(1, CHUNK // n), []
    for start in range(0, resamples, size):
        order = torch.rand(min(size, resamples - start), n, generator=draw).argsort(1)
        drawn.append(spread(scores[order]))
    return float(spread(scores[None])), torch.cat(drawn)


def p_value(observed: float, drawn: Tensor) -> float:
    """The share of draws that are as large, what was observed being one of them."""
    return (1 + int((drawn >= observed - 1e-12).sum())) / (1 + len(drawn))
