"""What a run would do and need: its steps, memory and disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mtlcore.preflight.disk import estimate_disk
from mtlcore.preflight.memory import estimate_memory
from mtlcore.preflight.records import Plan
from mtlcore.preflight.steps import Steps

if TYPE_CHECKING:
    from mtlcore.data.checks import Looked
    from mtlcore.model.backbone import MultiTaskModel
    from mtlcore.recipe import Recipe


def make_plan(model: MultiTaskModel, recipe: Recipe, looked: Looked, folder: Path) -> Plan:
    """Plan the run of a recipe that is right, in one process, with checkpoints in `folder`.

    The model may be on the meta device. What the sampler raises is passed on.
    """
    (sampler,) = looked.components.of_kind("sampling")
    steps = Steps.of(recipe, looked.tasks, sampler)
    return Plan(
        stages=steps.plans(),
        steps=steps.total,
        rows_per_step=steps.rows,
        tokens_per_step=steps.tokens_per_step(),
        memory=estimate_memory(model, recipe, looked.components, steps),
        disk=estimate_disk(model, recipe, steps, folder),
    )
