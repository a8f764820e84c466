"""Weights learned so that all tasks train at one rate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from mtlcore.components import NotNegative, Positive
from mtlcore_plugins.weighting._learned import Baselines
from mtlcore_plugins.weighting._units import norms

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from mtlcore.gradients import Gradients
    from mtlcore.run import Run

    Array = NDArray[np.float64]


class GradNorm(Baselines):
    """Learn weights that give tasks whose loss falls slowly the longer gradients (GradNorm).

    GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask Networks
    (ICML 2018), https://arxiv.org/abs/1711.02257

        L(w) = sum_i |w_i d_i - m r_i^alpha|,    d_i = |g_i|,  m = mean of w d, held constant
        r_i = q_i / mean q,    q_i = l_i / l_i(0)

    The weights of a step are used as they are; then they take one step down L and are brought to
    the sum T again. The step is one on log w, of learning_rate times dL/d log w / m: weights stay
    above 0, and it depends on no scale of gradients. The paper and LibMTL leave the step to the
    model's optimizer, on w and on s with w = T softmax(s).

    At rest w_i d_i = m r_i^alpha if these sum to T m, as with alpha 0 and 1. With alpha above 1
    they sum to more, and L is flat where all fall short: the longest come to theirs, and the
    shortest get what is left.

    l_i(0) is the first loss of a task above 0, and weights move from the first step on. LibMTL
    waits for an epoch, and takes its mean loss for l_i(0); `warmup` waits, too. Norms are those of
    all shared weights; the paper takes the last shared layer, to save passes.

    A task that is absent, has a zero gradient or had no loss above 0 so far keeps its weight, and
    the means are over the others. Losses of 0 alone have r = 1.

    alpha: 1.5, LibMTL's; 0 makes all gradients equally long.
    learning_rate: 0.025; about the share by which a weight changes in a step, up to T times as much
        where one gradient is longer than all others together.
    Shapes: losses [T'], G [T', T'], weights [T']. Native scale: the weights sum to T when all are
        present. There is one weight for the model: no scope.
    """

    name = "gradnorm"
    paper = (
        "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask Networks "
        "(ICML 2018), https://arxiv.org/abs/1711.02257"
    )
    needs = "gramian"
    native_scale = "T when all tasks are present"
    homogeneity = 0

    def __init__(self, *, alpha: NotNegative = 1.5, learning_rate: Positive = 0.025) -> None:
        super().__init__()
        self.alpha, self.learning_rate = alpha, learning_rate

    def mtlcore_weigh_tasks(self, run: Run, losses: Tensor, gradients: Gradients) -> Tensor:
        """[T'] the weights so far; then they are moved."""
        self.start(run)
        tasks, values = np.array(gradients.present, dtype=np.int64), losses.numpy()
        weights = len(self.weighed(run)) * self.shares(tasks)
        fallen = values / self.first(tasks, values)  # q
        lengths = weights * norms(gradients.gramian("model")).numpy()  # w d
        moved = (lengths > 0) & ~np.isnan(fallen)
        if moved.any():
            slopes = self._slopes(lengths[moved], fallen[moved])
            self.multiply(tasks[moved], -self.learning_rate * slopes)
        return torch.from_numpy(weights)

    def _slopes(self, lengths: Array, fallen: Array) -> Array:
        """dL / d log w, by m, from w d and q."""
        mean = lengths.mean()
        rates = fallen / fallen.mean() if fallen.any() else np.ones_like(fallen)
        with np.errstate(over="ignore"):  # inf is longer than all
            wanted = mean * rates**self.alpha
        slopes: Array = np.sign(lengths - wanted) * lengths / mean
        return slopes
