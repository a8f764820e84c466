"""Bottleneck adapters against a plain restatement, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from mtlcore.arena import Arena
from mtlcore.errors import UserError
from mtlcore.model.bottleneck import ACTIVATIONS, Bottleneck
from mtlcore.model.layout import SHARED_ONLY, Layout, Routing, Segment
from mtlcore.recipe import BottleneckRecipe, LoraRecipe, SharingRecipe
from tests.models import batch_of, examples, multi_task

D = 6
ROWS = [Segment(0, 0, 1), Segment(1, 1, 3)]
LENGTHS = [2, 1, 3]
MODULES = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


def layer_of(act: str = "relu", *, frozen: Sequence[str] = ()) -> Bottleneck:
    recipe = BottleneckRecipe.model_validate({"shared": 4, "own": 3, "scaling": 0.7})
    names = ["task0", "task1"]
    layout = Layout.build(names, LoraRecipe(), None, bottleneck=recipe, frozen_tasks=frozen)
    layer = Bottleneck(D, Routing(layout), non_linearity=act, dtype=torch.float64)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(generator=draw)
    layer.routing.enter(ROWS, LENGTHS)
    return layer


def states() -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(6, D, dtype=torch.float64, generator=draw)


def restated(layer: Bottleneck, name: str, act: str) -> nn.Sequential:
    """One adapter as torch's own modules."""
    down, b = layer.bottleneck_down[name], layer.bottleneck_down_bias[name]
    up, c = layer.bottleneck_up[name], layer.bottleneck_up_bias[name]
    found = nn.Sequential(nn.Linear(D, len(down)), MODULES[act](), nn.Linear(len(down), D)).double()
    with torch.no_grad():
        for parameter, value in zip(found.parameters(), (down, b, up.t(), c), strict=True):
            parameter.copy_(value)
    return found


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("act", sorted(ACTIVATIONS))
def test_it_is_a_plain_sequential_per_adapter_forward_and_backward(
    act: str, captured: bool
) -> None:
    layer = layer_of(act)
    x = states().requires_grad_()
    arena = Arena([layer], [], 2)
    if captured:
        arena.clear()
        layer.routing.sink = arena
    y = layer(x)
    y.square().sum().backward()

    names = ["bottleneck:shared", "bottleneck:own:task0", "bottleneck:own:task1"]
    modules = {name: restated(layer, name, act) for name in names}
    x2 = states().requires_grad_()
    parts = []
    for task, rows in ((0, slice(0, 2)), (1, slice(2, 6))):
        mine = x2[rows]
        for name in ("bottleneck:shared", f"bottleneck:own:task{task}"):
            mine = mine + 0.7 * modules[name](x2[rows])
        parts.append(mine)
    expected = torch.cat(parts)
    expected.square().sum().backward()
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(x.grad, x2.grad)
    for slot in arena.slots:
        name = slot.name.split(".")[-1]
        number = layer.factors.index(slot.name.split(".")[1])
        grad = list(modules[name].parameters())[number].grad
        assert grad is not None
        grad = grad.t() if number == 2 else grad
        if captured:
            memory = arena.rows.sum(0) if slot.owner is None else arena.own
            found = memory[slot.start : slot.stop].view_as(slot.parameter)
            assert slot.parameter.grad is None
        else:
            found = slot.parameter.grad
        torch.testing.assert_close(found, grad)


@pytest.mark.parametrize("act", sorted(ACTIVATIONS))
def test_gradcheck_of_both_ways(act: str) -> None:
    layer = layer_of(act)
    x = states().requires_grad_()
    assert torch.autograd.gradcheck(layer, x)
    arena = Arena([layer], [], 2)
    arena.clear()
    layer.routing.sink = arena
    assert torch.autograd.gradcheck(layer, x)


