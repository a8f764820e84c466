"""The weighting `loss_share`: a task weighs as much as its share of the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtlcore.components import NotNegative, Weighting

if TYPE_CHECKING:
    from torch import Tensor


class LossShare(Weighting):
    """Weigh each task by its share of the total loss: tasks that are far behind lead.

    Dynamic Task Prioritization for Multitask Learning (ECCV 2018) argues for such an order,
    https://doi.org/10.1007/978-3-030-01270-0_17

        w_t = l_t^power / sum_k l_k^power

    power: 0 weighs all present tasks alike, large values the worst task alone (1.0).
    Shapes: losses, weights [T']. Native scale: the weights sum to 1.
    """

    name = "loss_share"
    paper = (
        "Dynamic Task Prioritization for Multitask Learning (ECCV 2018), "
        "https://doi.org/10.1007/978-3-030-01270-0_17"
    )
    needs = "losses"
    native_scale = "sum 1"

    def __init__(self, *, power: NotNegative = 1.0) -> None:
        self.power = power

    def mtlcore_weigh_tasks(self, losses: Tensor) -> Tensor:
        """[T'] shares of the loss; all alike when every loss is 0."""
        largest = losses.max()
        if largest == 0:
            return losses.new_full(losses.shape, 1 / len(losses))
        shares = (losses / largest) ** self.power
        return shares / shares.sum()
