"""What the tests of weightings share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import mtlcore
from mtlcore.components import Weighting
from mtlcore.testing import StandInGradients, plugin_manager, stand_in_run
from tests.recipes import metrics, training_part, write_tiny_recipe


def tasks(count: int, **options: Any) -> Any:
    """A stand-in for a run of so many tasks."""
    return stand_in_run({str(index): 5 for index in range(count)}, **options)


def weigh(
    weighting: Weighting, run: Any, losses: Sequence[float], present: Sequence[int] | None = None
) -> torch.Tensor:
    """The weights [T'] of a weighting that reads losses [T']."""
    values = torch.tensor(losses, dtype=torch.float64)
    gradients = StandInGradients(torch.eye(len(losses)), present)
    return weighting.mtlcore_weigh_tasks(run, values, gradients)  # type: ignore[attr-defined]


def slopes(scalarizer: torch.nn.Module, losses: Sequence[float]) -> torch.Tensor:
    """d scalarizer / d losses [T]: the weights that a scalarization of TorchJD implies."""
    leaf = torch.tensor(losses, dtype=torch.float64, requires_grad=True)
    scalarizer(leaf).backward()
    assert leaf.grad is not None
    return leaf.grad


def random_losses(count: int, scale: float, seed: int) -> list[float]:
    """Losses in 0.1 .. 5, times a scale."""
    draw = torch.Generator().manual_seed(seed)
    values = 0.1 + 4.9 * torch.rand(count, generator=draw, dtype=torch.float64)
    return [float(value) * scale for value in values]


def trained(folder: Path, model: Path, weighting: str, **training: object) -> list[dict[str, Any]]:
    """The steps' records of a tiny run of three tasks."""
    part = training_part(folder, **{"max_steps": 4, "save_steps": 4, **training})
    recipe = write_tiny_recipe(folder, model, weighting=weighting, training=part)
    return metrics(mtlcore.train(recipe).folder)


def check_recipe(*loss_weights: float) -> Any:
    """A stand-in for a recipe whose tasks have these loss weights."""
    given = {str(index): SimpleNamespace(loss_weight=w) for index, w in enumerate(loss_weights)}
    return SimpleNamespace(tasks=given)


def weighted_losses(line: dict[str, Any]) -> dict[str, float]:
    """The losses of a step of the tiny run as its weighting reads them: times `loss_weight`."""
    return {name: loss * (2 if name == "spelling" else 1) for name, loss in line["losses"].items()}


def made(cls: type[Weighting], options: dict[str, Any]) -> Any:
    """A weighting with the options of a recipe, which are checked."""
    spec = SimpleNamespace(name=cls.name, options=options)
    return plugin_manager(cls).create("weighting", spec, "weighting")
