"""Two processes give the rows, losses and weights of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import mtlcore
from mtlcore import checkpoint_store
from mtlcore.adaptation import FORGETTING
from mtlcore.evaluation.folds import RESULT, cross_validate
from mtlcore.recipe_file import read_recipe
from tests.helpers import torchrun
from tests.recipes import TASKS, final_adapters, metrics, training_part, write_tiny_recipe

SCRIPT = """
import os
import sys
import mtlcore
import mtlcore.model.backbone
if os.environ["RANK"] == "1":  # its first weights are others, and must not count
    right = mtlcore.model.backbone.generator
    mtlcore.model.backbone.generator = lambda *key: right("another", *key)
if sys.argv[1] == "adapt":
    _, _, folder, task, out, *more = sys.argv
    mtlcore.adapt(folder, task, more, max_steps=3, output_dir=out)
elif sys.argv[1] == "cv":
    from mtlcore.evaluation.folds import cross_validate
    from mtlcore.recipe_file import read_recipe
    cross_validate(read_recipe(sys.argv[2], ["model.dtype=float64"]), 2)
else:
    mtlcore.train(sys.argv[1], ["model.dtype=float64"])
"""


def train_both(
    folder: Path,
    model: Path,
    *,
    total: int = 6,
    accumulation: int = 1,
    more: str = "seed: 0",
    **parts: str,
) -> tuple[list[list[dict[str, Any]]], list[dict[str, torch.Tensor]]]:
    """Train with one process and with two -> the lines of both runs, and their final adapters.

    `more`: a further key of `training`.
    """
    training = (
        "{{output_dir: {folder}, max_steps: 3, per_device_train_batch_size: {rows}, "
        "gradient_accumulation_steps: {times}, adam_epsilon: 1e-3, logging_steps: 1, "
        "max_length: 96, {more}}}"
    )
    recipes = {}
    for name, rows, times in (("one", total // accumulation, accumulation), ("two", total // 2, 1)):
        place = folder / name
        place.mkdir()
        keys = training.format(folder=place / "run", rows=rows, times=times, more=more)
        recipes[name] = write_tiny_recipe(place, model, training=keys, **parts)
    mtlcore.train(recipes["one"], ["model.dtype=float64"])
    script = folder / "script.py"
    script.write_text(SCRIPT)
    torchrun(script, recipes["two"])
    runs = [folder / name / "run" for name in ("one", "two")]
    return [metrics(run) for run in runs], [final_adapters(run) for run in runs]


def kept_by_components(run: Path) -> dict[str, torch.Tensor]:
    """The tensors that components keep in the last checkpoint."""
    last = checkpoint_store.checkpoints(run)[-1]
    return load_file(last / checkpoint_store.COMPONENTS)


def assert_equal(finals: list[dict[str, torch.Tensor]]) -> None:
    for key, value in finals[0].items():
        torch.testing.assert_close(value, finals[1][key], rtol=1e-9, atol=1e-12)


PENALTY = '''
import torch
from mtlcore.components import Penalty, Regularizer

class Squares(Regularizer):
    """The squared token losses, under a name for each task: some are on one process only."""

    name = "squares"
    acts_on = "task"

    def mtlcore_penalties(self, run, batch, outputs):
        if batch is None:
            return []
        found = []
        for task in run.tasks:
            mine = (outputs.token_losses.square() * (batch.label_tasks == task.index)).sum()
            if batch.counts[task.index]:
                sums = torch.zeros(len(run.tasks), dtype=mine.dtype)
                sums[task.index] = 0.01 * mine
                found.append(Penalty(f"squares of {task.name}", "task", sums))
        return found
'''


def test_penalties_are_those_of_all_processes(tiny_model: Path, tmp_path: Path) -> None:
    """On tasks (some have rows on one process only) and on weights."""
    (tmp_path / "squares.py").write_text(PENALTY)
    records, finals = train_both(
        tmp_path,
        tiny_model,
        weighting="equal",
        lora="{r: 4, lora_alpha: 8}",
        sampling="proportional",
        regularization="[squares, {name: l2_anchor, strength: 0.5}]",
        plugins=f"[{tmp_path / 'squares.py'}]",
    )
    for one, two in zip(*records, strict=True):
        assert {"squares of sentiment", "l2_anchor"} <= one["penalties"].keys()
        assert one["penalties"] == pytest.approx(two["penalties"], rel=1e-9)
    assert records[0][-1]["penalties"]["l2_anchor"] > 0
    assert_equal(finals)


@pytest.mark.parametrize("weighting", ["pcgrad", "equal"])
def test_two_processes_train_as_one(weighting: str, tiny_model: Path, tmp_path: Path) -> None:
    """With LoRA, bottlenecks and a head; in some steps a task has rows on one process only."""
    records, finals = train_both(
        tmp_path,
        tiny_model,
        weighting=weighting,
        lora="{r: 4, lora_alpha: 8, lora_dropout: 0.2}",
        bottleneck="{shared: 3, own: 2}",
        sampling="proportional",
        tasks=TASKS.replace(
            "    metrics: [accuracy", "    head: classification\n    metrics: [accuracy"
        ),
    )
    alone = False
    for one, two in zip(*records, strict=True):
        assert one["rows"] == two["rows"]
        assert one["tokens"] == two["tokens"]
        alone |= 1 in one["rows"].values()
        for key in ("losses", "weights", "grad_norms"):
            assert one[key] == pytest.approx(two[key], rel=1e-9)
    assert alone
    assert {"head.bias.head:sentiment", "head.weight.head:sentiment"} < finals[0].keys()
    assert_equal(finals)


def test_a_penalty_on_the_batch_of_one_process_only(tiny_model: Path, tmp_path: Path) -> None:
    """Two processes are as two micro-batches; in some steps one of them has no pair of tasks."""
    records, finals = train_both(
        tmp_path,
        tiny_model,
        total=8,
        accumulation=2,
        lora="{r: 4, lora_alpha: 8}",
        sampling="proportional",
        regularization="[{name: coral, strength: 100.0}]",
    )
    assert any("coral" in line["penalties"] for line in records[0])
    for one, two in zip(*records, strict=True):
        assert one["penalties"] == pytest.approx(two["penalties"], rel=1e-9)
    assert_equal(finals)


CONTINUAL = (
    "regularization=[{name: ewc, strength: 1e4, rows: 7, labels: sampled}]",
    "replay={name: reservoir, rows: 12, share: 0.5}",
    "lora.lora_dropout=0.1",
    "training.save_steps=1",
)


def test_two_processes_adapt_as_one(tiny_model: Path, tmp_path: Path) -> None:
    """The Fisher information of an odd number of rows, with drawn labels; the memory; the table."""
    old_tasks, _, new_task = TASKS.partition("  definitions:")
    recipe = write_tiny_recipe(
        tmp_path,
        tiny_model,
        tasks=old_tasks,
        lora="{r: 4, lora_alpha: 8}",
        sharing="{shared: 4, own: 2}",
        training=training_part(tmp_path, max_steps=2, learning_rate=0.02, adam_epsilon=1e-3),
    )
    old = mtlcore.train(recipe, ["model.dtype=float64"]).folder
    new = tmp_path / "new.yaml"
    new.write_text(f"tasks:\n  definitions:{new_task}")
    one, two = tmp_path / "one", tmp_path / "two"
    mtlcore.adapt(old, new, CONTINUAL, max_steps=3, output_dir=one)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    half = "training.per_device_train_batch_size=3"
    torchrun(script, "adapt", old, new, two, *CONTINUAL, half)
    assert_equal([final_adapters(run) for run in (one, two)])
    kept = [kept_by_components(run) for run in (one, two)]
    assert any("/held.fisher." in name and value.any() for name, value in kept[0].items())
    assert_equal(kept)
    for mine, theirs in zip(metrics(one), metrics(two), strict=True):
        assert mine["rows"] == theirs["rows"]
        assert mine["rows"]["sentiment"] + mine["rows"]["spelling"] == 3, "replayed"
        for key in ("losses", "penalties", "grad_norms"):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-9)
    assert metrics(one)[-1]["penalties"]["ewc"] > 0
    told = [json.loads((run / FORGETTING).read_text()) for run in (one, two)]
    assert told[0] == told[1]
    assert {"sentiment", "spelling"} == told[0]["tasks"].keys()
    states = [checkpoint_store.checkpoints(run)[-1] / checkpoint_store.STATE for run in (one, two)]
    memories = [json.loads(state.read_text())["components"]["replay:reservoir"] for state in states]
    assert memories[0] == memories[1]


def test_two_processes_cross_validate_as_one(tiny_model: Path, tmp_path: Path) -> None:
    """The second fold is trained together too, and one process writes what both score."""
    recipes = {}
    for name, rows in (("one", 6), ("two", 3)):
        place = tmp_path / name
        place.mkdir()
        training = training_part(
            place, max_steps=2, per_device_train_batch_size=rows, adam_epsilon=1e-3
        )
        lora = "{r: 4, lora_alpha: 8}"
        recipes[name] = write_tiny_recipe(place, tiny_model, training=training, lora=lora)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    one = cross_validate(read_recipe(recipes["one"], ["model.dtype=float64"]), 2)
    torchrun(script, "cv", recipes["two"])
    folders = [recipe.parent / "run" for recipe in recipes.values()]
    two = json.loads((folders[1] / RESULT).read_text())
    for fold in ("fold-1", "fold-2"):
        runs = [folder / "cv" / fold for folder in folders]
        assert_equal([final_adapters(run) for run in runs])
        assert all((run / "predictions" / "eval" / "scores.json").is_file() for run in runs)
    assert one["tasks"].keys() == two["tasks"].keys()
    for name, found in one["tasks"].items():
        assert found["values"] == two["tasks"][name]["values"]
        assert found["loss"]["values"] == pytest.approx(two["tasks"][name]["loss"]["values"])
