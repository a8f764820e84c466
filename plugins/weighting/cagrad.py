"""The update near the mean gradient that is best for the task it helps least."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from mtlcore.components import Positive, Scope, Weighting
from mtlcore.ops import cagrad_minimum, cone_minimum

if TYPE_CHECKING:
    from torch import Tensor

    from mtlcore.gradients import Gradients
    from mtlcore.run import Run


class CAGrad(Weighting):
    """Move from the mean gradient towards the task that it helps least (conflict-averse gradient).

    Conflict-Averse Gradient Descent for Multi-task Learning (NeurIPS 2021),
    https://arxiv.org/abs/2110.14048

        update = argmax over |d - g0| <= c |g0| of min_i <g_i, d>,    g0 = mean of the gradients
               = g0 + c |g0| Jᵀ v / |Jᵀ v|
        v = argmin <g0, Jᵀ v> + c |g0| |Jᵀ v|  over  v >= 0, sum v = 1

    v is solved exactly (`mtlcore.ops.cagrad_minimum`), where the codes use SciPy's SLSQP or a conic
    solver.

    c: how far from the mean, in its length. 0.4 as in the experiments of the authors' and the
        Nash-MTL code; LibMTL has 0.5. At c >= 1 the update may leave the sum of the losses as it
        is or raise it.
    scope: where it is sought: in all shared weights ("model", the paper's), or in each layer or
        LoRA factor by itself.

    The authors' code and LibMTL divide the update by 1 + c²; the paper, TorchJD and this do not.
    Where Jᵀ v = 0, no update near g0 helps all tasks; those that harm none are as good as each
    other, and the nearest to g0 is taken (that of `dualproj`); TorchJD's is 0. A zero gradient
    counts in g0 and has the weight 1/T.
    Shapes: G [T', T'] or [S, T', T'], weights [T'] or [S, T'].
    Native scale: that of the mean of the gradients, 1 - c to 1 + c of its length: g0 is the sum of
        the gradients present, by T of all tasks of the run.
    """

    name = "cagrad"
    paper = (
        "Conflict-Averse Gradient Descent for Multi-task Learning (NeurIPS 2021), "
        "https://arxiv.org/abs/2110.14048"
    )
    needs = "gramian"
    native_scale = "T'/T, plus what the move from the mean adds: |update| is 1 - c to 1 + c of it"
    homogeneity = 0

    def __init__(self, *, c: Positive = 0.4, scope: Scope = "model") -> None:
        self.c = c
        self.scope = scope

    def mtlcore_weigh_tasks(self, run: Run, gradients: Gradients) -> Tensor:
        """[T'] or [S, T']: 1/T + c |g0| / |Jᵀ v| v."""
        gramian = gradients.gramian(self.scope)
        shares, lengths = cagrad_minimum(gramian, self.c)  # v; |Jᵀ v| and |g0|
        mean, present = 1 / len(self.weighed(run)), gramian.shape[-1]
        # In numpy: on so few numbers torch's calls cost more than the arithmetic.
        v, mixed, g0 = shares.numpy(), lengths.numpy()[..., :1], lengths.numpy()[..., 1:]
        moves = mixed > 0
        radius = self.c * mean * present * g0
        weights = torch.from_numpy(mean + radius / np.where(moves, mixed, 1) * v)
        if moves.all():
            return weights
        standing = cone_minimum(gramian, torch.full_like(weights, mean)[..., None, :])[..., 0, :]
        return torch.where(torch.from_numpy(moves), weights, standing)
