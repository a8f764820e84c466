"""Weights by how fast the losses of the tasks fall."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mtlcore.components import Count, Positive, Weighting
from mtlcore.stages import plan_stages

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from mtlcore.gradients import Gradients
    from mtlcore.run import Run


class DWA(Weighting):
    """Weigh a task up when its loss falls slowly (dynamic weight average).

    End-to-End Multi-Task Learning with Attention (CVPR 2019), https://arxiv.org/abs/1803.10704

        w = T softmax(r / tau),    r_t = mean l_t (last window) / mean l_t (the window before)

    A window, of `window` steps, is what the paper calls an epoch. r_t is 1 in the first two windows
    and while the mean of the earlier window is 0. A mean is over the steps of the window in which
    the task was present; a task that was absent from a whole window keeps r_t and its means. The
    softmax is over all tasks of the run, so that a weight does not depend on who else is present.

    tau: 2.0; larger values make the weights more equal.
    window: 100 steps; a run needs more than two windows for the weights to differ.
    Shapes: losses, weights [T'] float64. Native scale: the weights sum to T when all are present.
    """

    name = "dwa"
    paper = (
        "End-to-End Multi-Task Learning with Attention (CVPR 2019), "
        "https://arxiv.org/abs/1803.10704"
    )
    needs = "losses"
    native_scale = "T when all tasks are present"
    homogeneity = 0

    def __init__(self, *, tau: Positive = 2.0, window: Count = 100) -> None:
        self.tau, self.window = tau, window
        self.steps = 0  # in the window of now
        # By row: r, the mean of the last window, sum and number of losses in this one, each [T].
        self.state: Tensor | None = None

    def mtlcore_run_start(self, run: Run) -> None:
        """Say so when the run is too short for the weights ever to differ."""
        steps = sum(stage.steps for stage in plan_stages(run))
        if steps <= 2 * self.window:
            run.note(
                f"warning: weighting {self.name}: all weights stay equal: {steps} steps are "
                f"not more than two windows of {self.window}; set weighting.window lower"
            )

    def mtlcore_weigh_tasks(self, run: Run, losses: Tensor, gradients: Gradients) -> Tensor:
        """[T'] by the windows that are over; then the losses are taken into the one of now."""
        if self.state is None:
            self.state = torch.zeros(4, len(run.tasks), dtype=torch.float64)
            self.state[0] = 1
            self.state[1] = torch.nan  # no mean yet
        if self.steps == self.window:
            self._close_window(self.state)
        ratios, _, sums, counts = self.state
        weighed = self.weighed(run)
        weights = torch.zeros_like(ratios)
        weights[weighed] = len(weighed) * torch.softmax(ratios[weighed] / self.tau, dim=0)
        sums[gradients.present] += losses
        counts[gradients.present] += 1
        self.steps += 1
        return weights[gradients.present]

    def _close_window(self, state: Tensor) -> None:
        ratios, means, sums, counts = state
        seen = counts > 0
        now = sums / counts.clamp(min=1)
        two = seen & (means > 0)  # not so while there is no mean
        ratios.copy_(torch.where(two, now / means.where(two, 1), torch.where(seen, 1, ratios)))
        means.copy_(torch.where(seen, now, means))
        sums.zero_()
        counts.zero_()
        self.steps = 0

    def state_dict(self) -> dict[str, Any]:
        """The windows [4, T] and the steps of the one of now, once a step was taken."""
        return {} if self.state is None else {"state": self.state.clone(), "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        saved = state.get("state")
        self.state = None if saved is None else saved.clone()
        self.steps = int(state.get("steps", 0))
