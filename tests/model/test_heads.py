"""Classification heads: pooling, losses, and the rows of other tasks beside them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from mtlcore.data.example import IGNORED, Example, head_row
from mtlcore.errors import UserError
from mtlcore.losses import cross_entropy
from mtlcore.model.heads import Pooling, TaskFacts, head_options
from mtlcore.recipe import GenerationRecipe
from tests.models import OPTIONS, batch_of, examples, multi_task, with_heads

LENGTHS, TASKS = [9, 4, 7, 12, 5, 6], [0, 2, 1, 1, 2, 0]
HEADS: dict[int, Pooling] = {0: "last", 2: "mean"}


def rows() -> list[Example]:
    return with_heads(examples(LENGTHS, tasks=TASKS), HEADS)


def hidden_states(model: Any, row: Example) -> torch.Tensor:
    """What the language model's head is given for one row alone: [length, d]."""
    seen: list[torch.Tensor] = []
    head = model.backbone.get_output_embeddings()
    handle = head.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    every = replace(row, labels=(IGNORED, *row.input_ids[1:]), head=False)
    task = int(row.task[-1])
    batch = batch_of([every], 3)
    # all positions: those that predict a label, and the last one
    batch = replace(batch, label_index=torch.arange(len(row.input_ids)))
    batch = replace(batch, labels=torch.zeros(len(row.input_ids), dtype=torch.long))
    same = torch.full((len(row.input_ids),), task)
    model(replace(batch, label_tasks=same), keep_logits=True)  # else the head is given no state
    handle.remove()
    return seen[0][0]


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_head_reads_the_last_prompt_token_or_the_mean(name: str, flat: bool) -> None:
    model = multi_task(name, heads=HEADS, keep_pooled=True)
    assert model.try_flat()
    batch = batch_of(rows(), 3, flat=flat)
    with torch.no_grad():
        outputs = model(batch)
        found = torch.cat(outputs.head_logits)
        assert outputs.pooled is not None
        losses = []
        expected = []
        for place, row in enumerate(batch.examples):
            states = hidden_states(model, row)[: row.prompt_length]
            torch.testing.assert_close(outputs.pooled[place], states.mean(0))
            task = int(row.task[-1])
            if task in HEADS:
                state = states[-1] if HEADS[task] == "last" else states.mean(0)
                weight, bias = (
                    model.heads.parameter(model.heads.index[task], factor) for factor in (0, 1)
                )
                expected.append(F.linear(state, weight, bias))
                losses.append(F.cross_entropy(expected[-1], torch.tensor(row.label)))
    torch.testing.assert_close(found, torch.stack(expected))
    torch.testing.assert_close(outputs.token_losses[-len(losses) :], torch.stack(losses))
    assert outputs.counts == (2, batch.counts[1], 2)


@pytest.mark.parametrize("flat", [False, True])
def test_a_mixed_batch_gives_each_row_what_it_gets_alone(flat: bool) -> None:
    model = multi_task(heads=HEADS).eval()
    assert model.try_flat()
    with torch.no_grad():
        together = model(batch_of(rows(), 3, flat=flat)).loss_sums
        alone = sum(model(batch_of([row], 3, flat=flat)).loss_sums for row in rows())
    torch.testing.assert_close(together, alone)


def test_pooled_states_are_kept_only_when_asked_for() -> None:
    model = multi_task(heads=HEADS)
    assert model(batch_of(rows(), 3)).pooled is None
    assert multi_task()(batch_of(examples([4], tasks=[0]), 3)).pooled is None


def test_a_row_without_a_prompt_is_pooled_over_all_its_tokens() -> None:
    model = multi_task(keep_pooled=True)
    row = replace(examples([6], tasks=[1])[0], prompt_length=0)
    pooled = model(batch_of([row], 3)).pooled
    torch.testing.assert_close(pooled[0], hidden_states(model, row).mean(0))


def test_a_batch_of_head_rows_alone_needs_no_token_labels() -> None:
    model = multi_task(heads=HEADS)
    model.try_flat()
    only = [row for row in rows() if row.head]
    outputs = model(batch_of(only, 3))
    assert outputs.counts == (2, 0, 2)
    outputs.loss_sums.sum().backward()
    assert model.layers["model.layers.0.mlp.up_proj"].lora_A["shared"].grad is not None


