"""The checkpoints of a run: their size, and the room that they need.

A checkpoint is its adapters and the optimizer's state. What components keep (a memory of rows, a
Fisher), a few KB of JSON, the predictions and the log are left out.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mtlcore.preflight.memory import optimizer_tensors
from mtlcore.preflight.records import Disk

if TYPE_CHECKING:
    from mtlcore.model.backbone import MultiTaskModel
    from mtlcore.preflight.steps import Steps
    from mtlcore.recipe import Recipe


def estimate_disk(model: MultiTaskModel, recipe: Recipe, steps: Steps, folder: Path) -> Disk:
    """Room for the checkpoints of a run, and what the file system of its folder has free."""
    one = safetensors_size(model.adapter_state())
    one += safetensors_size(optimizer_tensors(model, recipe, steps))
    count = checkpoints_at_most(recipe, steps)
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return Disk(one, count, one * count, shutil.disk_usage(place).free)


def checkpoints_at_most(recipe: Recipe, steps: Steps) -> int:
    """How many lie there at once: those kept, the best ones, and one that is being written."""
    training = recipe.training
    every = steps.total // training.save_steps if training.save_steps else 0
    saved = every + len(steps.stages)
    best = 0
    if training.eval_steps:
        saved += steps.total // training.eval_steps
        best = 1 + sum(t.early_stopping_patience is not None for t in recipe.tasks.values())
    limit = training.save_total_limit
    return saved if limit is None else min(saved, limit + best + 1)


def safetensors_size(tensors: Mapping[str, Tensor]) -> int:
    """The bytes of a safetensors file of these tensors."""
    header, stop = {}, 0
    for name, tensor in tensors.items():
        start, stop = stop, stop + tensor.nbytes
        kind = f"{'BF' if tensor.dtype == torch.bfloat16 else 'F'}{8 * tensor.itemsize}"
        header[name] = {"dtype": kind, "shape": [*tensor.shape], "data_offsets": [start, stop]}
    text = json.dumps(header, separators=(",", ":"))
    return 8 + math.ceil(len(text) / 8) * 8 + stop
