"""Every weighting by name: on the demo's tasks, and step by step against plain autograd."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mtlcore
from mtlcore.data.batches import collate, plan_rows
from mtlcore.gradients import Direction
from mtlcore.plugins import PluginManager
from mtlcore.recipe_file import read_recipe
from mtlcore.run import Run
from mtlcore.testing import StandInGradients
from tests.command_line import CommandLine
from tests.recipes import TASKS, final_adapters, metrics, training_part, write_tiny_recipe

STEPS = 5
METHODS = sorted(
    name
    for kind, name in PluginManager.load(environ={"MTLCORE_NO_PLUGINS": "1"}).components()
    if kind == "weighting"
)
OPTIONS: Mapping[str, str] = {
    "coba": "first_looks: 2, window: 4",
    "dwa": "window: 1",
    "famo": "learning_rate: 0.5",
    "fixed": "weights: {sentiment: 0.2, opposite: 0.8}",
    "imtl_l": "learning_rate: 0.5",
    "uncertainty": "learning_rate: 0.5",
    "self_paced": "rule: linear",
}
"""Where the defaults would not act within five steps, or do not exist."""
AUXILIARY = {"gradient_similarity"}


def recipe_of(
    folder: Path, model: Path, name: str, start: Path | None = None, steps: int = STEPS
) -> Path:
    """Two tasks in opposition, one shared adapter, plain steps."""
    folder.mkdir()
    one, _, _ = TASKS.partition("  spelling:")
    other = one.replace("  sentiment:\n", "  opposite:\n    loss_weight: 2.0\n").replace(
        "labels: [negative, positive]", "labels: {negative: positive, positive: negative}"
    )
    if name in AUXILIARY:
        other = other.replace("  opposite:\n", "  opposite:\n    role: auxiliary\n")
    options = OPTIONS.get(name)
    return write_tiny_recipe(
        folder,
        model,
        tasks=one + other.lstrip("\n"),
        lora="{r: 4, lora_alpha: 8}",
        sharing="{shared: 4}",
        sampling="equal",
        regularization="[]",
        weighting=f"{{name: {name}, {options}}}" if options else name,
        **({"start": str(start)} if start else {}),
        training=training_part(
            folder,
            max_steps=steps,
            save_steps=steps,
            learning_rate=0.1,
            adam_epsilon=0.1,  # so that the size of the update counts
            max_grad_norm=0,
            lr_scheduler_type="constant",
        ),
    )


def trained(recipe: Path) -> Path:
    return mtlcore.train(recipe, ["model.dtype=float64"]).folder


class ByHand:
    """The same run with one backward pass per task and the method on the full matrix."""

    def __init__(self, recipe: Path, start: Path) -> None:
        loaded = read_recipe(recipe, ["model.dtype=float64"])
        self.run = Run(loaded.recipe, recipe.parent / "by_hand")
        self.run.model.load_adapter_state(final_adapters(start))
        self.hook = self.run.plugins.hook
        training = loaded.recipe.training
        self.names, self.weights = zip(*self.run.model.trainable_parameters(), strict=True)
        self.optimizer = torch.optim.AdamW(
            self.weights, lr=training.learning_rate, eps=training.adam_epsilon, weight_decay=0.0
        )

    def train(self) -> dict[str, Tensor]:
        run = self.run
        run.stage = "train"
        self.hook.mtlcore_run_start(run=run)
        self.hook.mtlcore_stage_start(run=run, stage=run.stage)
        for _ in range(STEPS):
            self.step()
        return run.model.adapter_state()

    def step(self) -> None:
        run, rows = self.run, plan_rows(self.run, self.run.step)
        index = {task.name: task.index for task in run.tasks}
        batch = collate(
            rows, [index[row.task] for row in rows], len(run.tasks), flat=run.model.flat
        )
        run.model.train()
        sums, shares = self.loss_sums(batch)
        # The model's norms run in float32: a loss that is scaled first is rounded otherwise.
        J = torch.stack([self.gradient(loss) for loss in sums]) * shares[:, None]  # [T, P]
        run.model.routing.leave()
        losses = sums.detach() * shares
        gradients: Any = StandInGradients(J)
        read = None if run.weighting.needs == "nothing" else losses
        answer = self.hook.mtlcore_weigh_tasks(run=run, losses=read, gradients=gradients)
        update = answer.vector if isinstance(answer, Direction) else J.T @ answer
        sizes = [weight.numel() for weight in self.weights]
        for weight, part in zip(self.weights, update.split(sizes), strict=True):
            weight.grad = part.view_as(weight)
        self.optimizer.step()
        self.hook.mtlcore_after_update(
            run=run, losses_again=lambda: self.loss_sums(batch)[0].detach() * shares
        )
        run.step += 1
        self.hook.mtlcore_step_end(run=run, record={})

    def loss_sums(self, batch: Any) -> tuple[Tensor, Tensor]:
        """[T] sums of the token losses, and what makes weighted means of them."""
        outputs = self.run.model(batch)
        factors = torch.tensor([task.recipe.loss_weight for task in self.run.tasks])
        return outputs.loss_sums, factors.double() / torch.tensor(batch.counts)

    def gradient(self, loss: Tensor) -> Tensor:
        parts = torch.autograd.grad(loss, self.weights, retain_graph=True)
        return torch.cat([part.reshape(-1) for part in parts])


@pytest.fixture(scope="module")
def start(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned the form of the answers: only the opposition is left."""
    folder = tmp_path_factory.mktemp("start")
    return trained(recipe_of(folder / "run", tiny_model, "equal", steps=60))


@pytest.fixture(scope="module")
def with_equal(
    tiny_model: Path, start: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Tensor]:
    folder = tmp_path_factory.mktemp("equal")
    return final_adapters(trained(recipe_of(folder / "run", tiny_model, "equal", start)))


@pytest.mark.parametrize("name", METHODS)
def test_five_steps_are_those_of_plain_autograd_and_differ_from_equal_weights(
    name: str, tiny_model: Path, tmp_path: Path, start: Path, with_equal: dict[str, Tensor]
) -> None:
    recipe = recipe_of(tmp_path / name, tiny_model, name, start)
    found = final_adapters(trained(recipe))
    expected = ByHand(recipe, start).train()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-7, atol=1e-10)
    furthest = max(float((found[key] - with_equal[key]).abs().max()) for key in found)
    assert furthest == 0 if name == "equal" else furthest > 1e-6


DEMO = (
    "training.max_steps=3",
    "tasks.translation.generation.max_new_tokens=2",
    "tasks.definitions.generation.max_new_tokens=2",
)
DEMO_OPTIONS = {
    "fixed": ["weighting.weights={sentiment: 1, word_sense: 1, translation: 2, definitions: 1, "
              "spelling: 0.5}"],
    "gradient_similarity": ["tasks.spelling.role=auxiliary"],
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_the_demo_runs_with_it_by_name(name: str, tmp_path: Path, run_cli: CommandLine) -> None:
    options = [f"weighting.name={name}", *DEMO_OPTIONS.get(name, ())]
    code, out, errors = run_cli("demo", "--tiny", "--out", tmp_path / "run", *DEMO, *options)
    assert code == 0, errors
    assert "five tasks, one model" in out
    lines = [line for line in metrics(tmp_path / "run") if "weights" in line]
    assert lines
    assert all(0 <= abs(weight) < 1e3 for line in lines for weight in line["weights"].values())
