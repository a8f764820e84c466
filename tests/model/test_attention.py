"""Rows of a flat batch never see each other, whatever the architecture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import mtlcore
from mtlcore.model import attention
from mtlcore.model.backbone import MultiTaskModel
from mtlcore.model.layout import Routing
from mtlcore.model.row_attention import by_length
from tests.models import backbone, batch_of, examples, multi_task

FLAT_MODELS = ["llama", "gpt2", "opt", "qwen2", "mistral", "gemma2"]
LENGTHS = [9, 1, 5, 12, 5]


def logits_alone(name: str) -> list[torch.Tensor]:
    model = backbone(name).eval()
    if name == "gemma2":
        model.set_attn_implementation("eager")
    with torch.no_grad():
        return [
            model(input_ids=torch.tensor([row.input_ids]), use_cache=False).logits[0]
            for row in examples(LENGTHS, tasks=[0] * 5)
        ]


@pytest.mark.parametrize("name", FLAT_MODELS)
@pytest.mark.parametrize("training", [False, True])
def test_a_flat_batch_gives_the_logits_of_each_row_alone(name: str, training: bool) -> None:
    model = multi_task(name)
    with torch.no_grad():
        for layer in model.layers.values():
            for up in layer.lora_B.values():
                up.zero_()
    assert model.try_flat(), model.flat_problem
    model.train(training)
    batch = batch_of(examples(LENGTHS, tasks=[0] * 5), 3)
    model.backbone.set_attn_implementation(attention.FLAT)
    model.routing.enter(batch.rows, batch.row_lengths)
    with torch.no_grad():
        found = model.backbone(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False
        ).logits[0]
    # eager attention takes its softmax in fp32, which is the floor of the soft-capped model
    tolerance = 1e-5 if name == "gemma2" else 1e-11
    torch.testing.assert_close(found, torch.cat(logits_alone(name)), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
def test_rows_go_in_one_call_where_the_kernel_serves(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = multi_task(name)
    assert model.try_flat(), model.flat_problem
    batch = batch_of(examples(LENGTHS, tasks=[0, 0, 1, 2, 2]), 3)
    expected = model(batch).token_losses
    calls = []

    def at_once(q, k, v, bounds, longest, **options):  # type: ignore[no-untyped-def]
        calls.append((bounds, longest, options["window"]))
        return by_length(q, k, v, bounds.diff().tolist(), **options)

    def why_not(query, value, dropout, softcap):  # type: ignore[no-untyped-def]
        return None if softcap is None else "it has no soft cap"

    monkeypatch.setattr(attention, "at_once", at_once)
    monkeypatch.setattr(attention, "why_not_at_once", why_not)
    assert torch.equal(model(batch).token_losses, expected)
    assert len(calls) == (0 if name == "gemma2" else 2)
    for bounds, longest, window in calls:
        assert bounds is calls[0][0], "made once for a batch"
        assert bounds.dtype == torch.int32
        assert bounds.tolist() == [0, 9, 10, 15, 27, 32]
        assert longest == 12
        assert window == (3 if name == "mistral" else None)


def test_a_run_tells_why_rows_do_not_go_in_one_call_on_a_gpu(
    tiny_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = "attention takes one call for each length of rows: no reason"
    assert told not in mtlcore.train(tiny_recipe("training.max_steps=1")).notes
    slow = property(lambda self: "no reason", lambda self, value: None)
    monkeypatch.setattr(Routing, "attention_slow", slow)
    assert told in mtlcore.train(tiny_recipe("training.max_steps=1")).notes


def test_the_start_up_check_catches_rows_that_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    model = multi_task("llama")
    right = attention.flat_attention

    def mixing(module, query, *args, **kwargs):  # type: ignore[no-untyped-def]
        lengths = module.mtlcore_routing.row_lengths
        module.mtlcore_routing.row_lengths = (sum(lengths),)
        try:
            return right(module, query, *args, **kwargs)
        finally:
            module.mtlcore_routing.row_lengths = lengths

    monkeypatch.setitem(attention.AttentionInterface._global_mapping, attention.FLAT, mixing)
    assert not model.try_flat()
    assert "differ" in str(model.flat_problem)


def test_a_model_without_replaceable_attention_falls_back_to_padding_and_says_so() -> None:
    model = multi_task("bloom")
    assert not model.try_flat()
    assert model.flat_problem is not None


def model_for_padding(name: str) -> MultiTaskModel:
    # Eager attention in float64 overflows its fp32 softmax on fully masked (padded) positions.
    dtype = torch.float32 if name == "gemma2" else torch.float64
    return multi_task(name, dtype=dtype).eval()


@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom"])
def test_padded_batches_give_the_same_losses_as_rows_alone(name: str) -> None:
    model = model_for_padding(name)
    rows = examples(LENGTHS, tasks=[0, 0, 1, 2, 2])
    with torch.no_grad():
        together = model(batch_of(rows, 3, flat=False)).loss_sums
        alone = sum(model(batch_of([row], 3, flat=False)).loss_sums for row in rows)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FLAT_MODELS)
def test_flat_and_padded_batches_give_the_same_losses(name: str) -> None:
    model = model_for_padding(name)
    rows = examples(LENGTHS, tasks=[0, 0, 1, 2, 2])
    with torch.no_grad():
        flat = model(batch_of(rows, 3)).loss_sums
        padded = model(batch_of(rows, 3, flat=False)).loss_sums
    torch.testing.assert_close(flat, padded, rtol=1e-5, atol=1e-5)
