"""LoRA layers that read one input run as one: nothing changes but the number of passes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtlcore.arena import Arena
from mtlcore.gradients import Gradients
from mtlcore.model.backbone import MultiTaskModel
from mtlcore.model.layout import Layout, Routing, Segment
from mtlcore.model.lora import MultiTaskLora, finding_packs
from mtlcore.recipe import BottleneckRecipe, LoraRecipe, SharingRecipe
from tests.models import batch_of, examples, multi_task, with_heads

LENGTHS, TASKS = [6, 3, 8, 5, 4], [0, 0, 1, 2, 2]
SHARING = SharingRecipe.model_validate(
    {
        "shared": 4, "own": 2, "own_layers": [1],
        "groups": {"pair": {"tasks": ["task0", "task2"], "r": 3, "layers_to_transform": [0]}},
    }
)  # fmt: skip


def packs_of(model: MultiTaskModel) -> set[tuple[str, ...]]:
    packs = {layer.pack for layer in model.layers.values()}
    return {
        tuple([layer.name.rpartition(".")[2] for layer in pack.layers])
        for pack in packs
        if len(pack.layers) > 1
    }


def unpack(model: MultiTaskModel) -> None:
    for layer in model.layers.values():
        layer.pack = layer.alone
        layer.pack.scatter()


QKV = ("q_proj", "k_proj", "v_proj")


@pytest.mark.parametrize(
    ("name", "targets", "expected"),  # in any order
    [
        ("llama", "all-linear", {QKV, ("gate_proj", "up_proj")}),
        ("opt", "all-linear", {QKV}),
        ("gpt2", "all-linear", set()),
        ("llama", ["q_proj", "v_proj", "up_proj"], {("q_proj", "v_proj")}),
    ],
)
def test_layers_that_read_one_input_are_found(
    name: str, targets: str | list[str], expected: set[tuple[str, ...]]
) -> None:
    model = multi_task(name, target_modules=targets)
    assert packs_of(model) == set()
    model.try_flat()
    assert {frozenset(pack) for pack in packs_of(model)} == set(map(frozenset, expected))


def step(model: MultiTaskModel, heads: dict[int, Any]) -> tuple[Tensor, Tensor, Tensor]:
    gradients = Gradients(model, [1.0] * 3, mode="one_pass")
    batch = batch_of(with_heads(examples(LENGTHS, tasks=TASKS), heads), 3)
    gradients.start(batch.counts)
    outputs = model(batch)
    assert model.routing.kept is None  # all was taken
    gradients.backward(outputs.loss_sums)
    gradients.finish()
    return outputs.token_losses.detach(), gradients.rows(), gradients.arena.own.clone()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sharing": SHARING},
        {"sharing": SHARING, "target_modules": ["k_proj", "q_proj", "down_proj"]},
        {"sharing": SHARING, "frozen": ["task1"]},
        {"sharing": SHARING, "heads": {1: "last"}},
        {"bottleneck": BottleneckRecipe(shared=3, own=2)},
        {"sharing": SHARING, "lora_dropout": 0.3},
    ],
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_losses_keep_their_bits_and_gradients_their_values(
    options: dict[str, Any], checkpointing: bool
) -> None:
    found = []
    for packed in (True, False):
        model = multi_task(**options)
        model.try_flat()
        assert packs_of(model)
        if not packed:
            unpack(model)
        if checkpointing:
            model.backbone.activation_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(3)
        found.append(step(model.train(), options.get("heads", {})))
    assert torch.equal(found[0][0], found[1][0])
    for one, other in zip(found[0][1:], found[1][1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_losses_without_gradients_keep_their_bits() -> None:
    model = multi_task(sharing=SHARING)
    model.try_flat()
    batch = batch_of(examples(LENGTHS, tasks=TASKS), 3)
    with torch.no_grad():
        packed = model(batch).token_losses
        unpack(model)
        assert torch.equal(model(batch).token_losses, packed)


# -- three layers by themselves ------------------------------------------------------------------


class Three:
    """Layers of one pack, the last without own adapters, and a batch."""

    def __init__(self, dropout: float = 0.0) -> None:
        torch.manual_seed(0)
        recipe = LoraRecipe.model_validate({"r": 3, "lora_alpha": 6})
        sharing = SharingRecipe(shared=3, own=2, own_layers=[0, 1])
        layout = Layout.build(["task0", "task1"], recipe, sharing)
        self.routing = Routing(layout, dropout=(dropout,) * 2)
        self.layers = nn.ModuleList(
            [
                MultiTaskLora(nn.Linear(5, out).double(), self.routing, name=f"layers.{i}.x")
                for i, out in enumerate((7, 3, 4))
            ]
        )
        for weight in self.layers.parameters():
            if weight.requires_grad:
                nn.init.normal_(weight)
        self.x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
        self.enter()
        with torch.no_grad(), finding_packs(self.members):
            self.alone = [layer(self.x) for layer in self.members]
        self.arena = Arena(self.members, [], 2)
        self.arena.clear()

    @property
    def members(self) -> list[MultiTaskLora]:
        return [layer for layer in self.layers if isinstance(layer, MultiTaskLora)]

    def enter(self) -> None:
        self.routing.enter([Segment(0, 0, 1), Segment(1, 1, 2)], [2, 4])

    def gradients(self, outputs: list[Tensor | None]) -> tuple[Tensor, ...]:
        """Of the sum of squares of some outputs: that of x, and all of the weights."""
        self.arena.clear()
        loss = torch.stack([y.square().sum() for y in outputs if y is not None]).sum()
        (dx,) = torch.autograd.grad(loss, [self.x])
        return dx, self.arena.rows.clone(), self.arena.own.clone()


def assert_same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def unpacked(three: Three, used: tuple[int, ...]) -> tuple[Tensor, ...]:
    packs = [layer.pack for layer in three.members]
    for layer in three.members:
        layer.pack = layer.alone
    found = three.gradients([three.members[i](three.x) for i in used])
    for layer, pack in zip(three.members, packs, strict=True):
        layer.pack = pack
    return found


@pytest.mark.parametrize("used", [(0, 1, 2), (0,), (0, 2), (1,), (2, 1)])
def test_outputs_that_nobody_uses_take_no_part(used: tuple[int, ...]) -> None:
    three = Three()
    assert all(len(layer.pack.layers) == 3 for layer in three.members)
    three.routing.sink = three.arena
    expected = unpacked(three, used)
    outputs = [three.members[i](three.x) for i in used]
    assert all(torch.equal(y, three.alone[i]) for i, y in zip(used, outputs, strict=True))
    assert_same(three.gradients(outputs), expected)
    three.routing.leave()
    assert three.routing.kept is None


@pytest.mark.parametrize("change", ["another", "in place", "grad mode", "again", "batch", "mode"])
def test_an_output_is_taken_for_the_same_input_only(change: str) -> None:
    three = Three()
    first, second, third = three.members
    with torch.no_grad():
        first(three.x)
        kept = three.routing.kept
        assert kept is not None
        assert set(kept.outputs) == {second, third}
    three.routing.sink = three.arena
    x = three.x
    if change == "another":
        x = three.x + 1
    elif change == "in place":
        with torch.no_grad():
            x += 1
    elif change == "again":
        with torch.no_grad():
            second(x)
        assert set(kept.outputs) == {third}
    elif change == "batch":
        three.routing.enter([Segment(1, 0, 1), Segment(0, 1, 2)], [2, 4])
    elif change == "mode":
        three.layers.eval()
    context = torch.no_grad() if change != "grad mode" else torch.enable_grad()
    with context:
        found = second(x)
        expected = second.alone.run(x.detach(), None, None)[0]
    assert torch.equal(found, expected)
    assert found.requires_grad == (change == "grad mode")
    if change == "batch":
        assert three.routing.kept is None
    else:
        assert (second in kept.outputs) == (change != "again")


def test_in_inference_mode_every_layer_runs_alone() -> None:
    """There a tensor does not tell that it was changed."""
    three = Three()
    first, second, _ = three.members
    with torch.inference_mode():
        x = three.x.detach().clone()
        first(x)
        assert three.routing.kept is None
        x += 1
        assert torch.equal(second(x), second.alone.run(x, None, None)[0])


@pytest.mark.parametrize("adapter", ["shared", "own:task0"])
def test_frozen_adapters_do_not_keep_the_others_from_their_gradients(adapter: str) -> None:
    """Even after a first pass, and where the input wants no gradient."""
    three = Three()
    three.routing.sink = three.arena

    def gradients() -> tuple[Tensor, Tensor]:
        x = three.x.detach()
        three.arena.clear()
        outputs = [layer(x) for layer in three.members]
        torch.stack([y.square().sum() for y in outputs]).sum().backward()
        return three.arena.rows.clone(), three.arena.own.clone()

    expected = gradients()
    assert all(part.any() for part in expected)
    for layer in three.members:
        for factor in (layer.lora_A, layer.lora_B):
            if adapter in factor:
                factor[adapter].requires_grad_(False)
    assert_same(gradients(), expected)


def test_each_layer_has_masks_of_its_own() -> None:
    three = Three(dropout=0.5)
    three.routing.sink = three.arena
    three.routing.enter(three.routing.rows, [2, 4], draw=(0, 1))
    for layer in three.members:
        layer(three.x)
        assert three.routing.kept is None
    three.layers.eval()
    three.members[0](three.x)
    assert three.routing.kept is not None


def test_a_copy_and_a_moved_pack_follow_their_own_weights() -> None:
    three = Three()
    with torch.no_grad():
        for layer in three.members:
            layer(three.x)
        copied = copy.deepcopy(three.layers)
        for name, weight in copied.named_parameters():
            weight.mul_(2 if "lora" in name else 1)
        routing = copied[0].routing
        assert isinstance(routing, Routing)
        routing.enter(three.routing.rows, [2, 4])
        for old, new, before in zip(three.members, copied, three.alone, strict=True):
            assert torch.equal(old(three.x), before)
            expected = new.base(three.x) + 4 * (before - old.base(three.x))
            torch.testing.assert_close(new(three.x), expected)
        three.layers.to(torch.float32).to(torch.float64)
        for layer in three.members:
            for weight in layer.lora_B.values():
                weight.zero_()
        for layer in three.members:
            assert torch.equal(layer(three.x), layer.base(three.x))
