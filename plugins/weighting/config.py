"""The update at the same angle to every task gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtlcore.components import Scope, Weighting
from mtlcore.ops import equal_projections
from mtlcore_plugins.weighting._units import inverse

if TYPE_CHECKING:
    from torch import Tensor

    from mtlcore.gradients import Gradients


class ConFIG(Weighting):
    """Take the direction with the same cosine to every gradient, as long as they all agree on it.

    ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks (ICLR 2025),
    https://arxiv.org/abs/2408.11104

        u = unit vector along U⁺ 1,    U [T, P] the unit gradients
        update = (sum_i <g_i, u>) u

    From the Gramian alone: with a = D^-1 C⁺ 1 (C the cosines, D the norms) u is Jᵀ a / |Jᵀ a|,
    and w = (1'G a) / (a'G a) a. Weights may be negative. Preferences are equal, TorchJD's default.
    Gradients that depend on each other to 3e-7, the rounding of float32, count as dependent;
    TorchJD's limit is that of the type of J.

    A zero gradient has the weight 0. Opposed gradients, to which no direction has one cosine, all
    have the weight 0: the step stands still.

    scope: where cosines are made equal: in all shared weights ("model", the paper's), or in each
        layer or LoRA factor by itself.
    Shapes: G [T', T'] or [S, T', T'], weights [T'] or [S, T'].
    Native scale: that of the sum of the gradients, whose projection on u the update is.
    """

    name = "config"
    paper = (
        "ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks (ICLR 2025), "
        "https://arxiv.org/abs/2408.11104"
    )
    needs = "gramian"
    native_scale = "T' for equal gradients: the projection of their sum"
    homogeneity = 0

    def __init__(self, *, scope: Scope = "model") -> None:
        self.scope = scope
        self.undoes_scale = scope == "model"  # else the scopes keep the scale of theirs

    def mtlcore_weigh_tasks(self, gradients: Gradients) -> Tensor:
        """[T'] or [S, T']: a, as long as the projection of the sum on it."""
        gramian = gradients.gramian(self.scope)
        a = equal_projections(gramian)
        products = (gramian @ a[..., None])[..., 0]  # <g_i, Jᵀ a>
        # a'G a is 0 only where a is: there all gradients are, or nothing fits them.
        length = (a * products).sum(dim=-1, keepdim=True)
        return products.sum(dim=-1, keepdim=True) * inverse(length) * a
