"""Exported adapters and merged models give the same logits without mtlcore."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from mtlcore.errors import UserError
from mtlcore.model.attention import use_attention
from mtlcore.model.backbone import MultiTaskModel
from mtlcore.model.export import merged_model, peft_adapter
from mtlcore.model.layout import SHARED_ONLY, Segment
from mtlcore.recipe import BottleneckRecipe, SharingRecipe
from tests.helpers import small_tokenizer
from tests.models import backbone, multi_task

SHARING = SharingRecipe.model_validate(
    {"shared": 4, "own": 2, "groups": {"pair": {"tasks": ["task0", "task2"], "r": 3}}}
)
IDS = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(0))


def our_logits(model: MultiTaskModel, task: int) -> torch.Tensor:
    use_attention(model.backbone, model.original_attention)
    model.routing.enter([Segment(task, 0, 2)], None)
    with torch.no_grad():
        logits = model.backbone(input_ids=IDS, use_cache=False).logits
    model.routing.leave()
    return logits


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "qwen2"])
@pytest.mark.parametrize("rslora", [False, True])
def test_stock_peft_gives_our_logits(
    name: str, dtype: torch.dtype, tolerance: float, rslora: bool, tmp_path: Path
) -> None:
    model = multi_task(name, dtype=dtype, sharing=SHARING, use_rslora=rslora).eval()
    for task in (SHARED_ONLY, 0, 1, 2):
        folder = peft_adapter(model, task, tmp_path / str(task), "base")
        stock = PeftModel.from_pretrained(
            backbone(name, dtype), str(folder), autocast_adapter_dtype=False
        ).eval()
        with torch.no_grad():
            found = stock(input_ids=IDS, use_cache=False).logits
        expected = our_logits(model, task)
        error = (found - expected).abs().max() / expected.abs().max()
        assert error < tolerance
        base = backbone(name, dtype).eval()
        with torch.no_grad():
            untouched = base(input_ids=IDS, use_cache=False).logits
        assert (untouched - expected).abs().max() / expected.abs().max() > 1e-3


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_adapters_in_some_blocks_only_are_exported_exactly(
    name: str, merged: bool, tmp_path: Path
) -> None:
    """Ranks differ by module, and one block has no adapter of its own tasks at all."""
    sharing = SharingRecipe.model_validate(
        {
            "shared": 4,
            "shared_layers": [0],
            "own": 2,
            "groups": {"pair": {"tasks": ["task0", "task2"], "r": 3, "layers_to_transform": [1]}},
            "own_layers": [0],
        }
    )
    dtype = torch.float32 if merged else torch.float64
    model = multi_task(name, dtype=dtype, sharing=sharing).eval()
    for task in (SHARED_ONLY, 0, 1):
        folder = tmp_path / str(task)
        if merged:
            merged_model(model, task, folder, small_tokenizer())
            stock = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        else:
            peft_adapter(model, task, folder, "base")
            stock = PeftModel.from_pretrained(
                backbone(name, dtype), str(folder), autocast_adapter_dtype=False
            ).eval()
            config = json.loads((folder / "adapter_config.json").read_text())
            assert config["rank_pattern"] == config["alpha_pattern"]
            assert bool(config["rank_pattern"]) == (task == 0)  # 6 in block 0, 3 in block 1
        with torch.no_grad():
            found = stock(input_ids=IDS, use_cache=False).logits
        expected = our_logits(model, task)
        error = (found - expected).abs().max() / expected.abs().max()
        assert error < (1e-5 if merged else 1e-12)


def test_a_task_with_a_bottleneck_is_refused_and_named(tmp_path: Path) -> None:
    model = multi_task(sharing=SHARING, bottleneck=BottleneckRecipe(own=2))
    with pytest.raises(UserError, match=r"bottleneck: bottleneck:own:task1: .*no LoRA"):
        peft_adapter(model, 1, tmp_path, "base")
    with pytest.raises(UserError, match="cannot be merged"):
        merged_model(model, 1, tmp_path, small_tokenizer())
    peft_adapter(model, SHARED_ONLY, tmp_path, "base")  # uses none


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_a_merged_model_gives_our_logits(name: str, tmp_path: Path) -> None:
    model = multi_task(name, dtype=torch.float32, sharing=SHARING).eval()
    folder = merged_model(model, 1, tmp_path, small_tokenizer())
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        found = stock(input_ids=IDS, use_cache=False).logits
    torch.testing.assert_close(found, our_logits(model, 1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(our_logits(model, 1), our_logits(model, 1))


def test_a_layout_without_a_shared_adapter_cannot_export_it(tmp_path: Path) -> None:
    model = multi_task(sharing=SharingRecipe.model_validate({"shared": 0, "own": 2}))
    with pytest.raises(UserError, match="no shared adapter"):
        peft_adapter(model, SHARED_ONLY, tmp_path, "base")
