"""Weights that make the losses of all tasks fall at one rate, learned from how they fell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mtlcore.components import NotNegative, Positive
from mtlcore_plugins.weighting._adam import START, adam_step
from mtlcore_plugins.weighting._state import Remembering

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from mtlcore.gradients import Gradients
    from mtlcore.run import Run

# Added to a loss before its logarithm, as in the paper's code.
EPS = 1e-8


class FAMO(Remembering):
    """Let all losses fall by the same share in each step, from the losses before and after it.

    FAMO: Fast Adaptive Multitask Optimization (NeurIPS 2023), https://arxiv.org/abs/2306.03792

        z = softmax(xi)
        w_t = c z_t / (l_t - b + eps),    c = 1 / sum_t z_t / (l_t - b + eps)
        after the update:  delta_t = log(l_t - b + eps) - log(l'_t - b + eps)
                           xi takes a step of Adam down z (delta - z'delta)

    l' are the losses of the same rows, under the same dropout, with the new weights: one more
    forward pass in each step. No gradient of a single task is needed. With absent tasks softmax and
    sums are over the present ones, whose xi alone move. A `loss_weight` cancels out, but for the
    common factor c. After a step in which a loss is not finite nothing is learned.

    learning_rate, weight_decay: of xi, apart from the model's (0.025 and 0.001 as in the paper,
        TorchJD and LibMTL; the authors' code decays by 1e-5). The decay is Adam's L2 term.
    lower_bound: b, the least that a loss can be (0); a loss at or below it counts as eps, 1e-8.
    xi starts at 0.
    Shapes: losses, weights [T'], xi [T] float64. Native scale: the weights sum to 1.
    """

    name = "famo"
    paper = (
        "FAMO: Fast Adaptive Multitask Optimization (NeurIPS 2023), "
        "https://arxiv.org/abs/2306.03792"
    )
    needs = "losses"
    native_scale = "1"

    def __init__(
        self,
        *,
        learning_rate: Positive = 0.025,
        weight_decay: NotNegative = 0.001,
        lower_bound: float = 0.0,
    ) -> None:
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.lower_bound = lower_bound
        self.undoes_scale = lower_bound == 0
        self._before: tuple[int, list[int], Tensor] | None = None  # a step, its tasks and losses

    def mtlcore_weigh_tasks(self, run: Run, losses: Tensor, gradients: Gradients) -> Tensor:
        """[T'] the shares z over the losses, scaled to sum 1."""
        xi = self.remembered(run, START)[0, gradients.present]
        self._before = (run.step, list(gradients.present), losses.clone())
        # In logs: losses may lie many orders of magnitude apart.
        return torch.softmax(torch.log_softmax(xi, 0) - self._log(losses), 0)

    def mtlcore_after_update(self, run: Run, losses_again: Callable[[], Tensor]) -> None:
        """Move xi by how far the losses of the step's rows fell."""
        if self._before is None or self._before[0] != run.step:  # it was not asked in this step
            return
        _, present, losses = self._before
        fell = self._log(losses) - self._log(losses_again())  # [T']
        if not torch.isfinite(fell).all():
            return
        state = self.remembered(run, START)
        shares = torch.softmax(state[0, present], 0)
        adam_step(
            state,
            present,
            shares * (fell - shares @ fell),
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
        )

    def _log(self, losses: Tensor) -> Tensor:
        return torch.log((losses - self.lower_bound).clamp(min=0) + EPS)
