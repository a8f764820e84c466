"""A pull towards the weights at the start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mtlcore.components import NotNegative, Penalty, Regularizer
from mtlcore.errors import MtlcoreError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from mtlcore.run import Run


class L2Anchor(Regularizer):
    """Pull the trainable weights towards their values at the start of the run (L2-SP).

    Explicit Inductive Bias for Transfer Learning with Convolutional Networks (ICML 2018),
    https://arxiv.org/abs/1802.01483

        penalty = strength / 2 * || theta - theta_0 ||^2

    strength: 0.01 by default, as in the paper. It acts on the weights: its gradient
    strength * (theta - theta_0) is added after the tasks were combined. theta_0 is a copy of the
    trainable weights and is saved with the run. Sums are taken in fp32 (fp64 for fp64 weights).
    """

    name = "l2_anchor"
    paper = (
        "Explicit Inductive Bias for Transfer Learning with Convolutional Networks (ICML 2018), "
        "https://arxiv.org/abs/1802.01483"
    )
    acts_on = "weights"

    def __init__(self, *, strength: NotNegative = 0.01) -> None:
        self.strength = strength
        self.anchor: dict[str, Tensor] = {}  # theta_0

    def mtlcore_run_start(self, run: Run) -> None:
        """Remember the weights, unless a saved run already gave them."""
        if not self.anchor:
            parameters = run.model.trainable_parameters()
            self.anchor = {name: value.detach().clone() for name, value in parameters}

    def mtlcore_penalties(self, run: Run, batch: object, outputs: object) -> list[Penalty]:
        """One penalty per step, in the call without a batch."""
        if batch is not None:
            return []
        terms: list[Tensor] = []
        for name, value in run.model.trainable_parameters():
            if name not in self.anchor:
                raise MtlcoreError(
                    f"regularization {self.name!r} has no start value of the weight {name}; "
                    f"the trainable weights changed after the run started"
                )
            distance = value - self.anchor[name].to(value.device)
            terms.append(
                distance.to(torch.promote_types(distance.dtype, torch.float32)).square().sum()
            )
        return [Penalty(self.name, "weights", self.strength / 2 * torch.stack(terms).sum())]

    def state_dict(self) -> dict[str, Any]:
        """theta_0 by the name of the weight."""
        return {name: value.clone() for name, value in self.anchor.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back theta_0."""
        self.anchor = {name: value.clone() for name, value in state.items()}
