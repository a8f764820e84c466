"""Any weighting over the steps: equal at first, asked now and then, normalized, averaged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtlcore.components import Needs, Weighting, WeightSchedule
from mtlcore.errors import MtlcoreError, UserError
from mtlcore.gradients import Direction
from mtlcore.stages import plan_stages

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mtlcore.errors import Problem
    from mtlcore.gradients import Gradients
    from mtlcore.plugins import PluginManager
    from mtlcore.recipe import Recipe
    from mtlcore.run import Run


class ScheduledWeighting(Weighting):
    """Answers for a weighting by its `schedule`, and asks it when it has to.

    The running mean of weights is that of Zhou et al., On the Convergence of Stochastic
    Multi-Objective Gradient Manipulation and Beyond (NeurIPS 2022), https://openreview.net/forum?id=ScwfQ7hdwyP:

        kept_t <- ema kept_t + (1 - ema) w_t,    kept_t = w_t the first time

    An absent task keeps its weight, like one that nobody asked for.
    """

    kind = "weighting_schedule"

    def __init__(self, weighting: Weighting, plugins: PluginManager) -> None:
        self.weighting, self.schedule = weighting, weighting.schedule
        self.name, self.scope = weighting.name, weighting.scope
        self.needs, self.gives = weighting.needs, weighting.gives
        self.plugins = plugins
        self.kept: Tensor | None = None  # [T] or [S, T]; NaN for a task without a weight yet

    def weigh_main_tasks_alone(self) -> None:
        """Like the weighting."""
        super().weigh_main_tasks_alone()
        self.weighting.weigh_main_tasks_alone()

    def mtlcore_check(self, recipe: Recipe) -> list[Problem]:
        """Refuse to keep, average or normalize what has no weights."""
        if self.gives == "direction":
            for option in ("every", "ema", "normalize"):
                if getattr(self.schedule, option) != getattr(WeightSchedule(), option):
                    raise UserError(
                        f"{option} acts on the weights of tasks, and {self.name!r} gives none: its "
                        "answer is a direction",
                        where=f"weighting.{option}",
                        fix=f"remove {option}",
                    )
        return []

    def mtlcore_run_start(self, run: Run) -> None:
        """Say so when the weighting would never be asked."""
        steps = sum(stage.steps for stage in plan_stages(run))
        if steps <= self.schedule.warmup:
            run.note(
                f"warning: weighting {self.name!r} is never asked: all {steps} steps are warm-up; "
                "set weighting.warmup lower"
            )

    def inner_places(self, run: Run, present: Sequence[int]) -> Sequence[int]:
        """Those of the weighting."""
        return self.weighting.inner_places(run, present)

    def needs_at(self, step: int, present: Sequence[int]) -> Needs:
        """Nothing where its answer is known before the step."""
        one_row = self.kept is None or self.kept.ndim == 1  # weights by scope need the rows of J
        known = step < self.schedule.warmup or (one_row and not self._asks(step, present))
        return "nothing" if known else self.weighting.needs_at(step, present)

    def _asks(self, step: int, present: Sequence[int]) -> bool:
        past = step - self.schedule.warmup
        unknown = self.kept is None or bool(self.kept[..., present].isnan().any())
        return unknown or past % self.schedule.every == 0

    def mtlcore_weigh_tasks(
        self, run: Run, losses: Tensor | None, gradients: Gradients
    ) -> Tensor | Direction:
        """[T'] or [S, T'], or what the weighting gives."""
        present = gradients.present
        if run.step < self.schedule.warmup:
            share = 1 / len(self.weighed(run))
            return torch.full((len(present),), share, dtype=torch.float64)
        if self._asks(run.step, present):
            ask = self.plugins.only("mtlcore_weigh_tasks", [self.weighting])
            answer: Tensor | Direction = ask(run=run, losses=losses, gradients=gradients)
            if isinstance(answer, Direction):
                self._require_direction()
                return answer
            self._keep(run, answer, present)
        assert self.kept is not None
        return self.kept[..., present]

    def _require_direction(self) -> None:
        if self.gives != "direction":
            raise MtlcoreError(
                f"the weighting {self.name!r} gave a Direction, whose weights cannot be kept or "
                "averaged: set gives = 'direction' on its class"
            )

    def _keep(self, run: Run, weights: Tensor, present: Sequence[int]) -> None:
        if self.schedule.normalize == "sum_to_one":
            sums = weights.sum(-1, keepdim=True)
            if not (sums > 0).all():
                run.note(
                    f"warning: weights of {self.name!r} that do not sum to more than 0 cannot be "
                    "brought to the sum 1, and are used as they are; without weighting.normalize "
                    "it is the learning rate that sets the length of the step"
                )
            share = len(present) / len(self.weighed(run))
            weights = torch.where(sums > 0, weights / sums.where(sums > 0, 1) * share, weights)
        if self.kept is None:
            self.kept = weights.new_full((*weights.shape[:-1], len(run.tasks)), torch.nan)
        if weights.ndim > self.kept.ndim:  # by scope after a step in which there was one of all
            self.kept = self.kept.repeat(len(weights), 1)
        before = self.kept[..., present]
        mean = torch.lerp(weights, before, self.schedule.ema)
        self.kept[..., present] = torch.where(before.isnan(), weights, mean)

    def state_dict(self) -> dict[str, Any]:
        """The weights [T] or [S, T], once the weighting was asked."""
        return {} if self.kept is None else {"kept": self.kept.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        kept = state.get("kept")
        self.kept = None if kept is None else kept.clone()
