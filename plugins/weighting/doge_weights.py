"""Weights that follow how much the gradient of a task helps all others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from mtlcore.components import Positive
from mtlcore_plugins.weighting._learned import LearnedShares
from mtlcore_plugins.weighting._units import inverse, norms

if TYPE_CHECKING:
    from torch import Tensor

    from mtlcore.gradients import Gradients
    from mtlcore.run import Run

LARGEST_SCORE = 5.0


class DoGEWeights(LearnedShares):
    """Weigh a task up while its gradient points the way of the gradients of all tasks (DoGE).

    DoGE: Domain Reweighting with Generalization Estimation (ICML 2024),
    https://arxiv.org/abs/2310.15393

        W_i = <g_i, sum_j g_j> = (G 1)_i
        w_i <- w_i exp(eta W_i / mu),    then w to the sum 1

    The paper learns the shares in which a larger model draws its data by a small one, whose loss
    they weigh. Here they weigh the losses of the model that is trained. The new weights are those
    of the step, as in the paper's code. An absent task keeps its weight; those present share what
    they had together. A zero gradient has W_i = 0.

    rule: "paper", as above: W grows with the square of the gradients, and large ones soon give all
        weight to one task. "code" is what the authors run: W_i leaves out a task's own product,
        is divided by the mean norm of the present gradients, and is kept within 0 and 5. Of two
        tasks both have the same W then, and their weights never move.
    step_size: eta / mu. 0.01 is the learning rate 5e-4 of the authors' proxy, which is their eta,
        by their mu 0.05; eta is constant here. By rule "paper" gradients much shorter than 1, as
        those of LoRA often are, hardly move a weight in a run: it grows with their square.
    Shapes: G [T', T'], weights [T']. Native scale: the weights sum to 1 when all are present. There
        is one weight for the model: no scope.
    """

    name = "doge_weights"
    paper = (
        "DoGE: Domain Reweighting with Generalization Estimation (ICML 2024), "
        "https://arxiv.org/abs/2310.15393"
    )
    needs = "gramian"
    native_scale = "sum 1 when all tasks are present"

    def __init__(
        self, *, step_size: Positive = 0.01, rule: Literal["paper", "code"] = "paper"
    ) -> None:
        super().__init__()
        self.step_size, self.rule = step_size, rule

    def mtlcore_weigh_tasks(self, run: Run, gradients: Gradients) -> Tensor:
        """[T'] the weights, once moved by this step's W."""
        self.start(run)
        tasks = np.array(gradients.present, dtype=np.int64)
        gramian = gradients.gramian("model")
        scores = gramian.sum(dim=-1)  # W
        if self.rule == "code":
            scores = (scores - gramian.diagonal()) * inverse(norms(gramian).mean())
            scores = scores.clamp(0, LARGEST_SCORE)
        self.multiply(tasks, self.step_size * scores.numpy())
        return torch.from_numpy(self.shares(tasks))
