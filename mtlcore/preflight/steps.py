"""The steps of a run that has not begun: its stages, their rows, and the tokens of a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, pvariance
from typing import TYPE_CHECKING, cast

import torch

from mtlcore import seeds
from mtlcore.components import rows_per_step
from mtlcore.data.example import IGNORED
from mtlcore.preflight.records import StagePlan, TokensPerStep
from mtlcore.stages import Stage, expected_shares, plan_stages

if TYPE_CHECKING:
    from mtlcore.components import Sampler
    from mtlcore.data.tasks import Task
    from mtlcore.recipe import Recipe
    from mtlcore.run import Run

ABOVE_95 = 1.6448536269514722
"""95% of a normal distribution lie below its mean plus so many standard deviations."""


@dataclass
class RunToBe:
    """What a sampler may read of a run before its first step: see `Sampler.shares`."""

    recipe: Recipe
    tasks: list[Task]
    sampler: Sampler
    step: int = 0
    stage: str = ""
    active: list[bool] = field(default_factory=list)
    rows_drawn: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.seed = self.recipe.training.seed
        self.active = [True] * len(self.tasks)
        self.rows_drawn = [0] * len(self.tasks)

    def is_active(self, task: Task) -> bool:
        """Whether the task is trained in the stage of now."""
        return self.active[task.index]

    def generator(self, step: int, *key: str) -> torch.Generator:
        """As that of a run."""
        return seeds.generator(self.seed, step, *key)


@dataclass(frozen=True)
class Steps:
    """The stages as the trainer plans them, and `shares` [T] of the tasks in each."""

    run: Run
    stages: list[Stage]
    shares: list[list[float]]

    @classmethod
    def of(cls, recipe: Recipe, tasks: Sequence[Task], sampler: Sampler) -> Steps:
        """Ask the sampler; its errors are passed on."""
        run = cast("Run", RunToBe(recipe, list(tasks), sampler))
        stages = plan_stages(run)
        return cls(run, stages, [expected_shares(run, stage.active) for stage in stages])

    @property
    def total(self) -> int:
        """The optimizer steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    @property
    def rows(self) -> int:
        """The rows of one step, in one process."""
        return rows_per_step(self.run)

    def plans(self) -> list[StagePlan]:
        """What each stage takes of each of its tasks, by the shares at its start."""
        found = []
        for stage, shares in zip(self.stages, self.shares, strict=True):
            rows = {
                task.name: stage.steps * self.rows * share
                for task, share, on in zip(self.run.tasks, shares, stage.active, strict=True)
                if on
            }
            sizes = {task.name: len(task.train) for task in self.run.tasks}
            passes = {name: count / sizes[name] for name, count in rows.items()}
            found.append(StagePlan(stage.name, stage.steps, rows, passes))
        return found

    def tokens_per_step(self) -> TokensPerStep:
        """Of the stage with the longest steps.

        With n_t rows of task t, of mean length m_t and variance v_t, a step has sum_t n_t m_t
        tokens with variance sum_t n_t v_t, and its 95% is that of a normal distribution.
        """
        lengths = [[len(row.input_ids) for row in task.train] for task in self.run.tasks]
        means = [fmean(of_task) for of_task in lengths]
        variances = [pvariance(of_task) for of_task in lengths]
        found = []
        for shares in self.shares:
            mean = self.rows * sum(s * m for s, m in zip(shares, means, strict=True))
            variance = self.rows * sum(s * v for s, v in zip(shares, variances, strict=True))
            found.append(TokensPerStep(mean, mean + ABOVE_95 * math.sqrt(variance)))
        return max(found, key=lambda tokens: tokens.p95)

    def labels_per_token(self) -> float:
        """The share of tokens of the rows whose loss is taken, in the stage that has most."""
        per_row = [
            fmean(sum(label != IGNORED for label in row.labels[1:]) for row in task.train)
            for task in self.run.tasks
        ]
        length = [fmean(len(row.input_ids) for row in task.train) for task in self.run.tasks]
        return max(
            sum(s * n for s, n in zip(shares, per_row, strict=True))
            / sum(s * n for s, n in zip(shares, length, strict=True))
            for shares in self.shares
        )
