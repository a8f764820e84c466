"""The Fisher diagonal against the gradients of single rows by ordinary autograd."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mtlcore import seeds
from mtlcore.data.example import Example
from mtlcore.errors import UserError
from mtlcore.fisher import fisher, squared_gradients
from mtlcore.model.backbone import MultiTaskModel
from mtlcore.model.heads import TaskFacts
from mtlcore.model.layout import Layout
from mtlcore.recipe import BottleneckRecipe, LoraRecipe, SharingRecipe
from tests.models import VOCABULARY, backbone, batch_of, examples, multi_task

SHARING = SharingRecipe.model_validate(
    {"shared": 4, "own": 2, "groups": {"pair": {"tasks": ["task0", "task2"], "r": 3}}}
)
LENGTHS = [9, 4, 2, 12, 5, 6, 3]
TASKS = [0, 2, 1, 1, 2, 0, 0]


def rows() -> list[Example]:
    return examples(LENGTHS, tasks=TASKS)


def run_of(model: MultiTaskModel, *, rows_per_step: int = 3, step: int = 0) -> Any:
    """What `fisher` reads of a run."""
    names = model.layout.task_names
    training = SimpleNamespace(per_device_train_batch_size=rows_per_step)
    return SimpleNamespace(
        model=model,
        step=step,
        device="cpu",
        tasks=[SimpleNamespace(name=name, index=index) for index, name in enumerate(names)],
        recipe=SimpleNamespace(training=training),
        autocast=functools.partial(torch.autocast, "cpu", torch.bfloat16, enabled=False),
        generator=functools.partial(seeds.generator, 0),
    )


def by_hand(model: MultiTaskModel, chosen: Sequence[Example]) -> dict[str, Tensor]:
    """The mean over rows of the squared gradient, one row at a time, from the logits on."""
    weights = dict(model.trainable_parameters())
    found = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for row in chosen:
        batch = batch_of([row], 3, flat=False)
        model.routing.enter(batch.rows, None)
        logits = model.backbone(input_ids=batch.input_ids, use_cache=False).logits[0]
        labels = torch.tensor(row.labels)
        loss = F.cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum")
        grads = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        for name, grad in zip(weights, grads, strict=True):
            if grad is not None:
                found[name] += grad.square() / len(chosen)
    model.routing.leave()
    return found


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=1e-14)


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_it_is_the_mean_of_the_squared_gradients_of_single_rows(name: str, flat: bool) -> None:
    model = multi_task(name, sharing=SHARING)
    if flat:
        assert model.try_flat()
    expected = by_hand(model, rows())
    assert any("own:task1" in key and value.any() for key, value in expected.items())
    assert_same(fisher(run_of(model), rows()), expected, 1e-10)


@pytest.mark.parametrize("rows_per_step", [1, 2, 100])
def test_it_does_not_depend_on_how_rows_are_batched(rows_per_step: int) -> None:
    model = multi_task(sharing=SHARING)
    model.try_flat()
    found = fisher(run_of(model, rows_per_step=rows_per_step), list(reversed(rows())))
    assert_same(found, fisher(run_of(model), rows()), 1e-10)


def test_one_pass_per_row_gives_the_same() -> None:
    model = multi_task(sharing=SHARING)
    model.try_flat()
    found = fisher(run_of(model), rows(), mode="per_row")
    assert_same(found, fisher(run_of(model), rows(), mode="one_pass"), 1e-10)


def test_the_tasks_own_weights_can_be_left_out() -> None:
    model = multi_task(sharing=SHARING)
    every = fisher(run_of(model), rows())
    shared = fisher(run_of(model), rows(), own=False)
    assert_same(shared, {name: f for name, f in every.items() if ".own:" not in name}, 1e-10)
    assert len(shared) < len(every)


def test_a_row_counts_nothing_for_weights_that_it_does_not_use() -> None:
    model = multi_task(sharing=SHARING)
    chosen = [row for row in rows() if row.task == "task0"]
    found = fisher(run_of(model), chosen)
    assert not any(value.any() for name, value in found.items() if "own:task1" in name)


def test_neither_dropout_nor_what_was_there_before_changes_it() -> None:
    model = multi_task(sharing=SHARING, lora_dropout=0.5)
    model.train()
    expected = by_hand(multi_task(sharing=SHARING), rows())
    parameter = next(p for _, p in model.trainable_parameters())
    parameter.grad = torch.ones_like(parameter)
    assert_same(fisher(run_of(model), rows()), expected, 1e-10)
    assert model.training
    assert model.routing.sink is None
    assert torch.equal(parameter.grad, torch.ones_like(parameter))


def every_family(pooling: str) -> MultiTaskModel:
    """LoRA, bottlenecks, and a head for task1; task0 and task2 are answered by the model."""
    lora = LoraRecipe.model_validate({"r": 4, "lora_alpha": 8})
    bottleneck = BottleneckRecipe(shared=3, own=2, non_linearity="tanh", scaling=0.5)
    names = ["task0", "task1", "task2"]
    layout = Layout.build(names, lora, SHARING, bottleneck=bottleneck, heads=["task1"])
    facts: list[TaskFacts] = [TaskFacts() for _ in names]
    facts[1] = TaskFacts(head=pooling, options=("a", "b", "c"))  # type: ignore[arg-type]
    model = MultiTaskModel(backbone(), layout, lora, bottleneck=bottleneck, tasks=facts)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, weight in model.trainable_parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=draw, dtype=weight.dtype)
    return model


def head_rows() -> list[Example]:
    found = []
    for row in rows():
        if row.task == "task1":
            ids = row.input_ids
            row = replace(
                row, labels=(-100,) * len(ids), prompt_length=len(ids), label=row.row % 3,
                options=("a", "b", "c"), head=True,
            )  # fmt: skip
        found.append(row)
    return found


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_bottlenecks_biases_and_heads_are_measured_too(pooling: str, flat: bool) -> None:
    model, chosen = every_family(pooling), head_rows()
    if flat:
        assert model.try_flat()
    weights = dict(model.trainable_parameters())
    expected = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for row in chosen:
        loss = model(batch_of([row], 3, flat=False)).token_losses.sum()
        grads = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        for name, grad in zip(weights, grads, strict=True):
            expected[name] += 0 if grad is None else grad.square() / len(chosen)
    families = {name.rpartition(".")[0].rpartition(".")[2] for name in expected}
    assert {"weight", "bias", "lora_A", "bottleneck_up_bias"} <= families
    assert all(bool(value.any()) for value in expected.values())
    assert_same(fisher(run_of(model), chosen, mode="one_pass"), expected, 1e-10)


def test_labels_of_a_head_are_sampled_from_it() -> None:
    """The exact expectation over the three options of a bias: p - p², for each."""
    model = every_family("last")
    [row] = [row for row in head_rows() if row.task == "task1"][:1]
    shares = model(batch_of([row], 3, flat=False)).head_logits[0][0].softmax(-1)
    run = run_of(model, rows_per_step=64)
    found = fisher(run, [row] * 1000, labels="sampled")["head.bias.head:task1"]
    torch.testing.assert_close(found, (shares - shares**2).detach(), rtol=0.1, atol=0.01)


def test_a_trained_weight_without_a_rule_is_done_row_by_row() -> None:
    model = multi_task()
    model.backbone.model.norm.weight.requires_grad_()
    found = fisher(run_of(model), rows())
    assert found["model.norm.weight"].any()
    assert_same(found, by_hand(model, rows()), 1e-10)
    with pytest.raises(UserError, match=r"model\.norm\.weight has no rule"):
        fisher(run_of(model), rows(), mode="one_pass")


@pytest.mark.parametrize("kind", ["shared", "own", "bottleneck"])
def test_a_layer_that_is_used_twice_is_done_row_by_row(kind: str) -> None:
    """The two gradients of a row must be summed before the square.

    Own bottlenecks alone: each is used by the rows of its task, so that none has more gradients
    than the batch has rows.
    """
    recipe = LoraRecipe.model_validate({"r": 4, "lora_alpha": 8})
    network: Any = backbone()
    network.model.layers[1] = network.model.layers[0]
    names = ["task0", "task1", "task2"]
    sharing = None if kind == "shared" else SharingRecipe(shared=0, own=2 * (kind == "own"))
    bottleneck = BottleneckRecipe(own=3) if kind == "bottleneck" else None
    layout = Layout.build(names, recipe, sharing, bottleneck=bottleneck)
    model = MultiTaskModel(network, layout, recipe, bottleneck=bottleneck)
    with torch.no_grad():
        for _, weight in model.trainable_parameters():
            weight += 0.05
    assert_same(fisher(run_of(model), rows()), by_hand(model, rows()), 1e-10)
    with pytest.raises(UserError, match="used several times"):
        fisher(run_of(model), rows(), mode="one_pass")


def test_sampled_labels_estimate_the_expectation_over_the_model() -> None:
    """Two labels a row: the exact expectation is a sum over all pairs, by position."""
    model = multi_task(tasks=1)
    model.try_flat()
    row = examples([4], tasks=[0])
    weights = dict(model.trainable_parameters())
    batch = batch_of(row, 1, flat=False)
    model.routing.enter(batch.rows, None)
    logits = model.backbone(input_ids=batch.input_ids, use_cache=False).logits[0][1:3]
    name = "model.layers.1.mlp.down_proj.lora_B.shared"
    exact = torch.zeros_like(weights[name])
    for position in logits:  # independent draws of mean 0: the square of the sum is their sum
        shares = position.softmax(-1)
        for label in range(VOCABULARY):
            [grad] = torch.autograd.grad(
                -position.log_softmax(-1)[label], [weights[name]], retain_graph=True
            )
            exact += shares[label].detach() * grad.square()
    found = fisher(run_of(model, rows_per_step=64), row * 1500, labels="sampled")[name]
    assert found.sum().item() == pytest.approx(exact.sum().item(), rel=0.1)
    again = fisher(run_of(model, rows_per_step=64), row * 1500, labels="sampled")[name]
    assert torch.equal(found, again)
    other = fisher(run_of(model, step=1), row * 50, labels="sampled")[name]
    assert not torch.equal(other, fisher(run_of(model), row * 50, labels="sampled")[name])


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_labels_are_drawn_row_by_row(pooling: str) -> None:
    """The same ones in every batch, also where rows are left out."""
    model = every_family(pooling)
    model.try_flat()
    runs = [run_of(model, rows_per_step=count) for count in (1, 3, 100)]
    found = [fisher(run, head_rows(), labels="sampled", mode="one_pass") for run in runs]
    found.append(fisher(runs[1], head_rows(), labels="sampled", mode="per_row"))
    assert not torch.equal(
        found[0]["head.bias.head:task1"], fisher(runs[0], head_rows())["head.bias.head:task1"]
    )
    for other in found[1:]:
        assert_same(other, found[0], 1e-10)


def test_half_precision_is_squared_and_summed_in_fp32() -> None:
    model = multi_task(dtype=torch.float32, sharing=SHARING)
    run = run_of(model)
    run.autocast = functools.partial(torch.autocast, "cpu", torch.bfloat16)
    found = fisher(run, rows())
    exact = fisher(run_of(model), rows())
    assert {value.dtype for value in found.values()} == {torch.float32}
    total = sum(float(value.sum()) for value in found.values())
    assert total == pytest.approx(sum(float(value.sum()) for value in exact.values()), rel=0.1)


def test_no_rows_is_an_error() -> None:
    with pytest.raises(UserError, match="at least one row"):
        fisher(run_of(multi_task()), [])


def test_sums_are_over_rows_and_not_means() -> None:
    model = multi_task(sharing=SHARING)
    sums = squared_gradients(model, [batch_of(rows(), 3, flat=False)])
    means = fisher(run_of(model), rows())
    assert_same({name: value / len(LENGTHS) for name, value in sums.items()}, means, 1e-10)
