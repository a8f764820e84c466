"""The rules of per-task gradients, each against T separate passes of ordinary autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from mtlcore.arena import offsets_in, slot_weights
from mtlcore.data.batches import Batch, deal
from mtlcore.data.example import Example
from mtlcore.gradients import Direction, Gradients, Scope
from mtlcore.model.backbone import MultiTaskModel
from mtlcore.model.heads import Pooling
from mtlcore.model.layout import Segment
from mtlcore.ops import Places
from mtlcore.recipe import BottleneckRecipe, SharingRecipe
from tests.models import batch_of, examples, multi_task, with_heads

SHARING = SharingRecipe.model_validate(
    {"shared": 4, "own": 2, "groups": {"pair": {"tasks": ["task0", "task2"], "r": 3}}}
)
LENGTHS = [9, 4, 7, 12, 5, 6, 11, 3, 8, 10, 2, 5, 7, 9, 6, 4]
TASKS = [0, 2, 1, 1, 2, 0, 0, 2, 1, 0, 2, 2, 1, 0, 2, 0]


def rows() -> list[Example]:
    return sorted(examples(LENGTHS, tasks=TASKS), key=lambda example: example.task)


def run_step(
    model: MultiTaskModel,
    batches: Sequence[Batch],
    *,
    mode: str = "one_pass",
    loss_weights: Sequence[float] | None = None,
    folded: Tensor | None = None,
) -> Gradients:
    """One step up to `finish`."""
    gradients = Gradients(model, loss_weights or [1.0] * 3, mode=mode)  # type: ignore[arg-type]
    gradients.start([sum(column) for column in zip(*(b.counts for b in batches), strict=True)])
    for batch in batches:
        gradients.backward(model(batch).loss_sums, folded)
    gradients.finish()
    return gradients


def separate_passes(
    model: MultiTaskModel, batch: Batch, task_count: int = 3
) -> tuple[Tensor, list[list[Tensor]]]:
    """J [T, P] in the arena's order, and each task's gradients of every slot, by autograd."""
    slots = Gradients(model, [1.0] * task_count).arena.slots
    sums = model(batch).loss_sums
    by_task = []
    for task, count in enumerate(batch.counts):
        grads = torch.autograd.grad(
            sums[task] / max(count, 1),
            [slot.parameter for slot in slots],
            retain_graph=True,
            allow_unused=True,
        )
        by_task.append(
            [
                torch.zeros_like(s.parameter) if g is None else g
                for s, g in zip(slots, grads, strict=True)
            ]
        )
    shared = [i for i, slot in enumerate(slots) if slot.owner is None]
    rows = [torch.cat([grads[i].reshape(-1) for i in shared]) for grads in by_task]
    return torch.stack(rows), by_task


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", ["one_pass", "multi_pass"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_rows_equal_separate_backward_passes(name: str, mode: str, dtype: torch.dtype) -> None:
    model = multi_task(name, dtype=dtype, sharing=SHARING)
    model.try_flat()
    batch = batch_of(rows(), 3)
    expected, _ = separate_passes(model, batch)
    found = run_step(model, [batch], mode=mode).rows()
    error = (found - expected).norm() / expected.norm()
    assert error < {torch.float32: 1e-6, torch.float64: 1e-12}[dtype]


@pytest.mark.parametrize("mode", ["one_pass", "multi_pass"])
def test_own_gradients_are_the_tasks_own_times_one_over_the_task_count(mode: str) -> None:
    model = multi_task(sharing=SHARING)
    model.try_flat()
    batch = batch_of(rows(), 3)
    _, by_task = separate_passes(model, batch)
    gradients = run_step(model, [batch], mode=mode)
    gradients.apply(torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64))
    for index, slot in enumerate(gradients.arena.slots):
        if slot.owner is not None:
            assert slot.parameter.grad is not None
            torch.testing.assert_close(slot.parameter.grad, by_task[slot.owner][index] / 3)


def test_a_group_adapter_has_rows_for_its_members_only() -> None:
    model = multi_task(sharing=SHARING)
    model.try_flat()
    gradients = run_step(model, [batch_of(rows(), 3)])
    j = gradients.rows()
    for slot in gradients.arena.slots:
        if "group:pair" in slot.name:
            assert j[1, slot.start : slot.stop].abs().max() == 0
            assert j[0, slot.start : slot.stop].abs().max() > 0


@pytest.mark.parametrize("mode", ["one_pass", "multi_pass"])
@pytest.mark.parametrize("hands", [2, 4, 16])
def test_the_result_does_not_depend_on_how_rows_are_dealt(mode: str, hands: int) -> None:
    model = multi_task(sharing=SHARING)
    model.try_flat()
    whole = run_step(model, [batch_of(rows(), 3)], mode=mode)
    expected, losses, own = whole.rows(), whole.mean_losses(), whole.arena.own.clone()
    parts = run_step(model, [batch_of(hand, 3) for hand in deal(rows(), hands)], mode=mode)
    torch.testing.assert_close(parts.rows(), expected, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(parts.mean_losses(), losses, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(parts.arena.own, own, rtol=1e-11, atol=1e-12)


def test_losses_are_means_over_all_labelled_tokens_not_means_of_means() -> None:
    model = multi_task()
    model.try_flat()
    batches = [batch_of(hand, 3) for hand in deal(rows(), 4)]
    gradients = run_step(model, batches, loss_weights=[1.0, 2.0, 0.5])
    token_losses: dict[int, list[float]] = {0: [], 1: [], 2: []}
    with torch.no_grad():
        for batch in batches:
            values = model(batch).token_losses.tolist()
            for task, value in zip(batch.label_tasks.tolist(), values, strict=True):
                token_losses[task].append(value)
    means = [sum(values) / len(values) for values in token_losses.values()]
    assert gradients.raw_losses() == pytest.approx(dict(enumerate(means)), rel=1e-12)
    weighted = [mean * weight for mean, weight in zip(means, [1.0, 2.0, 0.5], strict=True)]
    assert gradients.mean_losses().tolist() == pytest.approx(weighted, rel=1e-12)


def test_a_loss_weight_scales_the_row_and_the_gramian() -> None:
    model = multi_task()
    model.try_flat()
    batch = batch_of(rows(), 3)
    plain = run_step(model, [batch])
    rows_plain, gramian_plain = plain.rows(), plain.gramian()
    scaled = run_step(model, [batch], loss_weights=[1.0, 2.0, 0.5])
    factors = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(scaled.rows(), rows_plain * factors[:, None])
    torch.testing.assert_close(scaled.gramian(), gramian_plain * factors[:, None] * factors)


@pytest.mark.parametrize("scope", ["model", "layer", "factor"])
def test_the_gramian_is_that_of_the_rows(scope: str) -> None:
    model = multi_task(sharing=SHARING)
    model.try_flat()
    gradients = run_step(model, [batch_of(rows(), 3)])
    j = gradients.rows()
    parts = [j[:, start:stop] for _, start, stop in gradients.arena.scopes(scope)]
    expected = torch.stack([part @ part.t() for part in parts])
    found = gradients.gramian(scope)  # type: ignore[arg-type]
    torch.testing.assert_close(found if scope != "model" else found[None], expected)
    assert gradients.gramian(scope) is found  # type: ignore[arg-type]
    if scope == "layer":
        assert len(expected) == 2
    if scope == "factor":
        assert len(expected) == sum(slot.owner is None for slot in gradients.arena.slots)


@pytest.mark.parametrize("mode", ["one_pass", "multi_pass"])
def test_the_update_is_the_gradient_of_the_weighted_loss(mode: str) -> None:
    model = multi_task()
    model.try_flat()
    batch = batch_of(rows(), 3)
    weights = torch.tensor([0.1, 0.7, 1.5], dtype=torch.float64)
    gradients = run_step(model, [batch], mode=mode)
    gradients.apply(weights)
    found = {name: p.grad.clone() for name, p in model.trainable_parameters()}
    outputs = model(batch)
    counts = torch.tensor(outputs.counts, dtype=torch.float64)
    (outputs.loss_sums / counts * weights).sum().backward()
    for name, parameter in model.trainable_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad - found[name], found[name])


@pytest.mark.parametrize("scope", ["layer", "factor"])
def test_weights_by_scope_act_on_their_own_columns(scope: Scope) -> None:
    """Here of two of three tasks: the third is absent."""
    model = multi_task()
    model.try_flat()
    gradients = run_step(model, [batch_of([row for row in rows() if row.task != "task1"], 3)])
    j, scopes = gradients.rows(), gradients.arena.scopes(scope)
    gradients.gramian(scope)
    weights = torch.rand(len(scopes), 2, dtype=torch.float64)
    gradients.apply(weights)
    for (_, start, stop), w in zip(scopes, weights, strict=True):
        torch.testing.assert_close(gradients.update[start:stop], w @ j[:, start:stop])


def test_a_direction_is_taken_as_it_is() -> None:
    model = multi_task()
    model.try_flat()
    gradients = run_step(model, [batch_of(rows(), 3)])
    vector = torch.randn(gradients.arena.shared_size, dtype=torch.float64)
    gradients.apply(Direction(vector))
    torch.testing.assert_close(gradients.update, vector)


def test_folded_weights_give_the_same_update_without_rows() -> None:
    model = multi_task(sharing=SHARING)
    model.try_flat()
    batches = [batch_of(hand, 3) for hand in deal(rows(), 4)]
    weights = torch.tensor([0.1, 0.7, 1.5], dtype=torch.float64)
    full = run_step(model, batches)
    full.apply(weights)
    expected = {name: p.grad.clone() for name, p in model.trainable_parameters()}
    folded = run_step(model, batches, folded=weights)
    assert folded.arena.rows.shape[0] == 1
    folded.apply(None)
    for name, parameter in model.trainable_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])
    with pytest.raises(RuntimeError, match="needs"):
        folded.gramian()


def test_folded_weights_may_change_from_step_to_step() -> None:
    model = multi_task(sharing=SHARING)
    model.try_flat()
    batch = batch_of(rows(), 3)
    gradients = Gradients(model, [1.0] * 3)
    for weights in ([1.0, 2.0, 3.0], [3.0, 0.0, 1.0], None, [0.0, 0.0, 5.0]):
        folded = None if weights is None else torch.tensor(weights, dtype=torch.float64)
        expected = run_step(model, [batch])
        expected.apply(torch.ones(3) if folded is None else folded)
        gradients.start(batch.counts)
        gradients.backward(model(batch).loss_sums, folded)
        gradients.finish()
        gradients.apply(torch.ones(3) if folded is None else None)
        torch.testing.assert_close(gradients.update, expected.update)
        torch.testing.assert_close(gradients.arena.own, expected.arena.own)


def test_an_absent_task_has_no_row_and_its_own_weights_no_gradient() -> None:
    model = multi_task(sharing=SHARING)
    model.try_flat()
    present = [row for row in rows() if row.task != "task1"]
    gradients = run_step(model, [batch_of(present, 3)])
    assert gradients.present == [0, 2]
    assert gradients.rows().shape[0] == 2
    assert gradients.gramian().shape == (2, 2)
    assert set(gradients.raw_losses()) == {0, 2}
    gradients.apply(torch.tensor([0.5, 0.5], dtype=torch.float64))
    assert all(p.grad is None for p in model.adapter_parameters("own:task1"))
    assert all(p.grad is not None for p in model.adapter_parameters("own:task0"))


def test_an_absent_task_keeps_its_weights_and_optimizer_state() -> None:
    model = multi_task(sharing=SHARING)
    model.try_flat()
    optimizer = torch.optim.AdamW(
        [p for _, p in model.trainable_parameters()], lr=0.1, weight_decay=0.5, fused=True
    )
    run_step(model, [batch_of(rows(), 3)]).apply(torch.ones(3, dtype=torch.float64) / 3)
    optimizer.step()
    own = model.adapter_parameters("own:task1")
    before = [p.detach().clone() for p in own]
    moments = [optimizer.state[p]["exp_avg"].clone() for p in own]
    present = [row for row in rows() if row.task != "task1"]
    run_step(model, [batch_of(present, 3)]).apply(torch.ones(2, dtype=torch.float64) / 2)
    optimizer.step()
    for parameter, weight, moment in zip(own, before, moments, strict=True):
        assert torch.equal(parameter, weight)
        assert torch.equal(optimizer.state[parameter]["exp_avg"], moment)


def test_a_group_none_of_whose_tasks_is_present_gets_no_gradient() -> None:
    model = multi_task(sharing=SHARING)
    model.try_flat()
    only = [row for row in rows() if row.task == "task1"]
    gradients = run_step(model, [batch_of(only, 3)])
    gradients.apply(torch.ones(1, dtype=torch.float64))
    assert all(p.grad is None for p in model.adapter_parameters("group:pair"))
    assert all(p.grad is not None for p in model.adapter_parameters("shared"))


def test_one_task_needs_no_rows() -> None:
    model = multi_task(tasks=1)
    model.try_flat()
    batch = batch_of(examples([5, 8], tasks=[0, 0]), 1)
    outputs = model(batch)
    (outputs.loss_sums / batch.counts[0]).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.trainable_parameters()}
    gradients = Gradients(model, [1.0], mode="one_pass")
    assert not gradients.has_shared
    gradients.start(batch.counts)
    gradients.backward(model(batch).loss_sums)
    gradients.finish()
    assert gradients.arena.rows.numel() == 0
    gradients.apply(None)
    for name, parameter in model.trainable_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(reentrant: bool) -> None:
    model = multi_task(sharing=SHARING)
    model.try_flat()
    batch = batch_of(rows(), 3)
    expected = run_step(model, [batch]).rows()
    model.train()
    model.backbone.activation_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.backbone.enable_input_require_grads()
    torch.testing.assert_close(run_step(model, [batch]).rows(), expected, rtol=1e-12, atol=1e-14)


def test_bf16_autocast_stays_near_fp32_and_adapters_keep_fp32_gradients() -> None:
    model = multi_task(dtype=torch.float32, sharing=SHARING)
    model.try_flat()
    batch = batch_of(rows(), 3)
    expected = run_step(model, [batch]).rows()
    gradients = Gradients(model, [1.0] * 3, mode="one_pass")
    gradients.start(batch.counts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(batch)
    gradients.backward(outputs.loss_sums)
    gradients.finish()
    found = gradients.rows()
    assert found.dtype == torch.float32
    error = (found - expected).norm() / expected.norm()
    assert 1e-6 < error < 5e-2  # measured 1.4e-2; 0 would mean that autocast did nothing


def test_wrong_segments_give_wrong_rows() -> None:
    """The negative control: were segments ignored, this comparison would pass too."""
    model = multi_task()
    model.try_flat()
    batch = batch_of(rows(), 3)
    expected, _ = separate_passes(model, batch)
    first = batch.rows[0].stop
    moved = (Segment(0, 0, first - 1), Segment(1, first - 1, batch.rows[1].stop), batch.rows[2])
    wrong = Batch(**{**vars(batch), "rows": moved})
    found = run_step(model, [wrong]).rows()
    assert (found - expected).norm() / expected.norm() > 1e-2


def test_a_batch_penalty_adds_its_own_gradient_and_leaves_the_rows_alone() -> None:
    model = multi_task(sharing=SHARING)
    model.try_flat()
    batch = batch_of(rows(), 3)
    plain = run_step(model, [batch])
    j = plain.rows()
    weights = torch.ones(3, dtype=torch.float64)
    plain.apply(weights)
    without = {name: p.grad.clone() for name, p in model.trainable_parameters()}
    value = model(batch).token_losses.square().sum()
    params = [p for _, p in model.trainable_parameters()]
    extra = dict(zip(without, torch.autograd.grad(value, params), strict=True))

    for mode in ("one_pass", "multi_pass"):
        gradients = Gradients(model, [1.0] * 3, mode=mode)  # type: ignore[arg-type]
        gradients.start(batch.counts)
        outputs = model(batch)
        gradients.penalty_backward(outputs.token_losses.square().sum())
        gradients.backward(outputs.loss_sums)
        gradients.finish()
        torch.testing.assert_close(gradients.rows(), j)
        gradients.apply(weights)
        for name, parameter in model.trainable_parameters():
            torch.testing.assert_close(parameter.grad, without[name] + extra[name])


def test_clipping_takes_shared_weights_as_one_group_and_each_tasks_own_as_another() -> None:
    model = multi_task(sharing=SHARING)
    model.try_flat()
    gradients = run_step(model, [batch_of(rows(), 3)])
    gradients.apply(torch.ones(3, dtype=torch.float64))
    own = [p for _, p in model.trainable_parameters() if p is not None]
    assert own
    norms = gradients.clip(0.01)
    assert set(norms) == {"shared", "task0", "task1", "task2"}
    assert all(norm > 0.01 for norm in norms.values())
    for task in range(3):
        grads = [p.grad.reshape(-1) for p in model.adapter_parameters(f"own:task{task}")]
        assert torch.cat(grads).norm() == pytest.approx(0.01, rel=1e-3)
    assert gradients.update.norm() == pytest.approx(0.01, rel=1e-3)


def test_weights_of_several_tasks_without_a_segment_rule_are_refused_in_one_pass() -> None:
    from mtlcore.errors import UserError

    model = multi_task()
    model.try_flat()
    model.backbone.model.norm.weight.requires_grad_(True)
    with pytest.raises(UserError, match="multi_pass"):
        Gradients(model, [1.0] * 3, mode="one_pass")
    batch = batch_of(rows(), 3)
    gradients = run_step(model, [batch], mode="auto")
    assert gradients.mode == "multi_pass"
    expected, _ = separate_passes(model, batch)
    torch.testing.assert_close(gradients.rows(), expected)


def test_a_trained_weight_whose_gradient_would_be_a_copy_is_refused() -> None:
    from mtlcore.errors import UserError

    model = multi_task(dtype=torch.float32)
    norm = model.backbone.model.norm
    norm.weight.data = norm.weight.data.bfloat16()
    norm.weight.requires_grad_(True)
    with pytest.raises(UserError, match=r"norm.weight is trained in torch.bfloat16.*float32"):
        Gradients(model, [1.0] * 3)


# -- LoRA, bottlenecks and heads in one batch ---------------------------------------------------

HEADS: dict[int, Pooling] = {0: "last", 2: "mean"}


def mixed_model(name: str = "llama", **changes: Any) -> MultiTaskModel:
    model = multi_task(
        name,
        sharing=SHARING,
        bottleneck=BottleneckRecipe.model_validate(
            {"shared": 3, "own": 2, "non_linearity": "gelu", "scaling": 0.5}
        ),
        heads=HEADS,
        **changes,
    )
    model.try_flat()
    return model


def mixed_rows(*, without: int | None = None) -> list[Example]:
    found = with_heads(rows(), HEADS)
    return [row for row in found if row.task != f"task{without}"]


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("mode", ["one_pass", "multi_pass"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_mixed_adapters_get_what_separate_passes_give(name: str, mode: str, flat: bool) -> None:
    model = mixed_model(name)
    batch = batch_of(mixed_rows(), 3, flat=flat)
    expected, by_task = separate_passes(model, batch)
    gradients = run_step(model, [batch], mode=mode)
    torch.testing.assert_close(gradients.rows(), expected, rtol=1e-10, atol=1e-10)
    gradients.apply(torch.ones(3, dtype=torch.float64) / 3)
    own = {slot.name.rpartition(".")[2] for slot in gradients.arena.slots if slot.owner is not None}
    assert {"head:task0", "head:task2", "bottleneck:own:task1", "own:task1"} <= own
    for index, slot in enumerate(gradients.arena.slots):
        if slot.owner is not None:
            grad = slot.parameter.grad
            mine = by_task[slot.owner][index] / 3
            torch.testing.assert_close(grad, mine, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("change", ["accumulation", "absent", "checkpointing"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_both_modes_agree_on_mixed_adapters(name: str, change: str) -> None:
    found = []
    for mode in ("one_pass", "multi_pass"):
        model = mixed_model(name)
        if change == "checkpointing":
            model.train()
            model.backbone.activation_checkpointing_enable({"use_reentrant": False})
        given = mixed_rows(without=2 if change == "absent" else None)
        hands = deal(given, 4 if change == "accumulation" else 1)
        gradients = run_step(model, [batch_of(hand, 3) for hand in hands], mode=mode)
        gradients.apply(torch.ones(len(gradients.present), dtype=torch.float64) / 3)
        grads = {name: parameter.grad for name, parameter in model.trainable_parameters()}
        found.append((gradients.mean_losses(), grads, gradients.clip(0.0)))
    (losses, grads, norms), (losses2, grads2, norms2) = found
    torch.testing.assert_close(losses, losses2, rtol=1e-12, atol=1e-12)
    assert norms == pytest.approx(norms2, rel=1e-10)
    for key, grad in grads.items():
        torch.testing.assert_close(grad, grads2[key], rtol=1e-9, atol=1e-11)
        assert (grad is None) == (change == "absent" and key.endswith(":task2"))


def test_the_result_of_mixed_adapters_does_not_depend_on_how_rows_are_dealt() -> None:
    model = mixed_model()
    whole = run_step(model, [batch_of(mixed_rows(), 3)])
    expected, own = whole.rows(), whole.arena.own.clone()
    parts = run_step(model, [batch_of(hand, 3) for hand in deal(mixed_rows(), 5)])
    torch.testing.assert_close(parts.rows(), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(parts.arena.own, own, rtol=1e-10, atol=1e-12)


def test_the_gramian_of_layers_counts_a_block_once() -> None:
    model = mixed_model()
    gradients = run_step(model, [batch_of(mixed_rows(), 3)])
    assert [name for name, _, _ in gradients.arena.scopes("layer")] == [
        "model.layers.0",
        "model.layers.1",
    ]
    j = gradients.rows()
    torch.testing.assert_close(gradients.gramian("layer").sum(0), j @ j.t())


def test_folded_weights_leave_own_gradients_of_every_kind_as_they_are() -> None:
    model = mixed_model()
    batches = [batch_of(hand, 3) for hand in deal(mixed_rows(), 3)]
    weights = torch.tensor([0.1, 0.7, 1.5], dtype=torch.float64)
    run_step(model, batches).apply(weights)
    expected = {name: p.grad.clone() for name, p in model.trainable_parameters()}  # type: ignore[union-attr]
    run_step(model, batches, folded=weights).apply(None)
    for name, parameter in model.trainable_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_penalty_on_pooled_states_goes_through_both_modes(checkpointing: bool) -> None:
    """Task 0 and task 1 are pulled together, as alignment penalties do it."""

    def distance(model: MultiTaskModel, batch: Batch) -> tuple[Any, Tensor]:
        outputs = model(batch)
        means = [outputs.pooled[start:stop].mean(0) for _, start, stop in batch.rows]
        return outputs, (means[0] - means[1]).square().sum()

    batch = batch_of(mixed_rows(), 3)
    weights = torch.ones(3, dtype=torch.float64)
    reference = mixed_model(keep_pooled=True)
    run_step(reference, [batch]).apply(weights)
    plain = {name: p.grad.clone() for name, p in reference.trainable_parameters()}  # type: ignore[union-attr]
    parameters = [p for _, p in reference.trainable_parameters()]
    extra = torch.autograd.grad(distance(reference, batch)[1], parameters, allow_unused=True)
    assert sum(grad is not None for grad in extra) > len(extra) / 2
    for mode in ("one_pass", "multi_pass"):
        model = mixed_model(keep_pooled=True).train()
        if checkpointing:
            model.backbone.activation_checkpointing_enable({"use_reentrant": False})
        gradients = Gradients(model, [1.0] * 3, mode=mode)  # type: ignore[arg-type]
        gradients.start(batch.counts)
        outputs, value = distance(model, batch)
        gradients.penalty_backward(value)
        gradients.backward(outputs.loss_sums)
        gradients.finish()
        gradients.apply(weights)
        for (name, parameter), more in zip(model.trainable_parameters(), extra, strict=True):
            expected = plain[name] if more is None else plain[name] + more
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("mode", ["one_pass", "multi_pass"])
def test_independent_models_in_one_run_train_as_each_would_alone(mode: str) -> None:
    """Nothing is shared between the tasks, so their gradients are not divided by T."""
    sharing = SharingRecipe(shared=0, own=3)
    model = multi_task(sharing=sharing, heads={1: "last"})
    model.try_flat()
    given = with_heads(rows(), {1: "last"})
    gradients = run_step(model, [batch_of(given, 3)], mode=mode)
    gradients.apply(None)
    for task in range(3):
        alone = multi_task(sharing=sharing, heads={1: "last"})
        alone.try_flat()
        mine = [row for row in given if row.task == f"task{task}"]
        outputs = alone(batch_of(mine, 3))
        (outputs.loss_sums[task] / outputs.counts[task]).backward()
        expected = dict(alone.trainable_parameters())
        for name, parameter in model.trainable_parameters():
            if name.endswith(f":task{task}"):
                torch.testing.assert_close(parameter.grad, expected[name].grad)


def test_every_row_as_a_segment_gives_the_gradients_of_single_rows() -> None:
    """What a sink of squares (Fisher) relies on: one call per weight and row, biases included."""

    class Squares:
        def __init__(self, parameters: list[Tensor]) -> None:
            sizes = [p.numel() for p in parameters]
            self.memory = torch.zeros(sum(sizes), dtype=parameters[0].dtype)
            parts = zip(parameters, self.memory.split(sizes), strict=True)
            self.found = {id(p): part.view_as(p) for p, part in parts}

        def places(self, layer: Any) -> Places:
            starts = {key: int(part.storage_offset()) for key, part in self.found.items()}
            weights = slot_weights(layer, self.memory.dtype)
            return Places(self.memory, *offsets_in(layer, starts), weights, square=True)

        def add(
            self, layer: Any, adapter: int, factor: int, task: int,
            left: Tensor, right: Tensor | None, scale: float,
        ) -> None:  # fmt: skip
            grad = scale * (left.sum(0) if right is None else left.t() @ right)
            self.found[id(layer.parameter(adapter, factor))] += grad.square()

    model = mixed_model().eval()
    batch = batch_of(mixed_rows(), 3)
    tasks = [task for task, start, stop in batch.rows for _ in range(start, stop)]
    single = tuple(Segment(task, i, i + 1) for i, task in enumerate(tasks))
    parameters: list[Tensor] = [p for _, p in model.trainable_parameters()]
    sink = Squares(parameters)
    model.routing.sink = sink
    model(Batch(**{**vars(batch), "rows": single})).loss_sums.sum().backward()
    model.routing.sink = None
    expected = [torch.zeros_like(p) for p in parameters]
    for row in batch.examples:
        loss = model(batch_of([row], 3)).loss_sums.sum()
        for sum_, grad in zip(
            expected, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True
        ):
            if grad is not None:
                sum_ += grad.square()
    for parameter, value in zip(parameters, expected, strict=True):
        torch.testing.assert_close(sink.found[id(parameter)], value, rtol=1e-10, atol=1e-10)
