"""The model of a recipe without its weights: does it have what the recipe adapts, and how much."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mtlcore.model.backbone import (
    MultiTaskModel,
    bottleneck_targets,
    empty_backbone,
    find_targets,
)
from mtlcore.model.heads import TaskFacts
from mtlcore.model.layers import weights_of
from mtlcore.preflight.records import AdapterSize, ModelCheck
from mtlcore.preflight.weights import weight_problems
from mtlcore.run import require_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mtlcore.data.check_report import CheckReport
    from mtlcore.data.tasks import Task
    from mtlcore.model.layout import Layout
    from mtlcore.recipe import Recipe


def device_of_run() -> torch.device:
    """Where a run on this machine would compute."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def check_base(recipe: Recipe, report: CheckReport) -> PreTrainedModel | None:
    """The base model on the meta device; what is wrong with it goes to the report.

    Of a local folder the weight files are looked at too; of a hub name only the configuration is
    asked for.
    """
    errors = len(report.errors)
    report.collect(require_config, recipe.model)
    if len(report.errors) > errors:
        return None
    folder = Path(recipe.model.name_or_path)
    if folder.is_dir():
        report.errors += weight_problems(folder)
    return report.collect(empty_backbone, recipe.model, device_of_run())


def with_adapters(
    backbone: PreTrainedModel,
    recipe: Recipe,
    layout: Layout,
    tasks: Sequence[Task],
    report: CheckReport,
) -> MultiTaskModel | None:
    """The model as a run would have it, on the meta device; None if adapters find no place.

    A task that is not in `tasks`, because its rows could not be read, has a head of no size.
    """
    known = {task.name: task for task in tasks}
    facts = [
        TaskFacts.of(known[name], recipe)
        if name in known
        else TaskFacts(head=task.head.pooling if task.head else None)
        for name, task in recipe.tasks.items()
    ]
    told = len(report.errors)
    narrow = recipe.bottleneck
    if layout.family("lora"):
        report.collect(find_targets, backbone, recipe.lora.target_modules)
    if narrow is not None:
        report.collect(bottleneck_targets, backbone, narrow.target_modules)
    if len(report.errors) > told:
        return None
    with torch.device("meta"):
        return report.collect(
            MultiTaskModel, backbone, layout, recipe.lora, bottleneck=narrow, tasks=facts
        )


def describe(model: MultiTaskModel, recipe: Recipe) -> ModelCheck:
    """The sizes of a model and its adapters."""
    frozen = frozen_weights(model)
    return ModelCheck(
        architecture=type(model.backbone).__name__,
        dtype=str(model.backbone.dtype).removeprefix("torch."),
        remote_code=recipe.model.trust_remote_code,
        frozen_parameters=sum(weight.numel() for weight in frozen),
        frozen_size=sum(weight.nbytes for weight in frozen),
        adapters=_adapters(model),
    )


def frozen_weights(model: MultiTaskModel) -> list[torch.nn.Parameter]:
    """The weights of the base model, each once."""
    adapters = {id(weight.parameter) for weight in weights_of(model.adapter_layers)}
    return [weight for weight in model.backbone.parameters() if id(weight) not in adapters]


def _adapters(model: MultiTaskModel) -> list[AdapterSize]:
    layers = {a.name: 0 for a in model.layout.adapters}
    for layer in model.adapter_layers:
        for adapter in layer.adapters:
            layers[adapter.name] += 1
    found = []
    for adapter in model.layout.adapters:
        weights = model.adapter_parameters(adapter.name)
        found.append(
            AdapterSize(
                name=adapter.name,
                family=adapter.family,
                tasks=[model.layout.task_names[task] for task in adapter.tasks],
                r=adapter.r,
                layers=layers[adapter.name],
                parameters=sum(weight.numel() for weight in weights),
                size=sum(weight.nbytes for weight in weights),
                trained=not adapter.frozen,
            )
        )
    return found
