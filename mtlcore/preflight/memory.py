"""Memory of a run, from the model without its weights. Activations and logits are estimates.

    base         the frozen weights, each once, in the type that they are loaded in
    adapters     their weights, exact
    optimizer    AdamW: two numbers for each trained weight and one for each tensor, in the stage
                 that trains most
    gradients    J [T, P] or, folded, [1, P]; the update [P]; own gradients [Q]; a copy of J for a
                 component that needs its rows, and [P + Q] for penalties on the batch
    activations  of N tokens, the 95% of a micro-batch: N * sum over the linear layers but the head
                 of (in + out) * b, and of each norm 2 * width * b; with dropout N * 2 * in * b more
                 for each adapted layer; with bf16 over another type the linear weights in bf16 too
                 (b: bytes of a number, 2 under bf16). With gradient checkpointing the input of
                 each block and the activations of one
    logits       two of n tokens by V in fp32 at least (n = 256 on a CPU, 1024 on a GPU, or all
                 labelled tokens if fewer), and one hidden state for each labelled token

Of tiny Llama, Qwen 2 and GPT-2 models the activations are 0.68 to 1.33 times what autograd keeps
(tests/preflight/test_estimate.py).

Left out: padding, attention's and the allocator's working memory, logits in one piece (a trained
head, or a model that changes its logits in an unknown way), evaluation and generation, what
components keep, the rows, and the libraries themselves (hundreds of MB).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mtlcore.arena import Arena
from mtlcore.gradients import folds_rows
from mtlcore.model.layout import block_number
from mtlcore.model.lora import MultiTaskLora
from mtlcore.ops.task_cross_entropy import PIECE
from mtlcore.preflight.model import device_of_run, frozen_weights
from mtlcore.preflight.records import Memory

if TYPE_CHECKING:
    from mtlcore.model.backbone import MultiTaskModel
    from mtlcore.preflight.steps import Steps
    from mtlcore.recipe import Recipe
    from mtlcore.recipe_components import Made


def estimate_memory(
    model: MultiTaskModel, recipe: Recipe, components: Made, steps: Steps
) -> Memory:
    """What a step holds at its peak, in one process."""
    training = recipe.training
    device = device_of_run()
    passes = min(training.gradient_accumulation_steps, steps.rows)
    tokens = math.ceil(steps.tokens_per_step().p95 / passes)
    parts = {
        "base": sum(weight.nbytes for weight in frozen_weights(model)),
        "adapters": _size(model.adapter_state()),
        "optimizer": _size(optimizer_tensors(model, recipe, steps)),
        "gradients": gradient_size(model, recipe, components, passes),
        "activations": activation_size(model, recipe, tokens),
        "logits": logits_size(model, math.ceil(tokens * steps.labels_per_token()), device),
    }
    return Memory(device=device.type, **parts, total=sum(parts.values()))


def optimizer_tensors(model: MultiTaskModel, recipe: Recipe, steps: Steps) -> dict[str, Tensor]:
    """AdamW's state as a checkpoint names it, in the stage that trains most, on the meta device."""
    stages = [_state_of(model, recipe, stage.active) for stage in steps.stages]
    return max(stages, key=_size)


def _state_of(model: MultiTaskModel, recipe: Recipe, active: Sequence[bool]) -> dict[str, Tensor]:
    """A weight gets its state with its first gradient: with the first row that uses it."""
    state: dict[str, Tensor] = {}
    index = 0
    for adapter in model.layout.adapters:
        used = recipe.replay is not None or any(active[task] for task in adapter.tasks)
        for weight in model.adapter_parameters(adapter.name) if not adapter.frozen else ():
            if used:
                state[f"{index}.step"] = torch.empty((), device="meta")
                state[f"{index}.exp_avg"] = state[f"{index}.exp_avg_sq"] = weight.detach()
            index += 1
    return state


def gradient_size(model: MultiTaskModel, recipe: Recipe, components: Made, passes: int) -> int:
    """Of J, the update and the own gradients, in the arena that a run would make."""
    arena = Arena(model.adapter_layers, [], len(model.layout.task_names))
    every = components.by_key.values()
    folds = folds_rows(components.weighting.needs, every, passes)
    folded = folds and recipe.training.gradients != "multi_pass"
    rows = 1 if folded else arena.task_count
    if any(component.needs == "rows" for component in every):
        rows += arena.task_count
    size = (rows + 1) * arena.shared_size + arena.own_size
    if any(part.acts_on == "batch" for part in components.of_kind("regularization")):
        size += arena.shared_size + arena.own_size
    return size * arena.dtype.itemsize


def activation_size(model: MultiTaskModel, recipe: Recipe, tokens: int) -> int:
    """What the forward pass keeps of so many tokens for the backward pass."""
    head: Any = model.backbone.get_output_embeddings()
    base = model.backbone.dtype
    number = 2 if recipe.training.bf16 else base.itemsize
    linear: dict[str, nn.Module] = {}
    widths = copies = 0
    for name, module in model.backbone.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not head:
            linear[name] = module
            widths += sum(module.weight.shape)
            copies += module.weight.numel()
        elif type(module).__name__.endswith("Norm") and hasattr(module, "weight"):
            widths += 2 * module.weight.numel()
        elif isinstance(module, MultiTaskLora) and any(model.routing.dropout):
            widths += 2 * module.in_features
    blocks = {block_number(name) for name in linear} - {None}
    if recipe.training.gradient_checkpointing and blocks:
        widths = len(blocks) * model.heads.features + widths // len(blocks)
    cast = copies * 2 if recipe.training.bf16 and base != torch.bfloat16 else 0
    return tokens * widths * number + cast


def logits_size(model: MultiTaskModel, labelled: int, device: torch.device) -> int:
    """Of the pieces in which the loss of so many labelled tokens is taken."""
    head: Any = model.backbone.get_output_embeddings()
    vocabulary, hidden = map(int, head.weight.shape)
    base = model.backbone.dtype
    wide = torch.promote_types(base, torch.float32).itemsize
    piece = min(labelled, PIECE.get(device.type, PIECE["cuda"]))
    return 2 * piece * vocabulary * wide + labelled * hidden * base.itemsize


def _size(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
