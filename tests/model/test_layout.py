"""Which adapters lie where, which are frozen, and the dropout masks of each task."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mtlcore.errors import UserError
from mtlcore.gradients import Gradients
from mtlcore.model.layout import Layout, Routing, Segment
from mtlcore.recipe import BottleneckRecipe, LoraRecipe, SharingRecipe
from tests.models import batch_of, examples, multi_task, with_heads

LENGTHS, TASKS = [9, 4, 7, 12, 5, 6], [0, 2, 1, 1, 2, 0]


def sharing(**changes: Any) -> SharingRecipe:
    group = {"tasks": ["task0", "task2"], "r": 3}
    return SharingRecipe.model_validate(
        {"shared": 4, "own": 2, "groups": {"pair": group}, **changes}
    )


def test_adapters_exist_in_the_blocks_named_for_them_only() -> None:
    group = {"tasks": ["task0", "task2"], "r": 3, "layers_to_transform": [1]}
    model = multi_task(sharing=sharing(shared_layers=[0], groups={"pair": group}))
    for name, layer in model.layers.items():
        names = [adapter.name for adapter in layer.adapters]
        first = {"model.layers.0": "shared", "model.layers.1": "group:pair"}[name[:14]]
        assert names == [first, "own:task0", "own:task1", "own:task2"]


def test_a_layer_without_any_adapter_is_left_alone() -> None:
    model = multi_task(sharing=sharing(own=0, groups={}, shared_layers=[1]))
    assert len(model.layers) == 7
    assert all(name.startswith("model.layers.1.") for name in model.layers)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"shared_layers": [0, 2]}, "sharing.shared_layers: the model has no block 2"),
        ({"own_layers": [-1]}, "sharing.own_layers: the model has no block -1"),
        ({"own_layers": []}, "sharing.own_layers: the list of blocks is empty"),
        (
            {"groups": {"pair": {"tasks": ["task0", "task1"], "r": 1, "layers_to_transform": [7]}}},
            "sharing.groups.pair.layers_to_transform: the model has no block 7",
        ),
    ],
)
def test_a_block_that_the_model_lacks_is_an_error(changes: dict[str, Any], where: str) -> None:
    with pytest.raises(UserError, match=rf"{where}.*\n.*blocks are 0 to 1"):
        multi_task(sharing=sharing(**changes))


def test_an_adapter_whose_blocks_have_no_target_is_an_error() -> None:
    with pytest.raises(UserError, match=r"shared_layers: no layer has the adapter 'shared'"):
        multi_task(sharing=sharing(shared_layers=[0]), target_modules=r".*layers\.1\..*")


def everything(**changes: Any) -> Any:
    return multi_task(
        sharing=sharing(),
        bottleneck=BottleneckRecipe(shared=3, own=2),
        heads={0: "last", 1: "mean"},
        **changes,
    )


@pytest.mark.parametrize("mode", ["one_pass", "multi_pass"])
def test_frozen_adapters_take_part_and_do_not_move(mode: Any) -> None:
    rows = with_heads(examples(LENGTHS, tasks=TASKS), {0: "last", 1: "mean"})
    free, model = everything(), everything(frozen=["task0", "task2"])
    frozen = {adapter.name for adapter in model.layout.adapters if adapter.frozen}
    mine = ("own:task", "bottleneck:own:task")
    assert frozen == {"group:pair", "head:task0"} | {f"{own}{i}" for own in mine for i in (0, 2)}
    trained = {name for name, _ in model.trainable_parameters()}
    assert not any(name.endswith(tuple(frozen)) for name in trained)
    batch = batch_of(rows, 3)
    steps = []
    for each in (free, model):
        gradients = Gradients(each, [1.0] * 3, mode=mode)
        gradients.start(batch.counts)
        gradients.backward(each(batch).loss_sums)
        gradients.finish()
        steps.append(gradients)
    assert torch.equal(steps[0].mean_losses(), steps[1].mean_losses())
    rows_of_shared = [
        step.rows()[:, slot.start : slot.stop]
        for step in steps
        for slot in step.arena.slots
        if slot.name == "model.layers.0.mlp.up_proj.lora_A.shared"
    ]
    torch.testing.assert_close(*rows_of_shared)  # through the frozen ones, dx is the same
    steps[1].apply(torch.ones(3, dtype=torch.float64) / 3)
    before = {name: value.clone() for name, value in model.adapter_state().items()}
    everything_there = [*model.backbone.parameters(), *model.heads.parameters()]
    torch.optim.AdamW(everything_there, lr=0.1, weight_decay=0.5).step()
    torch.optim.AdamW(model.bottlenecks["model.layers.0.mlp.down_proj"].parameters()).step()
    for name, value in model.adapter_state().items():
        if name.endswith(tuple(frozen)):
            assert torch.equal(value, before[name])
    moved = "model.layers.0.mlp.up_proj.lora_A.own:task1"
    assert not torch.equal(model.adapter_state()[moved], before[moved])


def test_the_state_of_one_owner_is_what_belongs_to_it_alone() -> None:
    model = everything()
    names = model.adapter_state(owner=1)
    assert {name.rpartition(".")[2] for name in names} == {
        "own:task1",
        "bottleneck:own:task1",
        "head:task1",
    }
    assert names.keys() < model.adapter_state().keys()


def test_nothing_left_to_train_is_an_error() -> None:
    with pytest.raises(UserError, match=r"start.freeze_own: every adapter is frozen"):
        multi_task(tasks=1, frozen=["task0"])


def routing(*dropout: float) -> Routing:
    names = [f"task{i}" for i in range(len(dropout))]
    return Routing(Layout.build(names, LoraRecipe(), None), dropout=dropout)


def mask_of(
    task: int,
    rows: list[tuple[int, int]],
    *,
    key: int = 0,
    flat: bool = True,
    layer: str = "a",
    starts: list[int] | None = None,
) -> torch.Tensor | None:
    """The mask of one task's tokens in a batch of (task, length) rows."""
    mine = routing(0.5, 0.0, 0.25)
    lengths = [length for _, length in rows]
    width = max(lengths)
    segments = [Segment(t, i, i + 1) for i, (t, _) in enumerate(rows)]
    mine.enter(
        segments,
        lengths if flat else None,
        draw=(0, key),
        true_lengths=None if flat else lengths,
        row_starts=starts,
    )
    mask = mine.keep_mask(layer, torch.empty(sum(lengths) if flat else width * len(rows), 40))
    if mask is None:
        return None
    if flat:
        parts = mask.split(lengths)
    else:
        parts = tuple(row[:length] for row, length in zip(mask.split(width), lengths, strict=True))
    return torch.cat([part for part, (t, _) in zip(parts, rows, strict=True) if t == task])


