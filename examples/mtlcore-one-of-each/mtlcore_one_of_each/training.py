"""What acts on or watches the training: a regularizer and a monitor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mtlcore.components import Chart, Monitor, NotNegative, Penalty, Regularizer, Section, Share


class SmallWeights(Regularizer):
    """Pull the trainable weights towards 0 by their sum of absolute values (L1)."""

    name = "small_weights"
    acts_on = "weights"

    def __init__(self, *, strength: NotNegative = 1e-4) -> None:
        self.strength = strength

    def mtlcore_penalties(self, run: Any, batch: Any, outputs: Any) -> list[Penalty]:
        """One per step, in the call without a batch."""
        if batch is not None:
            return []
        sums = [weight.abs().sum() for _, weight in run.model.trainable_parameters()]
        return [Penalty(self.name, "weights", self.strength * torch.stack(sums).sum())]


class LossAverages(Monitor):
    """Follow the smoothed loss of each task, and draw it in the report."""

    name = "loss_averages"

    def __init__(self, *, smoothing: Share = 0.9) -> None:
        self.smoothing = smoothing
        self.curves: dict[str, list[tuple[float, float]]] = {}

    def mtlcore_step_end(self, run: Any, record: Mapping[str, Any]) -> None:
        """One point per task and step."""
        for name, loss in record["losses"].items():
            curve = self.curves.setdefault(name, [])
            old = curve[-1][1] if curve else loss
            curve.append((record["step"], self.smoothing * old + (1 - self.smoothing) * loss))

    def mtlcore_report(self, run: Any) -> list[Section]:
        """A picture and the last values."""
        chart = Chart("lines", "smoothed losses", series=self.curves, x_label="step")
        table = {
            "task": list(self.curves),
            "loss": [round(curve[-1][1], 3) for curve in self.curves.values()],
        }
        return [Section("Smoothed losses", table=table, charts=(chart,))]

    def state_dict(self) -> dict[str, Any]:
        """The curves so far."""
        return {"curves": {name: list(curve) for name, curve in self.curves.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self.curves = {
            name: [(x, y) for x, y in curve] for name, curve in state.get("curves", {}).items()
        }
