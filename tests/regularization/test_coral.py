"""CORAL: the distance of covariances, and its gradient through the adapters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import mtlcore
from mtlcore.errors import UserError
from mtlcore.recipe_file import read_recipe
from mtlcore.run import Run
from mtlcore.trainer import Trainer
from mtlcore_plugins.regularization.coral import Coral, coral_distance, covariance
from tests.recipes import metrics, write_tiny_recipe


def states(rows: int, width: int, seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=draw, dtype=torch.float64)


@pytest.mark.parametrize("rows", [2, 5, 64])
@pytest.mark.parametrize("scale", [1e-5, 1.0, 1e5])
def test_the_covariance_is_that_of_numpy(rows: int, scale: float) -> None:
    found = covariance(scale * states(rows, 7, rows))
    assert found.numpy() == pytest.approx(np.cov(scale * states(rows, 7, rows).numpy().T), rel=1e-9)


def test_the_distance_is_the_papers_formula() -> None:
    """With the sums written out as in its equations 1 to 3."""
    source, target = states(6, 4, 0), states(9, 4, 1)
    parts = []
    for rows in (source, target):
        n, ones = len(rows), torch.ones(1, len(rows), dtype=torch.float64)
        parts.append((rows.T @ rows - (ones @ rows).T @ (ones @ rows) / n) / (n - 1))
    expected = (parts[0] - parts[1]).pow(2).sum() / (4 * 4 * 4)
    found = coral_distance(covariance(source), covariance(target))
    assert float(found) == pytest.approx(float(expected), rel=1e-12)
    assert float(coral_distance(covariance(source), covariance(source + 3))) == pytest.approx(0)


def test_the_gradient_is_right() -> None:
    target = covariance(states(5, 3, 1))
    source = states(4, 3, 0).requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: coral_distance(covariance(rows), target), source)


def test_training_with_it_brings_the_tasks_together(tiny_model: Path, tmp_path: Path) -> None:
    """The penalty itself falls, and falls lower than in a run that only measures it."""
    last = {}
    for strength in (1e-6, 1e3):
        folder = tmp_path / f"{strength}"
        folder.mkdir()
        recipe = write_tiny_recipe(
            folder, tiny_model, regularization=f"[{{name: coral, strength: {strength}}}]",
            lora="{r: 4, lora_alpha: 8}",
        )  # fmt: skip
        changes = ["training.max_steps=30", "training.per_device_train_batch_size=18"]
        run = mtlcore.train(recipe, changes)
        lines = metrics(run.folder)
        values = [line["penalties"]["coral"] / strength for line in lines if "penalties" in line]
        last[strength] = sum(values[-5:]) / 5
    assert last[1e3] < 0.5 * last[1e-6]


@pytest.mark.parametrize("weighting", ["equal", "pcgrad"])
def test_its_gradient_is_the_mean_over_the_micro_batches(
    weighting: str, tiny_model: Path, tmp_path: Path
) -> None:
    """What it adds to a step's update, against ordinary autograd."""
    recipe = write_tiny_recipe(
        tmp_path, tiny_model, regularization="[{name: coral, strength: 100.0}]",
        lora="{r: 4, lora_alpha: 8}", sampling="equal", weighting=weighting,
    )  # fmt: skip
    changes = [
        "training.gradient_accumulation_steps=2",
        "model.dtype=float64",
        "training.max_grad_norm=0",
    ]
    run = Run(read_recipe(recipe, changes).recipe, tmp_path / "run")
    trainer = Trainer(run)
    parameters = run.model.adapter_parameters("shared")
    with torch.no_grad():
        for parameter in parameters:  # B starts at 0
            parameter.add_(0.05 * torch.randn_like(parameter))
    component = next(c for c in run.components.values() if isinstance(c, Coral))
    drawn = list(run.rows_drawn)
    expected = [torch.zeros_like(parameter) for parameter in parameters]
    run.model.routing.sink = None
    for batch in trainer.next_batches():
        [penalty] = component.mtlcore_penalties(run, batch, run.model(batch))
        for total, grad in zip(
            expected, torch.autograd.grad(penalty.value, parameters), strict=True
        ):
            total += grad / 2
    grads = []
    for strength in (100.0, 0.0):
        run.rows_drawn, run.step, component.strength = list(drawn), 0, strength
        saved = {name: value.clone() for name, value in run.model.adapter_state().items()}
        trainer.train_step()
        grads.append([parameter.grad.clone() for parameter in parameters])
        run.model.load_adapter_state(saved)
    for total, with_it, without in zip(expected, *grads, strict=True):
        torch.testing.assert_close(with_it - without, total, rtol=1e-6, atol=1e-9)


def test_wrong_tasks_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two or more"):
        Coral(tasks=["a"])
    recipe = write_tiny_recipe(
        tmp_path, tiny_model, regularization="[{name: coral, tasks: [speling, sentiment]}]"
    )
    with pytest.raises(UserError, match="did you mean 'spelling'"):
        mtlcore.train(recipe)
