"""How often and where the tasks pull the shared weights in opposite directions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mtlcore.components import CONFLICTS, Chart, Monitor, Scope, Section
from mtlcore.conflicts import pair_counts
from mtlcore.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from mtlcore.errors import Problem
    from mtlcore.gradients import Gradients
    from mtlcore.model.layout import Layout
    from mtlcore.run import Run

POINTS = 200  # of a curve in the report: a longer run has means of several steps


class Conflicts(Monitor):
    """Follow conflicts between tasks over the steps, and find the blocks where they are.

    Gradient Surgery for Multi-Task Learning (NeurIPS 2020), https://arxiv.org/abs/2001.06782

    Two tasks are in conflict where the cosine of their gradients for the shared weights is below 0.
    Of each step it keeps

        conflicts  share of the pairs present that are in conflict
        spread     largest over smallest norm of a task's gradient
        agreement  mean cosine of a task's gradient with the mean gradient

    scope: "layer" (default) also counts conflicts in each block of the network, "factor" in each
        LoRA factor, "model" in all shared weights only.

    A gradient of 0 is left out. A step with fewer than two tasks has no pair and is not kept.
    """

    name = "conflicts"
    paper = (
        "Gradient Surgery for Multi-Task Learning (NeurIPS 2020), https://arxiv.org/abs/2001.06782"
    )
    needs = "gramian"

    def __init__(self, *, scope: Scope = "layer") -> None:
        self.scope = scope
        self.curve: list[list[float]] = []  # step, conflicts, spread, agreement
        self.places: list[str] = []  # names of the scopes
        self.counts: Tensor | None = None  # [S, 3]: pairs, conflicts, sum of cosines

    def mtlcore_check(self, layout: Layout) -> list[Problem]:
        """Refuse a run in which no weight is shared."""
        if all(len(adapter.tasks) < 2 for adapter in layout.adapters):
            raise UserError(
                f"{self.name} looks at weights that several tasks share, and this run has none",
                where="monitoring",
                fix="train two tasks or more with sharing.shared above 0, or leave it out",
            )
        return []

    def mtlcore_before_update(self, run: Run, gradients: Gradients) -> None:
        """Measure the step."""
        gramian = gradients.gramian("model")
        pairs, conflicts, _ = pair_counts(gramian[None])[0].tolist()
        if not pairs:
            return
        norms = gramian.diagonal()[gramian.diagonal() > 0].sqrt()  # not all are 0
        total = gramian.sum().clamp(min=0).sqrt()  # norm of the sum; the mean has its direction
        here = gramian.diagonal() > 0
        along = gramian.sum(0)[here] / (norms * total) if total > 0 else torch.zeros_like(norms)
        # The optimizer step that is being made has this number.
        self.curve.append(
            [run.step + 1, conflicts / pairs, float(norms.max() / norms.min()), float(along.mean())]
        )
        if self.scope != "model":
            counts = pair_counts(gradients.gramian(self.scope))
            if self.counts is None:
                self.counts = torch.zeros_like(counts)
            self.places = [name for name, _, _ in gradients.arena.scopes(self.scope)]
            self.counts += counts

    def mtlcore_report(self, run: Run) -> list[Section]:
        """Curves over the steps, and a table of the places."""
        if not self.curve:
            return []
        curve = torch.tensor(self.curve, dtype=torch.float64)
        _, conflicts, spread, agreement = curve.mean(0).tolist()
        return [
            Section(
                "Conflicts between the tasks",
                topic=CONFLICTS,
                text=(
                    f"Over {len(curve)} steps {conflicts:.1%} of the pairs of tasks were in "
                    "conflict: the cosine of their gradients for the shared weights was below 0.",
                    f"The largest gradient of a task was {spread:.2f} times the smallest, and a "
                    f"task's gradient had a cosine of {agreement:.2f} with the mean gradient "
                    "(means over the steps).",
                ),
                table=self._table(),
                charts=(
                    _chart("Conflicts over the steps", "share of pairs", curve, {"conflicts": 1}),
                    _chart("Spread of the norms", "largest / smallest", curve, {"spread": 2}),
                    _chart("Agreement with the mean", "mean cosine", curve, {"agreement": 3}),
                ),
            )
        ]

    def _table(self) -> dict[str, list[Any]]:
        if self.counts is None or not self.places:
            return {}
        pairs, conflicts, cosines = self.counts.T.tolist()
        return {
            self.scope: self.places,
            "conflicts": [c / n if n else None for c, n in zip(conflicts, pairs, strict=True)],
            "mean cosine": [c / n if n else None for c, n in zip(cosines, pairs, strict=True)],
        }

    def state_dict(self) -> dict[str, Any]:
        """The curve [n, 4] and the counts of the places, once a step was measured."""
        if not self.curve:
            return {}
        state = {"curve": torch.tensor(self.curve, dtype=torch.float64), "places": self.places}
        return state if self.counts is None else {**state, "counts": self.counts.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.curve = state["curve"].tolist() if state else []
        self.places = list(state.get("places", ()))
        saved = state.get("counts")
        self.counts = None if saved is None else saved.clone()


def _chart(title: str, y_label: str, curve: Tensor, columns: dict[str, int]) -> Chart:
    """Lines over the steps, each point the mean of as many steps as leave `POINTS` points."""
    chunks = curve.split(-(-len(curve) // POINTS))
    points = [chunk.mean(0).tolist() for chunk in chunks]
    series = {name: [(p[0], p[column]) for p in points] for name, column in columns.items()}
    return Chart("lines", title, series=series, x_label="step", y_label=y_label)
