"""A gate for auxiliary tasks: they count while their gradient points the way of the main tasks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args

import torch
from annotated_types import Ge, Gt, Le, Lt

from mtlcore.components import CONFLICTS, Needs, Section, Weighting
from mtlcore.errors import UserError
from mtlcore.gradients import Direction
from mtlcore.recipe import ComponentSpec
from mtlcore.stages import plan_stages, tasks_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from mtlcore.components import Scope
    from mtlcore.errors import Problem
    from mtlcore.gradients import Gradients
    from mtlcore.recipe import Recipe
    from mtlcore.run import Run

# Rows of the state, each [T].
MEASURED, KEPT, COSINES, SMOOTHED, WITHOUT_MAIN = range(5)


class GradientSimilarity(Weighting):
    """Use an auxiliary task while its gradient helps the main tasks, and drop it while it does not.

    Adapting Auxiliary Losses Using Gradient Similarity (arXiv 2018),
    https://arxiv.org/abs/1812.02224

        g = mean of the gradients of the main tasks present,    c_a = cos(g_a, g)
        w_a = f m k_a,    k_a = 1 if c_a > threshold else 0            (rule "keep")
                          k_a = max(0, c_a) if c_a > threshold else 0  (rule "damp")
                          k_a = 1                                      (rule "always")

    m is the mean weight of the main tasks present, so that a kept task counts like one of them
    times its `loss_weight`; f is how far the auxiliary tasks have faded out. The main tasks are
    weighed by `main`, as if there were no others: its T is their number.

    Tasks are auxiliary by `role: auxiliary`. A zero gradient has cosine 0. In a step without a main
    task no auxiliary one can be measured: their weights are 0 in it. A stage that names no main
    task has nothing to gate by: all its tasks have 1 / number of tasks of the run. Only the shared
    weights are gated: an auxiliary task's own adapter learns on. With one main task it is the
    paper's method, whose "unweighted" and "weighted" versions are "keep" and "damp".

    main: the weighting of the main tasks among themselves, any by name or with options; without
        one each has 1/T, as by `equal`. To a `Direction` m is 1.
    rule: see above; "always" looks at no gradients, for `fade` and `until` alone.
    threshold: a task is dropped where its cosine is not above it (0, the paper's).
    smoothing: share of the past in a running mean of c_a, for steps of few rows; 0 takes the
        cosine of each step alone, as the paper does.
    fade: "none", "linear" or "cosine": how f goes from 1 to 0 over the steps.
    until: the share of the run's steps after which f is 0.

    `every` and `ema` around the gate keep and average what it gave: a dropped task may linger, and
    `fade` lags. Around `main` they do not.

    Shapes: G [T', T'], weights [T'], or [S, T'] if `main` gives such. Native scale: that of `main`,
    and up to m for each auxiliary task.
    """

    name = "gradient_similarity"
    paper = (
        "Adapting Auxiliary Losses Using Gradient Similarity (arXiv 2018), "
        "https://arxiv.org/abs/1812.02224"
    )
    native_scale = "that of `main`, and up to its mean weight for each auxiliary task"
    symmetric = False

    def __init__(
        self,
        *,
        main: ComponentSpec | None = None,
        rule: Literal["keep", "damp", "always"] = "keep",
        threshold: Annotated[float, Ge(-1), Lt(1)] = 0.0,
        smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0,
        fade: Literal["none", "linear", "cosine"] = "none",
        until: Annotated[float, Gt(0), Le(1)] = 1.0,
    ) -> None:
        if main is not None and main.name == self.name:
            raise ValueError(f"main weighs the main tasks, and cannot be {self.name!r} again")
        self.homogeneity = 0 if main is None else None
        self.rule = rule
        self.threshold = threshold
        self.smoothing = smoothing
        self.fade = fade
        self.until = until
        self.needs = "nothing" if rule == "always" else "gramian"
        self.state: Tensor | None = None  # [5, T]
        self._run: Run | None = None
        self._steps = 0

    def set_inner(self, inner: Weighting) -> None:
        """Take the weighting of the main tasks."""
        super().set_inner(inner)
        inner.weigh_main_tasks_alone()
        self.needs, self.gives, self.scope = (
            _more(self.needs, inner.needs),
            inner.gives,
            inner.scope,
        )

    def mtlcore_check(self, recipe: Recipe) -> list[Problem]:
        """Refuse a recipe without main tasks, or with nothing to gate."""
        roles = {task.role for task in recipe.tasks.values()}
        for role in ("auxiliary", "main"):
            if role not in roles:
                raise UserError(
                    f"{self.name} gates auxiliary tasks by the main ones, "
                    f"and the recipe has no {role} task",
                    where="weighting",
                    fix=f"set tasks.<task>.role: {role}, or use another weighting",
                )
        return []

    def mtlcore_run_start(self, run: Run) -> None:
        """Count the steps in which the auxiliary tasks fade out."""
        self._run = run
        self._steps = sum(stage.steps for stage in plan_stages(run))

    def strength(self, step: int) -> float:
        """f in 0 .. 1: how far the auxiliary tasks still count at a step."""
        past = step / (self.until * self._steps) if self._steps else 0.0
        if past >= 1:
            return 0.0
        faded = {"none": 1.0, "linear": 1 - past, "cosine": (1 + math.cos(math.pi * past)) / 2}
        return faded[self.fade]

    def main_among(self, run: Run, present: Sequence[int]) -> Tensor:
        """[T'] whether each present task is a main one."""
        return torch.tensor([run.tasks[task].recipe.role == "main" for task in present])

    def inner_places(self, run: Run, present: Sequence[int]) -> list[int]:
        """The places of the main tasks: `main` gets their losses alone."""
        return [int(place) for place in self.main_among(run, present).nonzero()]

    def needs_at(self, step: int, present: Sequence[int]) -> Needs:
        """G only where auxiliary tasks are to be measured; what `main` reads."""
        if self._run is None:
            return self.needs
        if self.gives == "direction":  # it is made of rows, and so is what is added to it
            return self.needs
        is_main = self.main_among(self._run, present)
        if not is_main.any():
            return "nothing"
        mains = [task for task, main in zip(present, is_main, strict=True) if main]
        of_main: Needs = "nothing" if self.inner is None else self.inner.needs_at(step, mains)
        gates = self.rule != "always" and not is_main.all() and self.strength(step) > 0
        return _more(of_main, "gramian") if gates else of_main

    def mtlcore_weigh_tasks(
        self, run: Run, losses: Tensor | None, gradients: Gradients
    ) -> Tensor | Direction:
        """[T'] or [S, T'] those that `main` gives, and the gate of each auxiliary task."""
        if self.state is None:
            self.state = torch.zeros(5, len(run.tasks), dtype=torch.float64)
        present = torch.as_tensor(gradients.present, dtype=torch.long)
        is_main = self.main_among(run, gradients.present)
        if not is_main.any():
            gated = any(task.recipe.role == "main" for task in tasks_of(run, run.stage))
            self.state[WITHOUT_MAIN, present] += gated
            share = 0.0 if gated else 1 / len(run.tasks)
            weights = torch.full((len(present),), share, dtype=torch.float64)
            return weights if self.gives == "weights" else _sum(weights, gradients.rows())
        gates = torch.ones(int((~is_main).sum()), dtype=torch.float64) * self.strength(run.step)
        if self.rule != "always" and gates.any():
            cosines = mean_cosines(gradients.gramian("model"), is_main)[~is_main]
            gates = gates * self._gates(self.state, present[~is_main], cosines)
        mains = self._weigh_main(run, losses, gradients, is_main)
        if isinstance(mains, Direction):
            helping = _sum(gates, gradients.rows()[~is_main])
            return Direction(mains.vector + helping.vector)
        weights = mains.new_zeros(*mains.shape[:-1], len(present))
        weights[..., is_main] = mains
        weights[..., ~is_main] = mains.mean(-1, keepdim=True) * gates
        return weights

    def _weigh_main(
        self, run: Run, losses: Tensor | None, gradients: Gradients, is_main: Tensor
    ) -> Tensor | Direction:
        """What `main` gives for the M' main tasks present."""
        if self.inner is None:
            every = self.main_among(run, range(len(run.tasks)))
            return torch.full((int(is_main.sum()),), 1 / int(every.sum()), dtype=torch.float64)
        ask = run.plugins.only("mtlcore_weigh_tasks", [self.inner])
        return cast(
            "Tensor | Direction",
            ask(
                run=run,
                losses=None if losses is None else losses[is_main],
                gradients=Chosen(gradients, is_main),
            ),
        )

    def _gates(self, state: Tensor, helpers: Tensor, cosines: Tensor) -> Tensor:
        """Weights of the auxiliary tasks with these indices and cosines."""
        first = state[MEASURED, helpers] == 0
        past = torch.where(first, cosines, state[SMOOTHED, helpers])
        smoothed = self.smoothing * past + (1 - self.smoothing) * cosines
        kept = (smoothed > self.threshold).double()
        gates = kept if self.rule == "keep" else kept * smoothed.clamp(min=0)
        for row, values in ((MEASURED, 1.0), (KEPT, gates > 0), (COSINES, cosines)):
            state[row, helpers] += values
        state[SMOOTHED, helpers] = smoothed
        return gates

    def mtlcore_report(self, run: Run) -> list[Section]:
        """How often each auxiliary task was kept."""
        if self.state is None or self.rule == "always":
            return []
        tasks = [task for task in run.tasks if task.recipe.role == "auxiliary"]
        state = self.state[:, [task.index for task in tasks]]
        measured = state[MEASURED]
        per_step = [
            [float(value) if steps else None for value, steps in zip(row, measured, strict=True)]
            for row in state / measured.clamp(min=1)
        ]
        return [
            Section(
                "Auxiliary tasks kept",
                topic=CONFLICTS,
                text=(
                    "An auxiliary task counts in the steps in which its gradient has a cosine "
                    f"above {self.threshold:g} with the mean gradient of the main tasks "
                    f"(rule {self.rule}).",
                ),
                table={
                    "auxiliary task": [task.name for task in tasks],
                    "steps measured": [int(steps) for steps in measured],
                    "steps kept": [int(steps) for steps in state[KEPT]],
                    "share kept": per_step[KEPT],
                    "mean cosine": per_step[COSINES],
                    "steps without a main task": [int(steps) for steps in state[WITHOUT_MAIN]],
                },
            )
        ]

    def state_dict(self) -> dict[str, Any]:
        """Counts and running cosines [5, T], once a step was taken."""
        return {} if self.state is None else {"state": self.state.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        saved = state.get("state")
        self.state = None if saved is None else saved.clone()


@dataclass
class Chosen:
    """The gradients of a step as if the tasks that are not `chosen` [T'] were absent."""

    gradients: Gradients
    chosen: Tensor

    @property
    def present(self) -> list[int]:
        """Indices of the chosen tasks."""
        return [task for task, on in zip(self.gradients.present, self.chosen, strict=True) if on]

    def gramian(self, scope: Scope = "model") -> Tensor:
        """G of them alone."""
        return self.gradients.gramian(scope)[..., self.chosen, :][..., self.chosen]

    def rows(self) -> Tensor:
        """J of them alone."""
        return self.gradients.rows()[self.chosen.nonzero()[:, 0].tolist()]


def _sum(weights: Tensor, rows: Tensor) -> Direction:
    return Direction(weights.to(rows) @ rows)


def _more(one: Needs, other: Needs) -> Needs:
    return max(one, other, key=get_args(Needs).index)


def mean_cosines(gramian: Tensor, chosen: Tensor) -> Tensor:
    """[T'] cosine of each gradient with the mean of the `chosen` ones, from G [T', T']."""
    share = chosen.double() / chosen.sum()
    products = gramian @ share
    norms = (gramian.diagonal().clamp(min=0) * (share @ products).clamp(min=0)).sqrt()
    return torch.where(norms > 0, products / norms.where(norms > 0, 1), 0)