@pytest.mark.parametrize("flat", [False, True])
def test_the_masks_of_a_task_do_not_depend_on_the_tasks_beside_it(flat: bool) -> None:
    alone = mask_of(2, [(2, 5), (2, 3)])
    mixed = mask_of(2, [(0, 9), (1, 4), (2, 5), (2, 3)], flat=flat)
    assert alone is not None
    assert mixed is not None
    assert torch.equal(alone, mixed)
    assert alone.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert float((alone == 0).double().mean()) == pytest.approx(0.25, abs=0.08)


def test_masks_differ_by_step_layer_task_and_row() -> None:
    rows = [(0, 6), (0, 6), (2, 12)]
    base = mask_of(0, rows)
    assert base is not None
    assert not torch.equal(base, mask_of(0, rows, key=1))  # type: ignore[arg-type]
    assert not torch.equal(base, mask_of(0, rows, layer="b"))  # type: ignore[arg-type]
    assert not torch.equal(base == 0, mask_of(2, rows) == 0)  # type: ignore[operator]
    assert not torch.equal(base[:6], base[6:])


@pytest.mark.parametrize("flat", [False, True])
def test_the_masks_of_a_step_do_not_depend_on_how_it_is_cut_into_batches(flat: bool) -> None:
    """The second and third row of task 2 in a batch of their own, in the other order."""
    whole = mask_of(2, [(0, 9), (2, 5), (2, 3), (2, 4)])
    cut = mask_of(2, [(0, 9), (2, 4), (2, 3)], flat=flat, starts=[0, 8, 5])
    assert whole is not None
    assert cut is not None
    assert torch.equal(cut, torch.cat([whole[8:], whole[5:8]]))


def test_a_batch_of_tasks_without_dropout_draws_nothing() -> None:
    assert mask_of(1, [(1, 5)]) is None
    assert mask_of(1, [(1, 5), (2, 3)]).eq(1).all()  # type: ignore[union-attr]


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_task_trains_alike_alone_and_mixed(flat: bool, checkpointing: bool) -> None:
    """Losses and gradients with dropout, activation checkpointing included."""
    found = []
    for tasks in ([0, 1, 2], [2]):
        model = multi_task(sharing=sharing(), dropout=[0.5, 0.0, 0.3]).train()
        model.try_flat()
        if checkpointing:
            model.backbone.activation_checkpointing_enable({"use_reentrant": False})
        rows = [row for row in examples(LENGTHS, tasks=TASKS) if int(row.task[-1]) in tasks]
        batch = batch_of(rows, 3, flat=flat)
        gradients = Gradients(model, [1.0] * 3, mode="one_pass")
        gradients.start(batch.counts)
        gradients.backward(model(batch, draw=(0, 1)).loss_sums)
        gradients.finish()
        found.append((gradients.mean_losses()[-1], gradients.rows()[-1]))
    tolerance = {} if flat else {"rtol": 1e-5, "atol": 1e-5}  # padding has its own rounding
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, **tolerance)


def test_checkpointing_recomputes_the_same_masks() -> None:
    found = []
    for checkpointing in (False, True):
        model = multi_task(sharing=sharing(), lora_dropout=0.4).train()
        model.try_flat()
        if checkpointing:
            model.backbone.activation_checkpointing_enable({"use_reentrant": False})
        batch = batch_of(examples(LENGTHS, tasks=TASKS), 3)
        gradients = Gradients(model, [1.0] * 3, mode="one_pass")
        gradients.start(batch.counts)
        gradients.backward(model(batch, draw=(0, 1)).loss_sums)
        gradients.finish()
        found.append(gradients.rows())
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-14)
