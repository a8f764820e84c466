"""Gradient surgery, in coefficients of the task gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from mtlcore.components import Scope, Weighting

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from mtlcore.gradients import Gradients
    from mtlcore.run import Run


class PCGrad(Weighting):
    """Project each task gradient away from those it conflicts with, then add them up.

    Gradient Surgery for Multi-Task Learning (NeurIPS 2020), https://arxiv.org/abs/2001.06782

        for each i:  v_i = g_i;  for j != i in a random order:  if <v_i, g_j> < 0:
                     v_i <- v_i - <v_i, g_j> / |g_j|^2  g_j
        update = sum_i v_i

    Every v_i stays a combination of the g_j, v_i = sum_j C_ij g_j, so all of it is done on C with
    the Gramian G: <v_i, g_j> = (C G)_ij. The order is drawn anew each step from the run's seed.

    scope: where conflicts are looked for: in all shared weights ("model", the paper's), or in each
        layer or LoRA factor by itself; scopes share the order.
    Shapes: G [T', T'] or [S, T', T'], weights [T'] or [S, T'].
    Native scale: that of the sum of the gradients: without conflicts all weights are 1.
    """

    name = "pcgrad"
    paper = (
        "Gradient Surgery for Multi-Task Learning (NeurIPS 2020), https://arxiv.org/abs/2001.06782"
    )
    needs = "gramian"
    native_scale = "T' without conflicts: the sum of the (projected) task gradients"
    symmetric = False
    homogeneity = 0

    def __init__(self, *, scope: Scope = "model") -> None:
        self.scope = scope

    def mtlcore_weigh_tasks(self, run: Run, gradients: Gradients) -> Tensor:
        """[T'] or [S, T']: the columns of C, summed."""
        gramian = gradients.gramian(self.scope).numpy()
        tasks = gramian.shape[-1]
        generator = run.generator(run.step, "pcgrad")
        keys = torch.rand((tasks, tasks - 1), generator=generator, dtype=torch.float64).numpy()
        order = np.argsort(keys, axis=1)  # [T', T'-1] of 0 .. T'-2: leave out i itself
        order += order >= np.arange(tasks)[:, None]
        return torch.from_numpy(pcgrad_weights(gramian, order))


def pcgrad_weights(gramian: NDArray[np.float64], order: NDArray[np.int64]) -> NDArray[np.float64]:
    """Weights [..., T] from G [..., T, T]; task i meets the others in the order `order[i]` [T-1].

    All tasks (and scopes) take their k-th projection at once: they do not read each other's C.
    """
    tasks = gramian.shape[-1]
    task = np.arange(tasks)
    norms = np.diagonal(gramian, axis1=-2, axis2=-1)  # |g_j|^2 [..., T]
    # A zero gradient conflicts with none: its products are 0, and so is what is taken away.
    inverse = 1 / np.where(norms > 0, norms, 1)
    coefficients = np.zeros(gramian.shape) + np.eye(tasks)  # C [..., T, T]
    for other in order.T:  # [T]: the task j that each i meets now
        products = np.einsum("...ij,...ij->...i", coefficients, gramian[..., other, :])
        coefficients[..., task, other] -= np.minimum(products, 0) * inverse[..., other]
    weights: NDArray[np.float64] = coefficients.sum(axis=-2)
    return weights
