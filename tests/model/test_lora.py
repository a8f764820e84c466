"""The rank-space LoRA layer against PEFT's, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from mtlcore.arena import Arena
from mtlcore.errors import UserError
from mtlcore.gradients import Gradients
from mtlcore.model.layout import SHARED_ONLY, Layout, Routing, Segment
from mtlcore.model.lora import MultiTaskLora, _LoraLinears
from mtlcore.ops import Dropout, Slots
from mtlcore.recipe import LoraRecipe, SharingRecipe
from tests.models import backbone, batch_of, examples, multi_task

LENGTHS, TASKS = [6, 3, 8, 5], [0, 0, 1, 2]


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2", "opt"])
def test_one_shared_adapter_is_peft_lora(name: str, rslora: bool) -> None:
    """Forward, gradients of A and B, and of the input embeddings, to 1e-10."""
    ours = multi_task(name, use_rslora=rslora)
    ours.try_flat()
    theirs = get_peft_model(
        backbone(name),
        LoraConfig(
            r=4, lora_alpha=8, target_modules="all-linear", use_rslora=rslora,
            fan_in_fan_out=name == "gpt2", task_type="CAUSAL_LM",
        ),
        autocast_adapter_dtype=False,
    )  # fmt: skip
    peft_layers = {
        n.removeprefix("base_model.model."): m
        for n, m in theirs.named_modules()
        if hasattr(m, "lora_A") and len(m.lora_A)
    }
    assert peft_layers.keys() == ours.layers.keys()
    with torch.no_grad():
        for path, layer in ours.layers.items():
            peft_layers[path].lora_A["default"].weight.copy_(layer.lora_A["shared"])
            peft_layers[path].lora_B["default"].weight.copy_(layer.lora_B["shared"].t())

    rows = examples(LENGTHS, tasks=TASKS)
    batch = batch_of(rows, 3)
    gradients = Gradients(ours, [1.0] * 3, mode="one_pass")
    gradients.start([1, 1, 1])  # sums, not means
    ours.backbone.get_input_embeddings().register_forward_hook(
        lambda _, __, output: output.requires_grad_(True)
    )
    seen: list[Tensor] = []
    ours.backbone.get_input_embeddings().register_forward_hook(
        lambda _, __, output: (output.retain_grad(), seen.append(output))[0]
    )
    outputs = ours(batch)
    gradients.backward(outputs.loss_sums)
    gradients.finish()
    gradients.apply(torch.ones(3, dtype=torch.float64))

    inputs, loss = [], torch.zeros((), dtype=torch.float64)
    for row in rows:
        ids = torch.tensor([row.input_ids])
        embedded = theirs.get_input_embeddings()(ids).detach().requires_grad_(True)
        inputs.append(embedded)
        logits = theirs(inputs_embeds=embedded, use_cache=False).logits
        labels = torch.tensor([row.labels])
        loss = loss + nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], reduction="sum")
    loss.backward()

    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(outputs.loss_sums.sum(), loss, **close)
    for path, layer in ours.layers.items():
        down, up = peft_layers[path].lora_A["default"], peft_layers[path].lora_B["default"]
        torch.testing.assert_close(layer.lora_A["shared"].grad, down.weight.grad, **close)
        torch.testing.assert_close(layer.lora_B["shared"].grad, up.weight.grad.t(), **close)
    assert seen[0].grad is not None
    expected = torch.cat([embedded.grad[0] for embedded in inputs])
    torch.testing.assert_close(seen[0].grad[0], expected, **close)


def layer_of(
    adapters: SharingRecipe | None = None, *, tasks: int = 2, dropout: float = 0.0
) -> MultiTaskLora:
    torch.manual_seed(0)
    recipe = LoraRecipe.model_validate({"r": 3, "lora_alpha": 6})
    layout = Layout.build([f"task{i}" for i in range(tasks)], recipe, adapters)
    routing = Routing(layout, dropout=(dropout,) * tasks)
    layer = MultiTaskLora(nn.Linear(5, 7).double(), routing)
    with torch.no_grad():
        for up in layer.lora_B.values():
            up.normal_()
    return layer


SHARED_AND_OWN = SharingRecipe.model_validate({"shared": 3, "own": 2})


def test_each_task_gets_the_shared_adapter_and_its_own_only() -> None:
    layer = layer_of(SHARED_AND_OWN)
    x = torch.randn(6, 5, dtype=torch.float64)
    layer.routing.enter([Segment(0, 0, 1), Segment(1, 1, 3)], [2, 1, 3])
    with torch.no_grad():
        found = layer(x)
        for task, rows in ((0, slice(0, 2)), (1, slice(2, 6))):
            expected = layer.base(x[rows])
            for adapter in ("shared", f"own:task{task}"):
                expected = (
                    expected + 2 * x[rows] @ layer.lora_A[adapter].t() @ layer.lora_B[adapter]
                )
            torch.testing.assert_close(found[rows], expected)


def test_rows_without_a_task_use_the_shared_adapter_alone() -> None:
    layer = layer_of(SHARED_AND_OWN)
    x = torch.randn(1, 4, 5, dtype=torch.float64)
    layer.routing.enter([Segment(SHARED_ONLY, 0, 1)], None)
    with torch.no_grad():
        expected = layer.base(x) + 2 * x @ layer.lora_A["shared"].t() @ layer.lora_B["shared"]
        torch.testing.assert_close(layer(x), expected)


def test_ordinary_autograd_and_the_segment_path_agree_in_the_forward() -> None:
    layer = layer_of(SHARED_AND_OWN)
    x = torch.randn(6, 5, dtype=torch.float64)
    layer.routing.enter([Segment(0, 0, 1), Segment(1, 1, 3)], [2, 1, 3])
    dense = layer(x)
    with torch.no_grad():
        torch.testing.assert_close(dense, layer(x))
    assert torch.autograd.gradcheck(lambda value: layer(value), x.requires_grad_(True))


def test_parameters_are_views_of_one_buffer_also_after_a_move() -> None:
    layer = layer_of(SHARED_AND_OWN)
    for moved in (layer, layer.to(torch.float32), copy.deepcopy(layer).to(torch.float64)):
        moved.pack.gather()  # as the first use does
        for factor in (moved.lora_A, moved.lora_B):
            parts = list(factor.values())
            storages = {part.untyped_storage().data_ptr() for part in parts}
            assert len(storages) == 1
            ends = [p.storage_offset() + p.numel() for p in parts]
            assert [p.storage_offset() for p in parts][1:] == ends[:-1]


def test_dropout_is_on_the_adapters_only_and_its_gradient_matches_the_mask() -> None:
    layer = layer_of(dropout=0.5, tasks=2)
    layer.routing.enter([Segment(0, 0, 1), Segment(1, 1, 2)], [40, 60])
    x = torch.randn(100, 5, dtype=torch.float64, requires_grad=True)
    results = []
    for sink in (None, Arena([layer], [], 2)):
        layer.routing.sink = sink
        if sink is not None:
            sink.clear()
        torch.manual_seed(3)
        x.grad = None
        layer.zero_grad()
        y = layer(x)
        y.square().sum().backward()
        grads = (
            sink.rows.sum(0) if sink is not None
            else torch.cat([layer.lora_A["shared"].grad.reshape(-1),
                            layer.lora_B["shared"].grad.reshape(-1)])
        )  # fmt: skip
        results.append((y.detach().clone(), x.grad.clone(), grads.clone()))
    for plain, captured in zip(*results, strict=True):
        torch.testing.assert_close(plain, captured)
    layer.eval()
    with torch.no_grad():
        assert not torch.allclose(layer(x), results[0][0])


EVERY_KIND = SharingRecipe.model_validate(
    {"shared": 3, "own": 2, "groups": {"pair": {"tasks": ["task0", "task2"], "r": 1}}}
)
ROWS = [Segment(0, 0, 1), Segment(2, 1, 3), Segment(1, 3, 4)], [2, 1, 3, 2]


def captured(dropout: float) -> tuple[MultiTaskLora, Arena, Tensor, Tensor]:
    """A layer of three tasks with adapters of every kind, its sink; an input, a gradient of y."""
    layer = layer_of(EVERY_KIND, tasks=3, dropout=dropout)
    layer.routing.enter(*ROWS, draw=(5,))
    layer.routing.sink = sink = Arena([layer], [], 3)
    sink.clear()
    x = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    return layer, sink, x, torch.randn(8, 7, dtype=torch.float64)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_input_gets_the_gradient_of_finite_differences(dropout: float) -> None:
    layer, sink, x, _ = captured(dropout)
    assert torch.autograd.gradcheck(layer, x)
    assert sink.rows.any()  # so it was not ordinary autograd


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_every_adapter_gets_the_gradients_of_autograd_task_by_task(dropout: float) -> None:
    layer, sink, x, dy = captured(dropout)
    layer(x).backward(dy)
    found_dx, x.grad = x.grad, None
    layer.routing.sink = None
    y = layer(x)
    slots = sink.slots
    assert {slot.owner for slot in slots} == {None, 0, 1, 2}
    for task, start, stop in layer.routing.segments(len(x)):
        tokens = slice(start, stop)
        grads = torch.autograd.grad(
            y[tokens], [x, *(slot.parameter for slot in slots)], dy[tokens],
            retain_graph=True, materialize_grads=True,
        )  # fmt: skip
        torch.testing.assert_close(found_dx[tokens], grads[0][tokens])
        for slot, grad in zip(slots, grads[1:], strict=True):
            memory = sink.rows[task] if slot.owner is None else sink.own
            if slot.owner in (None, task):
                torch.testing.assert_close(memory[slot.start : slot.stop], grad.reshape(-1))
            else:
                assert not grad.any()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of what torch itself does
@pytest.mark.parametrize(
    "compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_function_compiles_into_one_graph_that_is_given_the_rows(
    dropout: float, compiler: str
) -> None:
    layer, sink, x, dy = captured(dropout)
    torch.compiler.reset()  # what one test compiled may serve the next
    graphs = CompileCounterWithBackend(compiler)

    @torch.compile(fullgraph=True, backend=graphs)
    def compiled(x: Tensor, slots: Slots, masks: Dropout | None) -> Tensor:
        pack = layer.alone
        [y] = _LoraLinears.apply(x, pack, slots, masks, pack.trained, *layer.base_weights(None))
        return y

    def step(
        folded: list[float] | None, run: Callable[..., Tensor], *batch: object
    ) -> list[Tensor]:
        layer.routing.sink.clear(folded)
        x.grad = None
        y = run(x, *batch)
        y.backward(dy)
        return [y.detach(), x.grad, layer.routing.sink.memory.clone()]

    others = [Segment(1, 0, 2), Segment(0, 2, 3), Segment(2, 3, 4)], ROWS[1]
    another = Arena([layer], [], 3)
    for rows, memory, folded, count in (
        (ROWS, sink, None, 1),
        (others, sink, None, 1),
        (ROWS, another, None, 1),
        (ROWS, sink, [0.5, 0.2, 0.3], 2),  # a memory of another size
    ):
        layer.routing.enter(*rows, draw=(rows,))
        layer.routing.sink = memory
        expected = step(folded, layer)
        slots = layer.routing.slots(layer.places, x, x.dtype)
        masks = layer.routing.dropout_of(layer.number, x)
        found = step(folded, compiled, slots, masks)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)
        assert graphs.frame_count == count


def test_the_start_does_not_depend_on_the_other_adapters() -> None:
    from mtlcore.model.backbone import MultiTaskModel

    recipe = LoraRecipe.model_validate({"r": 4, "lora_alpha": 8})
    names = ["task0", "task1"]
    alone = MultiTaskModel(backbone(), Layout.build(names, recipe, None), recipe, seed=5)
    sharing = SharingRecipe.model_validate({"shared": 4, "own": 2})
    both = MultiTaskModel(backbone(), Layout.build(names, recipe, sharing), recipe, seed=5)
    for path, layer in alone.layers.items():
        assert torch.equal(layer.lora_A["shared"], both.layers[path].lora_A["shared"])
        assert layer.lora_B["shared"].abs().max() == 0


@pytest.mark.parametrize(
    ("target", "count"),
    [("all-linear", 14), (["q_proj", "v_proj"], 4), (r".*layers\.0\..*_proj", 7)],
)
def test_target_modules_are_chosen_as_in_peft(target: str | list[str], count: int) -> None:
    model = multi_task(target_modules=target)
    assert len(model.layers) == count
    peft = get_peft_model(backbone(), LoraConfig(target_modules=target, task_type="CAUSAL_LM"))
    names = {
        n.removeprefix("base_model.model.")
        for n, m in peft.named_modules()
        if hasattr(m, "lora_A") and len(m.lora_A)
    }
    assert names == set(model.layers)


def test_a_missing_target_names_the_nearest_layer() -> None:
    with pytest.raises(UserError, match=r"q_prj.*\n.*did you mean 'q_proj'"):
        multi_task(target_modules=["q_prj"])
    with pytest.raises(UserError, match="linear layers are"):
        multi_task(target_modules="nothing.*")


def test_stale_segments_are_an_error() -> None:
    layer = layer_of()
    layer.routing.enter([Segment(0, 0, 2)], [3, 4])
    with pytest.raises(RuntimeError, match="7 tokens, a layer was given 6"):
        layer(torch.randn(6, 5, dtype=torch.float64))
    layer.routing.leave()
    with pytest.raises(RuntimeError, match="no batch was announced"):
        layer(torch.randn(6, 5, dtype=torch.float64))


def test_a_broken_regular_expression_is_named() -> None:
    with pytest.raises(UserError, match="not a regular expression"):
        multi_task(target_modules="q_proj[")
