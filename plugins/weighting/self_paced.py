"""Easy tasks first, as the model itself finds them easy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt

from mtlcore.components import Count
from mtlcore_plugins.weighting._state import Remembering

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from mtlcore.gradients import Gradients
    from mtlcore.run import Run


class SelfPaced(Remembering):
    """Count a task once its loss is below a threshold, and raise the threshold (self-pacing).

    Self-Paced Learning for Latent Variable Models (NeurIPS 2010),
    https://papers.nips.cc/paper/3923-self-paced-learning-for-latent-variable-models

        hard     w_t = 1/T if l_t <= c else 0
        linear   w_t = 1/T max(0, 1 - l_t / c)
        c = c0 growth^(1 + floor(step / window))

    The paper's rule is "hard", on rows; on tasks it is that of Self-Paced Multi-Task Learning (AAAI
    2017, https://arxiv.org/abs/1604.01474) without its choice of rows. "linear" minimises
    w l + c (w^2 / 2 - w), from Easy Samples First (ACM MM 2014), so that a task comes in slowly.
    l_t is a running mean of the task's losses; an absent task keeps it. c0 is the largest loss of
    the easiest share `start` of the tasks of the first step with a loss above 0. c is at least
    `growth` times the l_t of the easiest task that is trained now, so that one always counts. A
    step whose tasks are all too hard has weights of 0: their own adapters learn on. A task without
    loss counts.

    rule: "hard" or "linear".
    start: share of the tasks that count at first (0.5, as in the paper).
    growth: of c, every `window` steps, above 1 (1.3, as in the paper).
    window: 100 steps; in the paper a full round of training.
    smoothing: share of the past in the running mean of a loss (0.9); 0 takes each step alone.
    Shapes: losses, weights [T']. Native scale: the number of tasks that count, over T; at most 1.
    """

    name = "self_paced"
    paper = (
        "Self-Paced Learning for Latent Variable Models (NeurIPS 2010), "
        "https://papers.nips.cc/paper/3923-self-paced-learning-for-latent-variable-models"
    )
    needs = "losses"
    native_scale = "the tasks that count, over T: at most 1"
    homogeneity = 0

    def __init__(
        self,
        *,
        rule: Literal["hard", "linear"] = "hard",
        start: Annotated[float, Gt(0), Le(1)] = 0.5,
        growth: Annotated[float, Gt(1)] = 1.3,
        window: Count = 100,
        smoothing: Annotated[float, Ge(0), Lt(1)] = 0.9,
    ) -> None:
        self.rule = rule
        self.start = start
        self.growth = growth
        self.window = window
        self.smoothing = smoothing
        self.first = 0.0  # c0

    def mtlcore_weigh_tasks(self, run: Run, losses: Tensor, gradients: Gradients) -> Tensor:
        """[T'] by the running means, with this step's losses in them."""
        [means] = self.remembered(run, [torch.nan])  # [T]
        past = means[gradients.present]
        now = torch.where(past.isnan(), losses, torch.lerp(losses, past, self.smoothing))
        means[gradients.present] = now
        threshold = self._threshold(run, losses, means)
        if self.rule == "hard" or not threshold:
            kept = (now <= threshold).double()
        else:
            kept = (1 - now / threshold).clamp(min=0)
        return kept / len(self.weighed(run))

    def _threshold(self, run: Run, losses: Tensor, means: Tensor) -> float:
        """c, from the losses [T'] of this step and the running means [T]."""
        positive = losses[losses > 0].sort().values
        if not self.first and len(positive):
            self.first = float(positive[math.ceil(self.start * len(positive) - 1e-9) - 1])
        steps = (1 + run.step // self.window) * math.log(self.growth)
        grown = self.first * math.exp(min(steps, 700))  # exp overflows at 710
        trained = torch.tensor([run.is_active(task) for task in run.tasks])
        known = means[trained & ~means.isnan()]
        return max(grown, self.growth * float(known.min()) if len(known) else 0.0)

    def state_dict(self) -> dict[str, Any]:
        """The running means [1, T] and c0, once a step was taken."""
        return {**super().state_dict(), "first": self.first} if self.state is not None else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        super().load_state_dict(state)
        self.first = float(state.get("first", 0.0))
