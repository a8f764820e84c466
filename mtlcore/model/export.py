"""Adapters that stock PEFT loads, and merged models, from any static layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig, TaskType
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mtlcore.errors import UserError
from mtlcore.model.layout import Adapter

if TYPE_CHECKING:
    from mtlcore.model.backbone import MultiTaskModel
    from mtlcore.model.lora import MultiTaskLora


def peft_adapter(model: MultiTaskModel, task: int, folder: Path, base_name: str) -> Path:
    """Write the adapters that a task uses as one LoRA that `PeftModel.from_pretrained` reads.

    A = the adapters' A one below the other, B = their scale * B side by side, so the rank is the
    sum of their ranks and lora_alpha equals it (a factor of 1), whatever scale training used.
    Where adapters lie in some blocks only, ranks and alphas differ by module. A head has no place
    in a LoRA: it is written beside it, as head.safetensors and head.json.
    """
    adapters = _adapters_of(model, task)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for name, layer in model.layers.items():
        here = [adapter for adapter in adapters if adapter in layer.adapters]
        if here:
            down, up = _factors(layer, here)
            tensors[f"base_model.model.{name}.lora_A.weight"] = down.cpu().contiguous()
            tensors[f"base_model.model.{name}.lora_B.weight"] = up.cpu().contiguous()
            ranks[name] = len(down)
    rank = max(ranks.values())
    others = {name: r for name, r in ranks.items() if r != rank}
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        lora_dropout=0.0,
        use_rslora=False,
        bias="none",
        target_modules=sorted(ranks),
        rank_pattern=others,
        alpha_pattern=dict(others),
        fan_in_fan_out=any(layer.transposed for layer in model.layers.values()),
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=base_name,
        inference_mode=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(str(folder))
    _save_head(model, task, folder)
    return folder


def _save_head(model: MultiTaskModel, task: int, folder: Path) -> None:
    """The task's head as tensors, and what it takes to use them in words.

    Logits are weight @ state + bias; the state is the last hidden state (what the language model
    head would get) of the last prompt token, or the mean over the prompt's tokens.
    """
    if task not in model.heads:
        return
    facts = model.heads.facts[task]
    index = model.heads.index[task]
    tensors = {
        factor: model.heads.parameter(index, number).detach().cpu().contiguous()
        for number, factor in enumerate(model.heads.factors)
    }
    save_file(tensors, folder / "head.safetensors", metadata={"format": "pt"})
    words = {
        "task": model.layout.task_names[task],
        "pooling": facts.head,
        "hidden_size": model.heads.features,
        "options": facts.options,
    }
    text = json.dumps(words, indent=2, ensure_ascii=False)
    (folder / "head.json").write_text(text + "\n", encoding="utf-8")


def merged_model(
    model: MultiTaskModel, task: int, folder: Path, tokenizer: PreTrainedTokenizerBase
) -> Path:
    """Write a full model with the task's adapters added into its weights: W + sum scale B A.

    A head is written beside it, as head.safetensors and head.json.
    """
    adapters = _adapters_of(model, task)
    state: dict[str, Tensor] = {}
    for name, value in model.backbone.state_dict().items():
        if ".lora_A." in name or ".lora_B." in name:
            continue
        owner, _, leaf = name.rpartition(".")
        path = owner.removesuffix(".base")
        if path != owner and path in model.layers:
            if leaf == "weight":
                value = _merged_weight(model.layers[path], adapters, value)
            name = f"{path}.{leaf}"
        state[name] = value
    folder.mkdir(parents=True, exist_ok=True)
    model.backbone.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)
    _save_head(model, task, folder)
    return folder


def _adapters_of(model: MultiTaskModel, task: int) -> list[Adapter]:
    """The LoRA adapters of a task; UserError if a LoRA cannot hold what the task uses."""
    used = model.layout.of_task(task)
    narrow = [adapter.name for adapter in used if adapter.family == "bottleneck"]
    if narrow:
        raise UserError(
            f"{' and '.join(narrow)}: bottleneck adapters are no LoRA and cannot be merged into "
            "the weights, so nothing outside of mtlcore could load them",
            where="bottleneck",
            fix="use the run itself (`mtlcore generate`, `mtlcore.load`), or train without them",
        )
    adapters = [adapter for adapter in used if adapter.family == "lora"]
    if not adapters:
        what = "this layout has no shared adapter" if task < 0 else "the task uses no adapter"
        raise UserError(what, where="sharing", fix="export a task that has one")
    return adapters


def _factors(layer: MultiTaskLora, adapters: list[Adapter]) -> tuple[Tensor, Tensor]:
    """A [r, in] and B [out, r] of several adapters as one, their scales folded into B."""
    down = torch.cat([layer.lora_A[adapter.name].detach() for adapter in adapters])
    up = torch.cat([layer.lora_B[a.name].detach() * a.scale for a in adapters])
    return down, up.t()


def _merged_weight(layer: MultiTaskLora, adapters: list[Adapter], weight: Tensor) -> Tensor:
    adapters = [adapter for adapter in adapters if adapter in layer.adapters]
    if not adapters:
        return weight
    down, up = _factors(layer, adapters)
    delta = up @ down  # [out, in]
    return (weight.to(delta.dtype) + (delta.t() if layer.transposed else delta)).to(weight.dtype)
