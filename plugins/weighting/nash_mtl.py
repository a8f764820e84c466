"""The update that the tasks would settle on as bargainers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mtlcore.components import NotNegative, Scope, Weighting
from mtlcore.ops import balance

if TYPE_CHECKING:
    from torch import Tensor

    from mtlcore.gradients import Gradients


class NashMTL(Weighting):
    """Take the update on which the tasks agree as bargainers (Nash's solution).

    Multi-Task Learning as a Bargaining Game (ICML 2022), https://arxiv.org/abs/2202.01017

        G a = 1 / a,  a > 0;    w = sqrt(|G|) a,    |G| the Frobenius norm

    Every task gains the same share: weight times gain, w_i <g_i, Jᵀ w>, is |G| for each i, and no
    rescaling of a loss changes a_i g_i. The equation is solved to rounding: it is the minimum of
    the convex 1/2 a'Ga - sum log a (`mtlcore.ops.balance`). The authors' code, TorchJD and LibMTL
    linearise it with a conic solver and leave 0.4 to 1.0 of it open at T = 8.

    max_norm: the longest update |Jᵀ w|, over all scopes together; longer ones are scaled down to
        it. 1.0 as in the authors' code; 0 for none. How often weights are found anew, an option
        of that code, is a matter of the recipe here.
    scope: where the tasks bargain: in all shared weights ("model", the paper's), or in each layer
        or LoRA factor by itself.

    sqrt(|G|) is the authors' code, too (it divides G by |G|): |Jᵀ a| is sqrt(T') for any gradients
    of any size, |Jᵀ w| shrinks with them. A zero gradient has the weight 0. Gradients that cancel
    have no such update: their weights are large (about 1e5) and leave nothing of each other.
    Shapes: G [T', T'] or [S, T', T'], weights [T'] or [S, T'].
    Native scale: |update| = sqrt(T' |G|), at most max_norm.
    """

    name = "nash_mtl"
    paper = "Multi-Task Learning as a Bargaining Game (ICML 2022), https://arxiv.org/abs/2202.01017"
    needs = "gramian"
    native_scale = "|update| = sqrt(T' |G|), at most max_norm"

    def __init__(self, *, max_norm: NotNegative = 1.0, scope: Scope = "model") -> None:
        self.max_norm = max_norm
        self.scope = scope
        self.undoes_scale = scope == "model"  # else the scopes keep the scale of theirs

    def mtlcore_weigh_tasks(self, gradients: Gradients) -> Tensor:
        """[T'] or [S, T']: the solution of the equation, capped."""
        gramian = gradients.gramian(self.scope)
        size = torch.linalg.matrix_norm(gramian)[..., None]  # |G|
        weights: Tensor = size.sqrt() * balance(gramian, 1.0)
        squared = (weights * (gramian @ weights[..., None])[..., 0]).sum()
        length = float(squared.clamp(min=0).sqrt())
        if 0 < self.max_norm < length:
            weights = weights * (self.max_norm / length)
        return weights
