"""Weights that follow how far each task is from its own optimum."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from mtlcore.components import Positive
from mtlcore_plugins.weighting._learned import Baselines

if TYPE_CHECKING:
    from torch import Tensor

    from mtlcore.gradients import Gradients
    from mtlcore.run import Run


class ExcessMTL(Baselines):
    """Weigh a task up while its excess risk, what it could still gain, is large.

    Robust Multi-Task Learning with Excess Risks (ICML 2024), https://arxiv.org/abs/2402.02009

        e_i = sum g_i^2 / h_i,    h_i = sqrt(sum over the steps of g_i^2)   by element (AdaGrad)
        w_i <- w_i exp(step_size e_i / e_i(0)),    then w to the sum 1

    e_i(0) is the first e_i above 0, in whose step the task's weight is not moved, as in LibMTL;
    TorchJD moves it by e_i itself then, unless it is told to wait. h has no 1e-7 under its root as
    in both: gradients of adapters are too small for it, and a 0 by h = 0 counts as 0. So weights
    depend on no scale of gradients. LibMTL's weights sum to T, TorchJD's and these to 1.

    An absent task keeps its weight, e_i(0) and h_i; those present share what they had together. A
    zero gradient has e_i = 0, and is weighed down.

    step_size: 0.01, LibMTL's; TorchJD has 1.0, with which a few steps decide.
    Shapes: J [T', P], h [T, P] in float32, weights [T']. h takes as much memory as J, and of
        every checkpoint: 1.3 GB for 8 tasks and 40 million shared weights.
    Native scale: the weights sum to 1 when all are present. There is one weight for the model: no
        scope.
    """

    name = "excess_mtl"
    paper = (
        "Robust Multi-Task Learning with Excess Risks (ICML 2024), https://arxiv.org/abs/2402.02009"
    )
    needs = "rows"
    native_scale = "sum 1 when all tasks are present"
    homogeneity = 0

    def __init__(self, *, step_size: Positive = 0.01) -> None:
        super().__init__()
        self.step_size = step_size

    def mtlcore_weigh_tasks(self, run: Run, gradients: Gradients) -> Tensor:
        """[T'] the weights, once moved by this step's excess risks."""
        self.start(run)
        tasks = np.array(gradients.present, dtype=np.int64)
        excess = self._excess_risks(gradients, len(run.tasks)).numpy()
        new = np.isnan(self.state["first"].numpy()[tasks])
        first = self.first(tasks, excess)
        self.multiply(tasks[~new], self.step_size * excess[~new] / first[~new])
        return torch.from_numpy(self.shares(tasks))

    def _excess_risks(self, gradients: Gradients, tasks: int) -> Tensor:
        """E [T'] of the present tasks, whose gradients are taken into h."""
        rows = gradients.rows()
        if "h" not in self.state:
            dtype = torch.promote_types(rows.dtype, torch.float32)  # bf16 sums soon stand still
            self.state["h"] = rows.new_zeros(tasks, rows.shape[1], dtype=dtype)
        h = self.state["h"] = self.state["h"].to(rows.device)  # a checkpoint's is on the CPU
        found = []
        for task, row in zip(gradients.present, rows, strict=True):
            row = row.to(h.dtype)
            torch.hypot(h[task], row, out=h[task])  # squares of 1e-25 are 0 in float32
            shares = row / h[task]
            # float32 sums lose digits where P is large.
            found.append(shares.nan_to_num_(nan=0.0).mul_(row).sum(dtype=torch.float64))
        return torch.stack(found).cpu()
