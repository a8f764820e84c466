"""Which tasks help and which hurt each other, measured in every step of the training."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from mtlcore.components import CONFLICTS, Chart, Monitor, Section
from mtlcore.conflicts import PairSums, means
from mtlcore.distributed import is_main
from mtlcore.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from mtlcore.errors import Problem
    from mtlcore.gradients import Gradients
    from mtlcore.model.layout import Layout
    from mtlcore.run import Run

FILE = "affinity.json"


class Affinity(Monitor):
    """Measure how the gradients of each pair of tasks agree, over the whole run.

    Efficiently Identifying Task Groupings for Multi-Task Learning (NeurIPS 2021),
    https://arxiv.org/abs/2109.04617

        cosine_ij    mean of G_ij / (|g_i| |g_j|)
        conflict_ij  share of the steps in which the cosine is below 0
        affinity_ij  mean of lr G_ij / l_j: by what share one plain gradient step of size lr on
                     task i alone lowers the loss of task j, to first order

    The paper takes that step and reads the loss again, Z_ij = 1 - l_j(theta - lr g_i) / l_j; its
    first order needs G alone, which every step has. It is about plain gradient descent: an Adam
    step is larger, so read affinities against each other. Losses and gradients are those of the
    tasks times their `loss_weight`, and of the weights that tasks share; cosines of two tasks that
    share only some of the adapters are of all they share with anyone.

    A pair counts in the steps in which both tasks are present with a gradient that is not 0. At the
    end everything is written to the run's affinity.json, which `mtlcore group` reads:

        {"tasks": [T], "steps", "norm": [T], "together": [T, T] steps of the pair,
         "cosine": [T, T], "conflict": [T, T], "affinity": [T, T] from row to column}

    with null for a pair that never met. Steps count over resumed parts of a run.
    """

    name = "affinity"
    paper = (
        "Efficiently Identifying Task Groupings for Multi-Task Learning (NeurIPS 2021), "
        "https://arxiv.org/abs/2109.04617"
    )
    needs = "gramian"

    def __init__(self) -> None:
        self.pairs: PairSums | None = None
        self.affinities: Tensor | None = None  # [T, T], sums over the steps
        self._step: tuple[Tensor, Tensor] | None = None  # indices [T'], G / l [T', T']

    def mtlcore_check(self, layout: Layout) -> list[Problem]:
        """Refuse a run in which no weight is shared: there is nothing to compare."""
        if all(len(adapter.tasks) < 2 for adapter in layout.adapters):
            raise UserError(
                f"{self.name} compares gradients of weights that several tasks share, "
                "and this run has none",
                where="monitoring",
                fix="train two tasks or more with sharing.shared above 0, or leave it out",
            )
        return []

    def mtlcore_before_update(self, run: Run, gradients: Gradients) -> None:
        """Add this step's cosines, conflicts and norms."""
        if self.pairs is None:
            self.pairs = PairSums(len(run.tasks))
            self.affinities = torch.zeros_like(self.pairs.sums[0])
        gramian, losses = gradients.gramian("model"), gradients.mean_losses()
        self.pairs.add(gradients.present, gramian)
        usable = losses > 0
        per_rate = torch.where(usable, gramian / losses.where(usable, 1), 0)
        self._step = torch.as_tensor(gradients.present, dtype=torch.long), per_rate

    def mtlcore_step_end(self, run: Run, record: Mapping[str, Any]) -> None:
        """Add the affinities, now that the learning rate of the step is told."""
        if self.affinities is None or self._step is None:
            return
        present, per_rate = self._step
        self.affinities[present[:, None], present] += record["learning_rate"] * per_rate
        self._step = None

    def mtlcore_run_end(self, run: Run) -> None:
        """Write affinity.json."""
        if is_main() and self.pairs is not None:
            text = json.dumps(self.measured(run), indent=1)
            (run.folder / FILE).write_text(text + "\n", encoding="utf-8")

    def measured(self, run: Run) -> dict[str, Any]:
        """What affinity.json holds."""
        assert self.pairs is not None
        assert self.affinities is not None
        return {
            "tasks": [task.name for task in run.tasks],
            **self.pairs.means(),
            "affinity": means(self.affinities, self.pairs.sums[0]),
        }

    def mtlcore_report(self, run: Run) -> list[Section]:
        """Heatmaps of the pairs, and a table of the tasks."""
        if self.pairs is None:
            return []
        found = self.measured(run)
        names = found["tasks"]
        if not self.pairs.sums[0].triu(1).any():  # no two tasks met in a step
            return []
        titles = {
            "cosine": "mean cosine of the gradients",
            "conflict": "share of steps in conflict (cosine below 0)",
            "affinity": "affinity: how much a step on the row's task lowers the column's loss",
        }
        return [
            Section(
                "Affinity of the tasks",
                topic=CONFLICTS,
                text=(
                    f"Measured in {found['steps']} steps on the gradients of the shared weights; "
                    "a pair counts in the steps in which both tasks were present.",
                    "The affinity is the first-order form of TAG: the relative decrease of the "
                    "loss by one plain gradient step. Compare affinities with each other only.",
                ),
                table={
                    "task": names,
                    "steps": [found["together"][task][task] for task in range(len(names))],
                    "mean gradient norm": found["norm"],
                    **{
                        f"mean {key} with others": [
                            _mean_of_others(found[key][task], task) for task in range(len(names))
                        ]
                        for key in ("cosine", "conflict")
                    },
                },
                charts=tuple(
                    Chart("heatmap", title, labels=names, columns=names, values=found[key])
                    for key, title in titles.items()
                ),
            )
        ]

    def state_dict(self) -> dict[str, Any]:
        """The sums of the pairs [3, T, T] and of the affinities [T, T], once a step was taken."""
        if self.pairs is None or self.affinities is None:
            return {}
        return {
            "steps": self.pairs.steps,
            "pairs": self.pairs.sums.clone(),
            "affinities": self.affinities.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.pairs = self.affinities = None
        if state:
            self.pairs = PairSums(len(state["affinities"]))
            self.pairs.steps, self.pairs.sums = int(state["steps"]), state["pairs"].clone()
            self.affinities = state["affinities"].clone()


def _mean_of_others(row: list[float | None], task: int) -> float | None:
    others = [value for index, value in enumerate(row) if index != task and value is not None]
    return sum(others) / len(others) if others else None
