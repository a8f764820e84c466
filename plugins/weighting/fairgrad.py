"""The update whose gains are alpha-fair to the tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Le

from mtlcore.components import Scope, Weighting
from mtlcore.ops import balance

if TYPE_CHECKING:
    from torch import Tensor

    from mtlcore.gradients import Gradients


class FairGrad(Weighting):
    """Share the gain of a step fairly between the tasks (alpha-fair allocation).

    Fair Resource Allocation in Multi-Task Learning (ICML 2024), https://arxiv.org/abs/2402.15638

        G w = w^(-1/alpha),    w > 0

    The maximum of sum_i gain_i^(1 - alpha) / (1 - alpha) over updates of one length, gain_i =
    <g_i, update>: alpha 1 is proportional fairness (the equation of `nash_mtl`), a larger alpha
    cares more for the task that gains least. The codes hand it to SciPy's least squares; here it
    is the minimum of a convex function (`mtlcore.ops.balance`).

    alpha: 2.0 as in the runs of the authors' code; their class and LibMTL have 1.0. At least 0.1,
        below which powers overflow; at most 10, above which weights of cancelling gradients differ
        by 1e70 and more.
    scope: where gains are counted: in all shared weights ("model", the paper's), or in each layer
        or LoRA factor by itself.

    The authors' code multiplies the update by T and clips it to length 1; LibMTL, TorchJD and this
    do not. A zero gradient has the weight 0. Gradients that cancel have no such update: their
    weights are large (about 1e6 / |g_i| at alpha 2) and leave nothing of each other.
    Shapes: G [T', T'] or [S, T', T'], weights [T'] or [S, T'].
    Native scale: for gradients times s the weights are those times s^(-2 alpha / (1 + alpha)), so
        that the update grows when they shrink if alpha > 1. Clipping or Adam evens that out.
    """

    name = "fairgrad"
    paper = (
        "Fair Resource Allocation in Multi-Task Learning (ICML 2024), "
        "https://arxiv.org/abs/2402.15638"
    )
    needs = "gramian"
    native_scale = "that of |g|^(-2 alpha / (1 + alpha)): see `alpha`"

    def __init__(
        self, *, alpha: Annotated[float, Ge(0.1), Le(10)] = 2.0, scope: Scope = "model"
    ) -> None:
        self.alpha = alpha
        self.homogeneity = -2 * alpha / (1 + alpha)
        self.scope = scope
        self.undoes_scale = alpha == 1 and scope == "model"  # then it solves nash_mtl's equation

    def mtlcore_weigh_tasks(self, gradients: Gradients) -> Tensor:
        """[T'] or [S, T']: the solution of the equation."""
        return balance(gradients.gramian(self.scope), 1 / self.alpha)
