"""The shortest mix of the task gradients, found exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from mtlcore.components import Scope, Weighting
from mtlcore.ops import simplex_minimum

if TYPE_CHECKING:
    from torch import Tensor

    from mtlcore.gradients import Gradients
    from mtlcore.run import Run


class MGDA(Weighting):
    """Follow the shortest mix of the task gradients, which raises no loss (multiple gradients).

    Multi-Task Learning as Multi-Objective Optimization (NeurIPS 2018),
    https://arxiv.org/abs/1810.04650

        w = argmin |Jᵀ v|  over  v >= 0, sum v = 1

    The minimum itself, by an active-set method (`mtlcore.ops.simplex_minimum`). TorchJD's
    Frank-Wolfe and LibMTL's gradient method end near it: with TorchJD's settings |Jᵀ w|² is up to
    61% above the minimum at T = 8. Small gradients get large weights: a task that is nearly done
    decides the step.

    normalization: gradients are divided by n_i before the mix is found ("none": 1; "l2": |g_i|;
        "loss": l_i; "loss+": l_i |g_i|; LibMTL's `mgda_gn`, and its default). The weights are used
        on the gradients as they are, like in the authors' code; LibMTL mixes the divided ones.
    scope: where the mix is sought: in all shared weights ("model", the paper's), or in each layer
        or LoRA factor by itself.

    A zero gradient would be the shortest mix by itself and end all learning: it is left out, with
    the weight 0, and so is a task whose n_i is 0 or below. Where all are, the weights are equal.
    Where several mixes are shortest (a task twice, opposed gradients), it is one of them.
    Shapes: G [T', T'] or [S, T', T'], losses [T'], weights [T'] or [S, T'].
    Native scale: a weighted mean: the sum is T'/T, T all tasks of the run.
    """

    name = "mgda"
    paper = (
        "Multi-Task Learning as Multi-Objective Optimization (NeurIPS 2018), "
        "https://arxiv.org/abs/1810.04650"
    )
    needs = "gramian"
    native_scale = "sum 1 when all tasks are present, T'/T otherwise"
    homogeneity = 0

    def __init__(
        self,
        *,
        normalization: Literal["none", "l2", "loss", "loss+"] = "none",
        scope: Scope = "model",
    ) -> None:
        self.normalization = normalization
        self.scope = scope

    def mtlcore_weigh_tasks(self, run: Run, losses: Tensor, gradients: Gradients) -> Tensor:
        """[T'] or [S, T']: the shares of the mix, times T'/T."""
        gramian = gradients.gramian(self.scope)
        if self.normalization != "none":
            divisors = torch.ones(gramian.shape[:-1], dtype=torch.float64)  # n [..., T']
            if self.normalization in ("loss", "loss+"):
                divisors = divisors * losses.double()
            if self.normalization in ("l2", "loss+"):
                divisors = divisors * gramian.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
            inverse = torch.where(divisors > 0, 1 / divisors, 0)
            gramian = gramian * inverse[..., :, None] * inverse[..., None, :]
        return simplex_minimum(gramian) * (len(gradients.present) / len(self.weighed(run)))
