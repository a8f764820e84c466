"""The pull towards the start values."""

from types import SimpleNamespace

import pytest
import torch

from mtlcore.errors import MtlcoreError
from mtlcore.testing import plugin_manager, stand_in_run
from mtlcore_plugins.regularization.l2_anchor import L2Anchor


def make(dtype=torch.float64):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2, dtype=dtype)
    view = SimpleNamespace(trainable_parameters=lambda: list(model.named_parameters()))
    return model, stand_in_run({"a": 5}, model=view)


def move(model, by=0.5):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += by


def penalty(anchor, run):
    [found] = anchor.mtlcore_penalties(run, None, None)
    assert (found.name, found.on, found.value.shape) == ("l2_anchor", "weights", ())
    return found.value


def test_nothing_is_taken_at_the_start():
    _, run = make()
    anchor = L2Anchor()
    anchor.mtlcore_run_start(run)
    assert penalty(anchor, run).item() == 0.0


def test_value_and_gradient_are_those_of_the_formula():
    model, run = make()
    anchor = L2Anchor(strength=3.0)
    anchor.mtlcore_run_start(run)
    start = [parameter.detach().clone() for parameter in model.parameters()]
    move(model)
    value = penalty(anchor, run)
    assert value.item() == pytest.approx(3.0 / 2 * 8 * 0.25)
    value.backward()
    for parameter, before in zip(model.parameters(), start, strict=True):
        torch.testing.assert_close(parameter.grad, 3.0 * (parameter.detach() - before))


def test_it_answers_once_per_step_and_not_per_batch():
    _, run = make()
    anchor = L2Anchor()
    anchor.mtlcore_run_start(run)
    hook = plugin_manager(anchor).hook.mtlcore_penalties
    assert hook(run=run, batch="batch", outputs="outputs") == [[]]
    assert len(hook(run=run, batch=None, outputs=None)[0]) == 1


@pytest.mark.parametrize("loads_first", [True, False])
def test_a_resumed_run_keeps_the_first_start_values(loads_first):
    model, run = make()
    first = L2Anchor()
    first.mtlcore_run_start(run)
    move(model)
    second = L2Anchor()
    if loads_first:
        second.load_state_dict(first.state_dict())
    second.mtlcore_run_start(run)
    if not loads_first:
        second.load_state_dict(first.state_dict())
    assert penalty(second, run).item() == penalty(first, run).item() > 0


def test_bf16_weights_are_summed_in_fp32():
    model, run = make(torch.bfloat16)
    anchor = L2Anchor(strength=1.0)
    anchor.mtlcore_run_start(run)
    move(model)
    value = penalty(anchor, run)
    assert value.dtype == torch.float32
    value.backward()
    assert model.weight.grad.dtype == torch.bfloat16


def test_weights_that_were_not_there_at_the_start_are_an_error():
    model, run = make()
    anchor = L2Anchor()
    anchor.mtlcore_run_start(run)
    model.extra = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(MtlcoreError, match="no start value of the weight extra"):
        penalty(anchor, run)
