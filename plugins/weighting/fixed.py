"""Weights that the user chose."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mtlcore.components import NotNegative, Weighting
from mtlcore.errors import UserError, require_tasks

if TYPE_CHECKING:
    from torch import Tensor

    from mtlcore.errors import Problem
    from mtlcore.gradients import Gradients
    from mtlcore.recipe import Recipe
    from mtlcore.run import Run


class Fixed(Weighting):
    """Give every task the weight that the recipe names for it.

    Do Current Multi-Task Optimization Methods in Deep Learning Even Help? (NeurIPS 2022),
    https://arxiv.org/abs/2209.11379: tuned fixed weights match most adaptive methods.

        w_t = weights[t]

    weights: task name -> weight >= 0, naming every task, or every main one as `main` of a gate; no
        default. They are used as written: a mean over tasks has weights that sum to 1.
    Shapes: weights [T']. Native scale: the sum of the given weights of the present tasks.
    """

    name = "fixed"
    paper = (
        "Do Current Multi-Task Optimization Methods in Deep Learning Even Help? (NeurIPS 2022), "
        "https://arxiv.org/abs/2209.11379"
    )
    needs = "nothing"
    native_scale = "the sum of the weights in the recipe"
    symmetric = False
    homogeneity = 0

    def __init__(self, *, weights: dict[str, NotNegative]) -> None:
        self.weights = weights

    def mtlcore_check(self, recipe: Recipe) -> list[Problem]:
        """Refuse weights that miss a task, or that name one the recipe does not have."""
        require_tasks(self.weights, recipe.tasks, "weighting.weights")
        weighed = [name for name, task in recipe.tasks.items() if self.weighs(task)]
        missing = [name for name in weighed if name not in self.weights]
        unused = [name for name in self.weights if name not in weighed]
        if missing:
            raise UserError(
                f"weighting.weights must name every task, and misses {', '.join(missing)}",
                where="weighting",
                fix=f"add {', '.join(f'{name}: 1.0' for name in missing)} (or 0 to leave a task "
                "out of the shared weights)",
            )
        if unused:
            raise UserError(
                f"weighting.weights names {unused[0]!r}, and here it weighs main tasks alone",
                where="weighting",
                fix=f"remove {unused[0]}: an auxiliary task has the weight that its gate gives it",
            )
        if not any(self.weights.values()):
            raise UserError(
                "weighting.weights must not all be 0: nothing would be learned",
                where="weighting",
                fix=f"give a task a weight above 0, such as {next(iter(self.weights))}: 1.0",
            )
        return []

    def mtlcore_weigh_tasks(self, run: Run, gradients: Gradients) -> Tensor:
        """[T'] the given weights of the present tasks."""
        chosen = [self.weights[run.tasks[index].name] for index in gradients.present]
        return torch.tensor(chosen, dtype=torch.float64)
