"""A gate for auxiliary tasks: they count while their gradient points the way of the main tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from annotated_types import Ge, Lt

from mtlcore.components import CONFLICTS, Section, Weighting
from mtlcore.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from mtlcore.errors import Problem
    from mtlcore.gradients import Gradients
    from mtlcore.recipe import Recipe
    from mtlcore.run import Run

# Rows of the state, each [T].
MEASURED, KEPT, COSINES, SMOOTHED, WITHOUT_MAIN = range(5)


class GradientSimilarity(Weighting):
    """Use an auxiliary task while its gradient helps the main tasks, and drop it while it does not.

    Adapting Auxiliary Losses Using Gradient Similarity (arXiv 2018),
    https://arxiv.org/abs/1812.02224

        g = mean of the gradients of the main tasks present,    c_a = cos(g_a, g)
        w_a = 1 if c_a > 0 else 0      (rule "unweighted")
        w_a = max(0, c_a)              (rule "weighted")
        w_m = 1 / number of main tasks of the run

    Tasks are auxiliary by `role: auxiliary`; how strong one is, is its `loss_weight`. A zero
    gradient has cosine 0. In a step without a main task no auxiliary task can be measured: their
    weights are 0 in it. Only the shared weights are gated: an auxiliary task's own adapter learns
    on.

    rule: "unweighted" or "weighted", see above.
    smoothing: share of the past in a running mean of c_a, for steps of few rows; 0 takes the
        cosine of each step alone, as the paper does.
    Shapes: G [T', T'], weights [T']. Native scale: 1 for the main tasks together, and at most 1
        for each auxiliary task.
    """

    name = "gradient_similarity"
    paper = (
        "Adapting Auxiliary Losses Using Gradient Similarity (arXiv 2018), "
        "https://arxiv.org/abs/1812.02224"
    )
    needs = "gramian"
    native_scale = "1 for the main tasks together, plus 0 to 1 for each auxiliary task"
    symmetric = False
    homogeneity = 0

    def __init__(
        self,
        *,
        rule: Literal["unweighted", "weighted"] = "unweighted",
        smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0,
    ) -> None:
        self.rule = rule
        self.smoothing = smoothing
        self.state: Tensor | None = None  # [5, T]

    def mtlcore_check(self, recipe: Recipe) -> list[Problem]:
        """Refuse a recipe without main tasks, or with nothing to gate."""
        roles = {task.role for task in recipe.tasks.values()}
        for role in ("auxiliary", "main"):
            if role not in roles:
                raise UserError(
                    f"{self.name} gates auxiliary tasks by the main ones, "
                    f"and the recipe has no {role} task",
                    where="weighting",
                    fix=f"set tasks.<task>.role: {role}, or use another weighting",
                )
        return []

    def mtlcore_weigh_tasks(self, run: Run, gradients: Gradients) -> Tensor:
        """[T'] a share for each main task, the gate for each auxiliary one."""
        if self.state is None:
            self.state = torch.zeros(5, len(run.tasks), dtype=torch.float64)
        present = torch.as_tensor(gradients.present, dtype=torch.long)
        auxiliary = [task.recipe.role == "auxiliary" for task in run.tasks]
        is_main = ~torch.tensor(auxiliary)[present]  # [T']
        weights = is_main.double() / (len(auxiliary) - sum(auxiliary))
        helpers = present[~is_main]
        if is_main.any():
            cosines = mean_cosines(gradients.gramian("model"), is_main)[~is_main]
            weights[~is_main] = self._gates(self.state, helpers, cosines)
        else:
            self.state[WITHOUT_MAIN, helpers] += 1
        return weights

    def _gates(self, state: Tensor, helpers: Tensor, cosines: Tensor) -> Tensor:
        """Weights of the auxiliary tasks with these indices and cosines."""
        first = state[MEASURED, helpers] == 0
        past = torch.where(first, cosines, state[SMOOTHED, helpers])
        smoothed = self.smoothing * past + (1 - self.smoothing) * cosines
        kept = (smoothed > 0).double()
        for row, values in ((MEASURED, 1.0), (KEPT, kept), (COSINES, cosines)):
            state[row, helpers] += values
        state[SMOOTHED, helpers] = smoothed
        return kept if self.rule == "unweighted" else smoothed.clamp(min=0)

    def mtlcore_report(self, run: Run) -> list[Section]:
        """How often each auxiliary task was kept."""
        if self.state is None:
            return []
        tasks = [task for task in run.tasks if task.recipe.role == "auxiliary"]
        state = self.state[:, [task.index for task in tasks]]
        measured = state[MEASURED]
        per_step = [
            [float(value) if steps else None for value, steps in zip(row, measured, strict=True)]
            for row in state / measured.clamp(min=1)
        ]
        return [
            Section(
                "Auxiliary tasks kept",
                topic=CONFLICTS,
                text=(
                    "An auxiliary task counts in the steps in which its gradient has a positive "
                    f"cosine with the mean gradient of the main tasks (rule {self.rule}).",
                ),
                table={
                    "auxiliary task": [task.name for task in tasks],
                    "steps measured": [int(steps) for steps in measured],
                    "steps kept": [int(steps) for steps in state[KEPT]],
                    "share kept": per_step[KEPT],
                    "mean cosine": per_step[COSINES],
                    "steps without a main task": [int(steps) for steps in state[WITHOUT_MAIN]],
                },
            )
        ]

    def state_dict(self) -> dict[str, Any]:
        """Counts and running cosines [5, T], once a step was taken."""
        return {} if self.state is None else {"state": self.state.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        saved = state.get("state")
        self.state = None if saved is None else saved.clone()


def mean_cosines(gramian: Tensor, chosen: Tensor) -> Tensor:
    """[T'] cosine of each gradient with the mean of the `chosen` ones, from G [T', T']."""
    share = chosen.double() / chosen.sum()
    products = gramian @ share
    norms = (gramian.diagonal().clamp(min=0) * (share @ products).clamp(min=0)).sqrt()
    return torch.where(norms > 0, products / norms.where(norms > 0, 1), 0)