def test_heads_compute_in_fp32_under_autocast() -> None:
    model = multi_task(dtype=torch.float32, heads=HEADS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(batch_of(rows(), 3)).head_logits
    assert {part.dtype for part in logits} == {torch.float32}


def test_a_head_starts_from_the_seed_and_the_tasks_name() -> None:
    from mtlcore.model.backbone import MultiTaskModel
    from mtlcore.model.layout import Layout
    from mtlcore.recipe import LoraRecipe
    from tests.models import backbone

    facts = TaskFacts(head="last", options=OPTIONS)
    weights = []
    for names, seed in ((["a", "b"], 0), (["b"], 0), (["b"], 1)):
        layout = Layout.build(names, LoraRecipe(), None, heads=names)
        model = MultiTaskModel(
            backbone(), layout, LoraRecipe(), tasks=[facts] * len(names), seed=seed
        )
        state = model.adapter_state()
        weights.append(state["head.weight.head:b"])
        assert not state["head.bias.head:b"].any()
        assert 0.01 < float(weights[-1].std()) < 0.04
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_a_head_of_unknown_size_takes_that_of_the_saved_one() -> None:
    saved = multi_task(heads=HEADS).adapter_state()
    model = multi_task(heads=HEADS)
    model.heads.facts[0] = TaskFacts(head="last")
    for factor in (0, 1):
        model.heads.parameter(0, factor).data = torch.empty(0, 32 * (1 - factor)).double()
    assert model.heads.size(0) == 0
    model.load_adapter_state(saved)
    assert model.heads.size(0) == 3
    assert torch.equal(
        model.adapter_state()["head.weight.head:task0"], saved["head.weight.head:task0"]
    )


def test_a_head_writes_no_text() -> None:
    model = multi_task(heads=HEADS)
    with pytest.raises(UserError, match=r"tasks.task2.head: .*'task2' is answered by its head"):
        model.generate([[3, 4]], [2], GenerationRecipe(), pad_token_id=0, eos_token_id=2)
    assert model.generate(
        [[3, 4]], [1], GenerationRecipe(max_new_tokens=2), pad_token_id=0, eos_token_id=None
    )


def test_rows_without_options_cannot_have_a_head() -> None:
    with pytest.raises(UserError, match=r"tasks.task0.head: .*no options to choose from"):
        head_row(examples([4], tasks=[0])[0])


def test_a_head_row_is_the_prompt_alone_and_made_once() -> None:
    row = replace(examples([8], tasks=[0])[0], options=OPTIONS, label=1)
    made = head_row(row)
    assert made.input_ids == row.input_ids[:4]
    assert set(made.labels) == {IGNORED}
    assert (made.label_count, row.label_count) == (1, 4)
    assert head_row(made) is made
    with pytest.raises(ValueError, match="no tokens to learn"):
        replace(made, labels=made.input_ids)


def test_rows_with_options_of_their_own_cannot_share_a_head() -> None:
    rows = [SimpleNamespace(options=("a", "b"), row=i) for i in range(3)]

    class Rows(list[Any]):
        path = "rows.jsonl"

    task: Any = SimpleNamespace(name="quiz", splits=lambda: {"train": Rows(rows)})
    assert head_options(task) == ("a", "b")
    rows[2].options = ("a", "c")
    with pytest.raises(UserError, match=r"tasks.quiz.head: .*row 2 of rows.jsonl"):
        head_options(task)
    empty: Any = SimpleNamespace(name="quiz", splits=dict)
    assert head_options(empty) is None


@pytest.mark.parametrize("classes", [2, 97])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_smoothing_is_torchs(share: float, classes: int) -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(11, classes, dtype=torch.float64, generator=draw).mul_(30)
    labels = torch.randint(classes, (11,), generator=draw)
    found = cross_entropy(logits, labels, torch.full((11,), share, dtype=torch.float64))
    expected = F.cross_entropy(logits, labels, label_smoothing=share, reduction="none")
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(
        cross_entropy(logits, labels), F.cross_entropy(logits, labels, reduction="none")
    )


@pytest.mark.parametrize("training", [False, True])
def test_each_task_is_smoothed_by_its_own_share_in_training_only(training: bool) -> None:
    shares = [0.2, 0.0, 0.5]
    plain, smoothed = multi_task(heads=HEADS), multi_task(heads=HEADS, smoothing=shares)
    batch = batch_of(rows(), 3)
    expected = plain.train(training)(batch, keep_logits=True)
    found = smoothed.train(training)(batch)
    if training:
        logits = [*expected.logits, *torch.cat(expected.head_logits)]
        labels = [*batch.labels, *batch.head_labels]  # type: ignore[misc]
        each = [
            F.cross_entropy(row, label, label_smoothing=shares[task])
            for row, label, task in zip(logits, labels, batch.label_tasks.tolist(), strict=True)
        ]
        torch.testing.assert_close(found.token_losses, torch.stack(each))
        assert not torch.allclose(found.loss_sums[[0, 2]], expected.loss_sums[[0, 2]])
        assert torch.equal(found.loss_sums[1], expected.loss_sums[1])
    else:
        assert torch.equal(found.loss_sums, expected.loss_sums)
