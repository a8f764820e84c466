"""What tests read of a finished run, and the tiny recipe that they train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from mtlcore import checkpoint_store
from mtlcore.testing.recipes import ROWS, TASKS, write_tiny_recipe

__all__ = ["ROWS", "TASKS", "final_adapters", "metrics", "training_part", "write_tiny_recipe"]


def final_adapters(folder: Path) -> dict[str, torch.Tensor]:
    """The adapters of the last checkpoint of a run."""
    return load_file(checkpoint_store.checkpoints(folder)[-1] / checkpoint_store.ADAPTERS)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def training_part(folder: Path, **changes: object) -> str:
    """The part `training` of a tiny recipe, with changes."""
    values = {
        "output_dir": folder / "run",
        "max_steps": 6,
        "per_device_train_batch_size": 6,
        "learning_rate": 5e-3,
        "max_length": 96,
        "save_steps": 2,
        "save_total_limit": 10,
        "logging_steps": 1,
        **changes,
    }
    return "{" + ", ".join(f"{key}: {value}" for key, value in values.items()) + "}"
