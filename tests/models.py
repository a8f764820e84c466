"""Tiny random models of many architectures, and batches for them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from mtlcore.data.batches import Batch, collate
from mtlcore.data.example import IGNORED, Example, head_row
from mtlcore.model.backbone import MultiTaskModel
from mtlcore.model.heads import Pooling, TaskFacts
from mtlcore.model.layers import weights_of
from mtlcore.model.layout import Layout
from mtlcore.recipe import BottleneckRecipe, LoraRecipe, SharingRecipe

VOCABULARY = 97
OPTIONS = ("no", "perhaps", "yes")
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**_SIZES, num_key_value_heads=2, **_IDS),
    "qwen2": Qwen2Config(**_SIZES, num_key_value_heads=2, **_IDS),
    "mistral": MistralConfig(**_SIZES, num_key_value_heads=2, sliding_window=3, **_IDS),
    "gemma2": Gemma2Config(
        **_SIZES, num_key_value_heads=2, head_dim=8, sliding_window=3, query_pre_attn_scalar=8,
        attn_logit_softcapping=2.0, final_logit_softcapping=5.0, **_IDS,
    ),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **_IDS,
    ),
    "opt": OPTConfig(
        vocab_size=VOCABULARY, hidden_size=32, ffn_dim=48, num_hidden_layers=2, dropout=0.0,
        num_attention_heads=4, max_position_embeddings=64, word_embed_proj_dim=32, **_IDS,
    ),
    "cohere": CohereConfig(**_SIZES, num_key_value_heads=2, logit_scale=0.0625, **_IDS),
    "granite": GraniteConfig(**_SIZES, num_key_value_heads=2, logits_scaling=3.0, **_IDS),
    "bloom": BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, **_IDS),
}  # fmt: skip


def backbone(name: str = "llama", dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """A random model with weights large enough that attention matters."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[name]))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8.0)
    if dtype == torch.float64:
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm"):
                # The library's casts to fp32, and its backward's rounding hides errors below 1e-7.
                module.forward = functools.partial(_rms_norm, module)
    return model.to(dtype)


def _rms_norm(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    gemma = "Gemma" in type(module).__name__
    weight = 1 + module.weight if gemma else module.weight
    epsilon = module.eps if gemma else module.variance_epsilon
    return weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon)


def multi_task(
    name: str = "llama",
    tasks: int = 3,
    *,
    dtype: torch.dtype = torch.float64,
    sharing: SharingRecipe | None = None,
    bottleneck: BottleneckRecipe | None = None,
    heads: Mapping[int, Pooling] | None = None,
    frozen: Sequence[str] = (),
    smoothing: Sequence[float] | None = None,
    dropout: Sequence[float] | None = None,
    keep_pooled: bool = False,
    **lora: object,
) -> MultiTaskModel:
    """The same with adapters, what starts at 0 made non-zero; heads by task, with `OPTIONS`."""
    names = [f"task{index}" for index in range(tasks)]
    recipe = LoraRecipe.model_validate({"r": 4, "lora_alpha": 8, **lora})
    heads = heads or {}
    layout = Layout.build(
        names,
        recipe,
        sharing,
        bottleneck=bottleneck,
        heads=[names[task] for task in heads],
        frozen_tasks=frozen,
    )
    facts = [
        TaskFacts(
            dropout=dropout[task] if dropout else recipe.lora_dropout,
            smoothing=smoothing[task] if smoothing else 0.0,
            head=heads.get(task),
            options=OPTIONS if task in heads else None,
        )
        for task in range(tasks)
    ]
    model = MultiTaskModel(
        backbone(name, dtype),
        layout,
        recipe,
        bottleneck=bottleneck,
        tasks=facts,
        keep_pooled=keep_pooled,
    )
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in weights_of(model.adapter_layers):
            if not weight.parameter.any():
                noise = torch.randn(weight.parameter.shape, generator=draw, dtype=torch.float64)
                weight.parameter.copy_(0.1 * noise)
    return model


def examples(lengths: Sequence[int], *, tasks: Sequence[int], seed: int = 0) -> list[Example]:
    """Random rows of the given lengths; about half of each row is labelled."""
    draw = torch.Generator().manual_seed(seed)
    made = []
    for row, (length, task) in enumerate(zip(lengths, tasks, strict=True)):
        ids = tuple(torch.randint(3, VOCABULARY, (length,), generator=draw).tolist())
        prompt = length // 2
        made.append(
            Example(
                task=f"task{task}", row=row, prompt="", target="", input_ids=ids,
                labels=(IGNORED,) * prompt + ids[prompt:], prompt_length=prompt,
            )
        )  # fmt: skip
    return made


def with_heads(rows: Sequence[Example], heads: Mapping[int, Pooling]) -> list[Example]:
    """The same rows, those of tasks with a head answered by it."""
    return [
        head_row(replace(row, options=OPTIONS, label=row.row % len(OPTIONS)))
        if int(row.task.removeprefix("task")) in heads
        else row
        for row in rows
    ]


def batch_of(
    rows: Sequence[Example], task_count: int, *, flat: bool = True, device: str = "cpu"
) -> Batch:
    """A batch of rows whose tasks are named task0, task1, ..."""
    tasks = [int(example.task.removeprefix("task")) for example in rows]
    return collate(rows, tasks, task_count, flat=flat, device=device)
