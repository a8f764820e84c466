"""Weights that a method keeps and multiplies by factors, step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mtlcore.components import Weighting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from mtlcore.run import Run

    Array = NDArray[np.float64]
    Indices = NDArray[np.int64]


class LearnedShares(Weighting):
    """A share for each task it weighs, with sum 1, kept as logarithms: none is ever lost to 0.

    In numpy, on the memory of `state`: on so few numbers torch's calls cost more than the
    arithmetic.
    """

    def __init__(self) -> None:
        self.state: dict[str, Tensor] = {}

    def start(self, run: Run) -> None:
        """Equal shares, before the first step."""
        if not self.state:
            share = torch.tensor(1 / len(self.weighed(run)), dtype=torch.float64)
            self.state["log_shares"] = share.log().repeat(len(run.tasks))

    def shares(self, tasks: Indices) -> Array:
        """[T'] the shares of these tasks."""
        shares: Array = np.exp(self.state["log_shares"].numpy()[tasks])
        return shares

    def multiply(self, tasks: Indices, log_factors: Array) -> None:
        """Change the shares of these tasks [T']; their sum, and all other shares, stay."""
        if not len(tasks):
            return
        logs = self.state["log_shares"].numpy()
        old = logs[tasks]
        new = old + log_factors
        new -= new.max()  # the logarithm of the sum is small beside large factors
        logs[tasks] = new - np.logaddexp.reduce(new) + np.logaddexp.reduce(old)

    def state_dict(self) -> dict[str, Any]:
        """The logarithms of the shares [T] and what else is kept, once a step was taken."""
        return {name: value.to("cpu", copy=True) for name, value in self.state.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.state = {name: value.clone() for name, value in state.items()}


class Baselines(LearnedShares):
    """Shares that move by values relative to the first ones of each task."""

    def start(self, run: Run) -> None:
        """Equal shares and no first values, before the first step."""
        super().start(run)
        if "first" not in self.state:
            self.state["first"] = torch.full((len(run.tasks),), torch.nan, dtype=torch.float64)

    def first(self, tasks: Indices, values: Array) -> Array:
        """[T'] the first value above 0 of each task, these included; NaN if there was none."""
        first = self.state["first"].numpy()
        known: Array = first[tasks]
        known = np.where(np.isnan(known) & (values > 0), values, known)
        first[tasks] = known
        return known
