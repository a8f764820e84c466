"""The update that moves every task equally far along its own gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from mtlcore.components import Scope, Weighting
from mtlcore.ops import equal_projections

if TYPE_CHECKING:
    from torch import Tensor

    from mtlcore.gradients import Gradients
    from mtlcore.run import Run

# Weights whose sum is this small a part of their sizes have none: what is left is rounding.
NO_SUM = 1e-12


class IMTLG(Weighting):
    """Weigh tasks so that the update has the same projection on every gradient (IMTL-G).

    Towards Impartial Multi-task Learning (ICLR 2021),
    https://openreview.net/forum?id=IMPnRXEWpvr

        w = a / sum a,    a = D^-1 C⁺ 1,    C = D^-1 G D^-1,  D = diag(|g_i|)

    So <Jᵀ w, g_i> / |g_i| is the same for every i. For independent gradients it is the closed form
    of LibMTL, and TorchJD's G⁺ d. Dependent ones are solved in units of the norms here, so that a
    small gradient counts like a large one; TorchJD's differs from it where no equal projections
    exist. Weights may be negative, and are large where a is nearly balanced around 0.

    A zero gradient has the weight 0. Opposed gradients, which admit no equal projections, and
    others with sum a = 0, all have the weight 0, as in TorchJD: the step stands still.

    scope: where projections are made equal: in all shared weights ("model", the paper's), or in
        each layer or LoRA factor by itself.
    Shapes: G [T', T'] or [S, T', T'], weights [T'] or [S, T'].
    Native scale: a weighted mean: the sum is T'/T, T all tasks of the run. `loss_weight` of a task
        has no effect on the update but by this sum.
    """

    name = "imtl_g"
    paper = (
        "Towards Impartial Multi-task Learning (ICLR 2021), "
        "https://openreview.net/forum?id=IMPnRXEWpvr"
    )
    needs = "gramian"
    native_scale = "sum 1 when all tasks are present, T'/T otherwise"
    homogeneity = 0

    def __init__(self, *, scope: Scope = "model") -> None:
        self.scope = scope
        self.undoes_scale = scope == "model"  # else the scopes keep the scale of theirs

    def mtlcore_weigh_tasks(self, run: Run, gradients: Gradients) -> Tensor:
        """[T'] or [S, T']: a, brought to the sum T'/T."""
        a = equal_projections(gradients.gramian(self.scope)).numpy()
        total = a.sum(axis=-1, keepdims=True)
        summable = abs(total) > NO_SUM * abs(a).sum(axis=-1, keepdims=True)
        share = len(gradients.present) / len(self.weighed(run))
        return torch.from_numpy(a * (share / np.where(summable, total, np.inf)))
