"""Elastic weight consolidation: its formula, its stages, and what a later run gets of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mtlcore.data.example import Example
from mtlcore.errors import UserError
from mtlcore.fisher import fisher
from mtlcore.model.backbone import MultiTaskModel
from mtlcore.recipe import SharingRecipe
from mtlcore_plugins.continual.ewc import EWC
from tests.models import batch_of, examples, multi_task
from tests.test_fisher import run_of

SHARING = SharingRecipe.model_validate({"shared": 4, "own": 2})
TRAIN = {0: [9, 4, 6], 1: [2, 12, 5, 7], 2: [3, 8]}


def train_rows(task: int) -> list[Example]:
    return examples(TRAIN[task], tasks=[task] * len(TRAIN[task]), seed=task)


def staged_run(*stages: list[str], start: object = None) -> Any:
    """A run with a small model whose stages train these tasks; its own stage is set by tests."""
    run = run_of(multi_task(sharing=SHARING))
    for task in run.tasks:
        task.train = train_rows(task.index)
    run.recipe.tasks = dict.fromkeys(task.name for task in run.tasks)
    run.recipe.start = start
    run.recipe.stages = [SimpleNamespace(name=f"s{i}", tasks=s) for i, s in enumerate(stages)]
    run.notes = []
    run.note = run.notes.append
    return run


def weights(run: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in run.model.trainable_parameters()}


def move(model: MultiTaskModel, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in model.trainable_parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype)


def penalty(ewc: EWC, run: Any) -> Tensor:
    [found] = ewc.mtlcore_penalties(run, None, None)
    assert (found.name, found.on, found.value.shape) == ("ewc", "weights", ())
    return found.value


def test_value_and_gradient_are_those_of_the_formula() -> None:
    run = staged_run(["task0", "task1"], ["task2"])
    ewc = EWC(strength=7.0)
    ewc.mtlcore_run_start(run)
    ewc.mtlcore_stage_start(run, "s0")
    before = weights(run)
    importance = [fisher(run, train_rows(task)) for task in (0, 1)]
    ewc.mtlcore_stage_end(run, "s0")
    ewc.mtlcore_stage_start(run, "s1")
    move(run.model, 1)
    value = penalty(ewc, run)
    value.backward()
    expected = 0.0
    for name, parameter in run.model.trainable_parameters():
        f = importance[0][name] + importance[1][name]
        distance = parameter.detach() - before[name]
        expected += 3.5 * float((f * distance**2).sum())
        grad = torch.zeros_like(f) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(grad, 7.0 * f * distance, rtol=1e-10, atol=1e-15)
    assert value.item() == pytest.approx(expected, rel=1e-10)
    assert expected > 0


@pytest.mark.parametrize("decay", [1.0, 0.7, 0.0])
def test_later_stages_decay_what_was_there_and_move_the_anchor(decay: float) -> None:
    run = staged_run(["task0"], ["task1"], ["task2"])
    ewc = EWC(decay=decay)
    ewc.mtlcore_stage_start(run, "s0")
    first = fisher(run, train_rows(0))
    ewc.mtlcore_stage_end(run, "s0")
    ewc.mtlcore_stage_start(run, "s1")
    move(run.model, 1)
    second, at = fisher(run, train_rows(1)), weights(run)
    ewc.mtlcore_stage_end(run, "s1")
    ewc.mtlcore_stage_start(run, "s2")
    for name, (importance, weight) in ewc.held.items():
        torch.testing.assert_close(importance, decay * first[name] + second[name])
        assert torch.equal(weight, at[name])
    assert not any("own:task2" in name for name in ewc.held)


def test_at_batch_size_one_it_is_avalanches_rule_with_half_its_strength() -> None:
    """Avalanche squares the mean gradient of a batch, averages over batches, and has no 1/2.

    avalanche-lib 0.6.0's EWCPlugin (mode="online", decay 0.7, batches of one row) on this model
    gave these importances, penalty and gradient to 2e-7 (relative; it keeps them in fp32).
    """
    run = staged_run(["task1"], ["task2"])
    rows, ewc, avalanche_lambda = train_rows(1), EWC(strength=6.0), 3.0
    parameters = dict(run.model.trainable_parameters())

    def importances(batch_size: int) -> list[Tensor]:
        totals = [torch.zeros_like(parameter) for parameter in parameters.values()]
        starts = range(0, len(rows), batch_size)
        for start in starts:
            batch = batch_of(rows[start : start + batch_size], 3, flat=False)
            loss = run.model(batch).loss_sums.sum() / len(batch.examples)
            grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for total, grad in zip(totals, grads, strict=True):
                total += 0 if grad is None else grad**2 / len(starts)
        return totals

    singles, pairs = importances(1), importances(2)
    before = weights(run)
    ewc.mtlcore_stage_end(run, "s0")
    ewc.mtlcore_stage_start(run, "s1")
    move(run.model, 1)
    distances = [p.detach() - before[name] for name, p in parameters.items()]
    theirs, of_pairs = (
        avalanche_lambda * sum(float((f * d**2).sum()) for f, d in zip(fs, distances, strict=True))
        for fs in (singles, pairs)
    )
    assert penalty(ewc, run).item() == pytest.approx(theirs, rel=1e-10)
    assert of_pairs < 0.9 * theirs, "means of two rows lose what the rows disagree on"


def test_there_is_no_penalty_before_something_was_learned() -> None:
    run = staged_run(["task0"], ["task1"])
    ewc = EWC()
    ewc.mtlcore_run_start(run)
    ewc.mtlcore_stage_start(run, "s0")
    assert ewc.mtlcore_penalties(run, None, None) == []
    ewc.mtlcore_stage_end(run, "s0")
    ewc.mtlcore_stage_start(run, "s1")
    assert penalty(ewc, run).item() == 0.0, "the weights have not moved yet"
    assert ewc.mtlcore_penalties(run, "batch", "outputs") == []


def test_a_stage_that_goes_on_is_not_held_back_by_itself_and_counts_once() -> None:
    run = staged_run(["task0"])
    ewc = EWC()
    ewc.mtlcore_run_start(run)
    assert "holds nothing in a run of one stage" in run.notes[0]
    ewc.mtlcore_stage_start(run, "s0")
    ewc.mtlcore_stage_end(run, "s0")
    assert ewc.mtlcore_penalties(run, None, None) == []
    move(run.model, 1)
    expected = fisher(run, train_rows(0))
    ewc.mtlcore_stage_end(run, "s0")
    for name, (importance, _) in ewc.coming.items():
        torch.testing.assert_close(importance, expected[name])


def test_the_rows_that_are_measured_are_a_seeded_draw() -> None:
    run = staged_run(["task1"], ["task2"])
    draws = []
    for ewc in (EWC(rows=2), EWC(rows=2), EWC(rows=100)):
        ewc.mtlcore_stage_end(run, "s0")
        draws.append(sum(float(f.sum()) for f, _ in ewc.coming.values()))
    assert draws[0] == draws[1] != draws[2]
    assert draws[2] == pytest.approx(
        sum(float(f.sum()) for f in fisher(run, train_rows(1)).values()), rel=1e-10
    )


def test_what_is_held_survives_saving() -> None:
    run = staged_run(["task0"], ["task1"], ["task2"])
    first = EWC(strength=3.0)
    for stage in ("s0", "s1"):
        first.mtlcore_stage_start(run, stage)
        move(run.model, 2)
        first.mtlcore_stage_end(run, stage)
    state = first.state_dict()
    assert state["measured"] == ["task0", "task1"]
    second = EWC(strength=3.0)
    second.load_state_dict(state)
    for ewc in (first, second):
        ewc.mtlcore_stage_start(run, "s2")
    move(run.model, 3)
    assert penalty(first, run).item() == penalty(second, run).item() > 0


def test_a_start_run_without_it_is_measured_at_the_start() -> None:
    run = staged_run(["task2"], start="runs/before")
    ewc = EWC()
    ewc.mtlcore_run_start(run)
    assert "Fisher information of task0, task1; it is measured now" in run.notes[0]
    ewc.mtlcore_stage_start(run, "s0")
    expected = [fisher(run, train_rows(task)) for task in (0, 1)]
    for name, (importance, _) in ewc.held.items():
        torch.testing.assert_close(importance, expected[0][name] + expected[1][name])
    assert any("own:task1" in name for name in ewc.held)


@pytest.mark.parametrize("ended", [False, True])
def test_a_start_run_that_was_stopped_is_measured_where_it_did_not(ended: bool) -> None:
    """It stopped in its second stage, task1, or after it; task2 is new."""
    before = staged_run(["task0"], ["task1"])
    old = EWC(decay=0.5)
    old.mtlcore_stage_end(before, "s0")
    old.mtlcore_stage_start(before, "s1")
    move(before.model, 1)
    if ended:
        old.mtlcore_stage_end(before, "s1")
    run = staged_run(["task2"], start="runs/before")
    move(run.model, 1)
    ewc = EWC(decay=0.5)
    ewc.load_state_dict(old.state_dict())
    ewc.mtlcore_run_start(run)
    assert [note.partition(";")[0] for note in run.notes] == [
        "ewc: the start run kept no Fisher information of task1"
    ] * (not ended)
    ewc.mtlcore_stage_start(run, "s0")
    new = fisher(run, train_rows(1))
    for name, (importance, weight) in ewc.held.items():
        earlier = old.held[name][0] if name in old.held else torch.zeros_like(new[name])
        torch.testing.assert_close(importance, 0.5 * earlier + new[name])
        assert torch.equal(weight, weights(run)[name])
    assert ewc.measured == {"task0", "task1"}
    again = EWC(decay=0.5)  # resumed
    again.load_state_dict(ewc.state_dict())
    again.mtlcore_run_start(run)
    assert not again.coming


def test_a_state_that_does_not_tell_its_tasks_is_refused() -> None:
    """It would be measured again, and count twice."""
    run = staged_run(["task0"])
    old = EWC()
    old.mtlcore_stage_end(run, "s0")
    state = old.state_dict()
    del state["measured"]
    with pytest.raises(UserError, match="saved by an earlier version, without its tasks"):
        EWC().load_state_dict(state)
    EWC().load_state_dict({})


def test_it_says_when_a_start_run_leaves_nothing_to_measure() -> None:
    run = staged_run(start="runs/before")
    ewc = EWC()
    ewc.mtlcore_run_start(run)
    assert "nothing is held at first" in run.notes[0]
    assert not ewc.coming


def test_a_start_run_with_it_is_not_measured_again() -> None:
    before = staged_run(["task0", "task1"])
    old = EWC()
    old.mtlcore_stage_end(before, "s0")
    run = staged_run(["task2"], start="runs/before")
    ewc = EWC()
    ewc.load_state_dict(old.state_dict())
    ewc.mtlcore_run_start(run)
    assert run.notes == []
    ewc.mtlcore_stage_start(run, "s0")
    assert ewc.held.keys() == old.coming.keys()


def test_frozen_weights_take_no_part() -> None:
    run = staged_run(["task0"], ["task1"])
    ewc = EWC()
    ewc.mtlcore_stage_end(run, "s0")
    ewc.mtlcore_stage_start(run, "s1")
    for name, parameter in run.model.trainable_parameters():
        parameter.requires_grad_(name.endswith(".shared"))
    move(run.model, 1)
    penalty(ewc, run).backward()
    for adapter in run.model.layout.adapters:
        for parameter in run.model.adapter_parameters(adapter.name):
            assert (parameter.grad is not None) == (adapter.name == "shared")
    ewc.mtlcore_stage_end(run, "s1")
    assert any("own:task0" in name for name in ewc.coming)


def test_the_report_tells_the_blocks_apart() -> None:
    run = staged_run(["task0"], ["task1"])
    ewc = EWC(strength=12)
    assert ewc.mtlcore_report(run) == []
    ewc.mtlcore_stage_end(run, "s0")
    [section] = ewc.mtlcore_report(run)
    assert "Strength 12, decay 1." in section.text[0]
    assert section.table["block"] == ["model.layers.0", "model.layers.1"]
    for mean, most in zip(section.table["mean F"], section.table["max F"], strict=True):
        assert 0 < mean < most
