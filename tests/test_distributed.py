"""Two processes give the rows, losses and weights of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import mtlcore
from mtlcore import checkpoint
from tests.recipes import TASKS, write_tiny_recipe

SCRIPT = """
import os
import sys
import mtlcore
import mtlcore.model.backbone
if os.environ["RANK"] == "1":  # its first weights are others, and must not count
    right = mtlcore.model.backbone.generator
    mtlcore.model.backbone.generator = lambda *key: right("another", *key)
mtlcore.train(sys.argv[1], ["model.dtype=float64"])
"""


@pytest.mark.parametrize("weighting", ["pcgrad", "equal"])
def test_two_processes_train_as_one(weighting: str, tiny_model: Path, tmp_path: Path) -> None:
    """With LoRA, bottlenecks and a head; in some steps a task has rows on one process only."""
    training = (
        "{{output_dir: {folder}, max_steps: 3, per_device_train_batch_size: {rows}, "
        "adam_epsilon: 1e-3, logging_steps: 1, max_length: 96}}"
    )
    parts = {
        "weighting": weighting,
        "lora": "{r: 4, lora_alpha: 8}",
        "bottleneck": "{shared: 3, own: 2}",
        "sampling": "proportional",
        "tasks": TASKS.replace(
            "    metrics: [accuracy", "    head: classification\n    metrics: [accuracy"
        ),
    }
    recipes = {}
    for name, rows in (("one", 6), ("two", 3)):
        folder = tmp_path / name
        folder.mkdir()
        recipes[name] = write_tiny_recipe(
            folder, tiny_model, training=training.format(folder=folder / "run", rows=rows), **parts
        )
    mtlcore.train(recipes["one"], ["model.dtype=float64"])
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    root = str(Path(__file__).parent.parent)
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         str(script), str(recipes["two"])],
        check=True, timeout=300, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    records = [
        [
            json.loads(line)
            for line in (tmp_path / name / "run/metrics.jsonl").read_text().splitlines()
        ]
        for name in ("one", "two")
    ]
    alone = False
    for one, two in zip(*records, strict=True):
        assert one["rows"] == two["rows"]
        assert one["tokens"] == two["tokens"]
        alone |= 1 in one["rows"].values()
        for key in ("losses", "weights", "grad_norms"):
            assert one[key] == pytest.approx(two[key], rel=1e-9)
    assert alone
    finals = [
        load_file(checkpoint.checkpoints(tmp_path / name / "run")[-1] / checkpoint.ADAPTERS)
        for name in ("one", "two")
    ]
    assert {"head.bias.head:sentiment", "head.weight.head:sentiment"} < finals[0].keys()
    for key, value in finals[0].items():
        torch.testing.assert_close(value, finals[1][key], rtol=1e-9, atol=1e-12)
