"""What `mtlcore check` says a run takes, beside what the run took."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mtlcore import checkpoint
from mtlcore.api import prepare
from mtlcore.data.check_report import CheckReport
from mtlcore.preflight.check import check_recipe
from mtlcore.preflight.memory import activation_size
from mtlcore.preflight.records import Plan, readable
from mtlcore.recipe import Recipe
from mtlcore.recipe_file import read_recipe
from mtlcore.trainer import Trainer
from tests.models import batch_of, examples, multi_task
from tests.recipes import ROWS, metrics, training_part, write_tiny_recipe

STAGES = (
    "[{name: first, tasks: [sentiment]}, {name: second, tasks: [spelling, definitions], "
    "num_train_epochs: 2}]"
)
LAYOUTS = {
    "shared and own": {},
    "stages": {"stages": STAGES, "sharing": "{shared: 0, own: 3}"},
    "groups and bottlenecks": {
        "sharing": "{shared: 2, own_layers: [1], own: 1, "
        "groups: {pair: {tasks: [spelling, definitions], r: 3}}}",
        "bottleneck": "{shared: 4, own: 2}",
        "weighting": "upgrad",
        "regularization": "[{name: coral, strength: 0.1}]",
    },
    "folded": {"weighting": "equal", "regularization": "[]"},
}


@pytest.fixture(params=LAYOUTS)
def recipe(request: pytest.FixtureRequest, tmp_path: Path, tiny_model: Path) -> Path:
    """A recipe of 3 tasks, by layout; without max_steps, so that epochs decide."""
    training = training_part(tmp_path, max_steps="null", num_train_epochs=0.5)
    return write_tiny_recipe(tmp_path, tiny_model, training=training, **LAYOUTS[request.param])


def plan_of(report: CheckReport) -> Plan:
    assert report.errors == []
    assert report.plan is not None, report.notes
    return report.plan


def trained(recipe: Path) -> Trainer:
    trainer = prepare(read_recipe(recipe))
    trainer.train()
    return trainer


def nbytes(path: Path) -> int:
    return sum(tensor.nbytes for tensor in load_file(path).values())


def test_steps_adapters_gradients_and_checkpoints_are_those_of_the_run(recipe: Path) -> None:
    report = check_recipe(recipe)
    plan, model = plan_of(report), report.model
    trainer = trained(recipe)
    run, arena = trainer.run, trainer.gradients.arena
    assert plan.steps == run.step == len(metrics(run.folder))
    assert [(s.name, s.steps) for s in plan.stages] == [(s.name, s.steps) for s in trainer.stages]
    assert plan.rows_per_step == sum(metrics(run.folder)[0]["rows"].values())
    assert model is not None
    assert {size.name: size.parameters for size in model.adapters} == {
        adapter.name: sum(p.numel() for p in run.model.adapter_parameters(adapter.name))
        for adapter in run.model.layout.adapters
    }
    total = sum(p.numel() for p in run.model.backbone.parameters())
    lora = sum(size.parameters for size in model.adapters if size.family == "lora")
    assert model.frozen_parameters == total - lora
    held = [arena.rows, arena.own, trainer.gradients.update]
    if (penalty := trainer.gradients._penalty_arena) is not None:  # coral acts on the batch
        held += [penalty.rows, penalty.own]
    assert plan.memory.gradients == sum(tensor.nbytes for tensor in held)
    assert len(arena.rows) == (1 if run.weighting.needs == "nothing" else 3)
    folders = checkpoint.checkpoints(run.folder)
    optimizers = [nbytes(folder / checkpoint.OPTIMIZER) for folder in folders]
    assert plan.memory.optimizer == max(optimizers)
    assert plan.memory.adapters == nbytes(folders[-1] / checkpoint.ADAPTERS)
    files = [
        sum((folder / name).stat().st_size for name in (checkpoint.ADAPTERS, checkpoint.OPTIMIZER))
        for folder in folders
    ]
    assert plan.disk.checkpoint == pytest.approx(max(files), rel=0.01)
    assert len(folders) <= plan.disk.checkpoints
    assert plan.disk.needed == plan.disk.checkpoint * plan.disk.checkpoints


def test_rows_and_tokens_are_near_those_of_the_run(tmp_path: Path, tiny_model: Path) -> None:
    training = training_part(tmp_path, max_steps=40)
    recipe = write_tiny_recipe(tmp_path, tiny_model, training=training)
    plan = plan_of(check_recipe(recipe))
    trained(recipe)
    steps = metrics(tmp_path / "run")
    tokens = [sum(step["tokens"].values()) for step in steps]
    assert plan.tokens_per_step.mean == pytest.approx(sum(tokens) / len(tokens), rel=0.05)
    below = sum(count <= plan.tokens_per_step.p95 for count in tokens)
    assert 36 <= below <= 40
    for task, rows in plan.stages[0].rows.items():
        assert rows == pytest.approx(sum(step["rows"][task] for step in steps), rel=0.1)
        assert plan.stages[0].passes[task] == pytest.approx(rows / ROWS[task])


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_activations_are_near_what_autograd_keeps(
    name: str, dropout: float, recipe_of: Callable[..., Recipe]
) -> None:
    model = multi_task(name, tasks=2, dtype=torch.float32, dropout=[dropout] * 2).train()
    rows = examples([30, 34, 36, 28], tasks=[0, 0, 1, 1])
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = model(batch_of(rows, 2))
    measured = sum(kept.values())
    estimate = activation_size(model, recipe_of(), 128)
    assert outputs.loss_sums.requires_grad
    assert measured / 1.6 < estimate < 1.6 * measured


@pytest.fixture
def recipe_of() -> Callable[..., Recipe]:
    """A recipe of training options alone."""

    def make(**training: Any) -> Recipe:
        task = {"train": "rows.jsonl", "format": "text"}
        model = {"name_or_path": "none"}
        return Recipe.model_validate({"model": model, "tasks": {"a": task}, "training": training})

    return make


def test_checkpointing_keeps_less(recipe_of: Callable[..., Recipe]) -> None:
    model = multi_task("llama")
    plain = activation_size(model, recipe_of(), 100)
    assert activation_size(model, recipe_of(gradient_checkpointing=True), 100) < 0.7 * plain


def test_room_that_is_not_there_is_a_warning(tmp_path: Path, tiny_model: Path) -> None:
    training = training_part(
        tmp_path, max_steps=10**10, save_steps=1, save_total_limit="null", eval_steps=10
    )
    report = check_recipe(write_tiny_recipe(tmp_path, tiny_model, training=training))
    assert report.errors == []
    (warning,) = [w for w in report.warnings if "training.output_dir" in w.where]
    assert "recipe.yaml:32, training.output_dir" in warning.where
    assert "the checkpoints need about" in warning.message
    limited = check_recipe(tmp_path / "recipe.yaml", ["training.save_total_limit=3"])
    assert plan_of(limited).disk.checkpoints == 5  # and the best one, and one in the making


def test_json_has_model_and_plan_or_says_why_not(tmp_path: Path, tiny_model: Path) -> None:
    recipe = write_tiny_recipe(tmp_path, tiny_model)
    found = json.loads(json.dumps(check_recipe(recipe).to_json()))
    assert found["plan"]["steps"] == 6
    assert found["model"]["architecture"] == "LlamaForCausalLM"
    memory = found["plan"]["memory"]
    sizes = {name: size for name, size in memory.items() if name not in ("device", "total")}
    assert sum(sizes.values()) == memory["total"]
    part = check_recipe(recipe, tasks=["spelling"])
    assert part.plan is None
    assert part.model is not None
    assert any("when all tasks are looked at" in note for note in part.notes)


def test_a_sampler_that_needs_a_run_leaves_the_plan_out_and_says_so(
    tmp_path: Path, tiny_model: Path
) -> None:
    (tmp_path / "asks.py").write_text(
        "from mtlcore.components import Sampler\n\n\n"
        "class Asks(Sampler):\n"
        '    """By size of the model."""\n\n'
        '    name = "asks"\n\n'
        "    def shares(self, run, step):\n"
        "        return [run.model.size] * 3\n"
    )
    recipe = write_tiny_recipe(tmp_path, tiny_model, sampling="asks", plugins="[asks.py]")
    report = check_recipe(recipe)
    assert report.errors == []
    assert report.plan is None
    assert any(n.startswith("steps, memory and disk: not looked at") for n in report.notes)


def test_shares_that_are_none_are_an_error(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "names.py").write_text(
        "from mtlcore.components import Sampler\n\n\n"
        "class Names(Sampler):\n"
        '    """Gives its shares by name."""\n\n'
        '    name = "names"\n\n'
        "    def shares(self, run, step):\n"
        "        return {task.name: 1 / 3 for task in run.tasks}\n"
    )
    recipe = write_tiny_recipe(tmp_path, tiny_model, sampling="names", plugins="[names.py]")
    [error] = check_recipe(recipe).errors
    assert error.where.endswith(", sampling")
    assert error.fix.startswith("return a list of 3 numbers")


def test_sizes_are_read_easily() -> None:
    told = {0: "0 bytes", 9999: "9999 bytes", 10_000: "10.0 kB", 123_456_789: "123 MB"}
    assert {size: readable(size) for size in told} == told
    assert readable(7 * 10**15) == "7,000 TB"