def test_the_start_is_the_identity_and_does_not_depend_on_other_adapters() -> None:
    names = ["task0", "task1"]
    layers = []
    for own in (0, 3):
        recipe = BottleneckRecipe.model_validate({"shared": 4, "own": own})
        layout = Layout.build(names, LoraRecipe(), None, bottleneck=recipe)
        layer = Bottleneck(
            D, Routing(layout), generator=lambda name: torch.Generator().manual_seed(len(name))
        )
        layer.routing.enter(ROWS, LENGTHS)
        assert torch.equal(layer(states().float()), states().float())
        layers.append(layer)
    first, second = (layer.bottleneck_down["bottleneck:shared"] for layer in layers)
    assert torch.equal(first, second)
    assert first.abs().max() > 0


def test_rows_without_a_task_use_the_shared_one_alone() -> None:
    layer = layer_of("gelu")
    layer.routing.enter([Segment(SHARED_ONLY, 0, 1)], [6])
    with torch.no_grad():
        expected = states() + 0.7 * restated(layer, "bottleneck:shared", "gelu")(states())
        torch.testing.assert_close(layer(states()), expected)
    torch.testing.assert_close(layer(states()), expected)  # in ordinary autograd too


def test_frozen_ones_pass_gradients_on_and_keep_none() -> None:
    layer = layer_of(frozen=["task0"])
    x = states().requires_grad_()
    layer(x).square().sum().backward()
    expected = x.grad
    assert layer.bottleneck_up["bottleneck:own:task0"].grad is None
    arena = Arena([layer], [], 2)
    assert not any("task0" in slot.name for slot in arena.slots)
    arena.clear()
    layer.routing.sink, x.grad = arena, None
    layer(x).square().sum().backward()
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("llama", "mlp.down_proj"),
        ("gpt2", "mlp.c_proj"),
        ("opt", "fc2"),
        ("bloom", "dense_4h_to_h"),
    ],
)
def test_last_linear_is_the_last_linear_layer_of_each_block(name: str, last: str) -> None:
    model = multi_task(name, bottleneck=BottleneckRecipe(shared=2))
    assert len(model.bottlenecks) == 2
    assert all(path.endswith(last) for path in model.bottlenecks)


def test_target_modules_are_chosen_as_for_lora() -> None:
    model = multi_task(bottleneck=BottleneckRecipe(shared=2, target_modules=["o_proj"]))
    assert [path.rpartition(".")[2] for path in model.bottlenecks] == ["o_proj"] * 2
    with pytest.raises(UserError, match=r"bottleneck.target_modules: .*'o_prj'.*\n.*'o_proj'"):
        multi_task(bottleneck=BottleneckRecipe(shared=2, target_modules=["o_prj"]))
    with pytest.raises(UserError, match=r"bottleneck.target_modules: .*regular expression"):
        multi_task(bottleneck=BottleneckRecipe(shared=2, target_modules="o_proj["))


def test_without_a_width_is_an_error() -> None:
    with pytest.raises(UserError, match=r"bottleneck: .*no width"):
        multi_task(bottleneck=BottleneckRecipe())


def test_bottlenecks_need_no_lora() -> None:
    sharing = SharingRecipe(shared=0, own=0)
    model = multi_task(sharing=sharing, bottleneck=BottleneckRecipe(shared=2))
    assert not model.layers
    assert {name for name, _ in model.trainable_parameters()} == model.adapter_state().keys()
    model(batch_of(examples([5, 4], tasks=[0, 1]), 3)).loss_sums.sum().backward()
    assert all(parameter.grad is not None for _, parameter in model.trainable_parameters())


def test_autocast_keeps_the_weights_in_fp32() -> None:
    model = multi_task(dtype=torch.float32, bottleneck=BottleneckRecipe(shared=2, own=2))
    batch = batch_of(examples([5, 4], tasks=[0, 1]), 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(batch).loss_sums
    torch.testing.assert_close(rough, model(batch).loss_sums, rtol=5e-2, atol=0.5)
    assert {parameter.dtype for _, parameter in model.trainable_parameters()} == {torch.float32}
