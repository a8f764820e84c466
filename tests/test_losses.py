"""The loss of many tokens over a large vocabulary, taken without all of its logits."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mtlcore import losses
from mtlcore.losses import cross_entropy, linear_cross_entropy
from tests.models import VOCABULARY, batch_of, examples, multi_task

D, V = 7, 13
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2}


def problem(
    count: int, dtype: torch.dtype = torch.float64, *, scale: float = 1.0, smoothed: bool = False
) -> tuple[Any, ...]:
    """hidden [L, d], weight [V, d], bias [V], labels [L], smoothing [L] or None."""
    draw = torch.Generator().manual_seed(count)
    hidden, weight, bias = (
        torch.randn(size, generator=draw, dtype=torch.float64).mul_(scale).to(dtype)
        for size in ((count, D), (V, D), (V,))
    )
    labels = torch.randint(V, (count,), generator=draw)
    smoothing = torch.rand(count, generator=draw, dtype=torch.float64) if smoothed else None
    return hidden.requires_grad_(), weight, bias, labels, smoothing


def whole(hidden: Any, weight: Any, bias: Any, labels: Any, smoothing: Any) -> torch.Tensor:
    return cross_entropy(F.linear(hidden, weight, bias), labels, smoothing)


def loss_and_gradient(function: Any, given: tuple[Any, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses [L], and the gradient [L, d] of a sum in which each token has its own weight."""
    found = function(*given)
    upstream = torch.linspace(-1, 2, len(found), dtype=found.dtype)
    return found, torch.autograd.grad(found, given[0], upstream)[0]


@pytest.fixture(params=[1, 4, 1000])
def tokens_in_a_piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    count: int = request.param
    monkeypatch.setitem(losses.PIECE, "cpu", count)
    return count


@pytest.mark.parametrize("smoothed", [False, True])
@pytest.mark.parametrize("count", [0, 1, 4, 23])
def test_pieces_have_the_losses_and_gradients_of_the_whole(
    tokens_in_a_piece: int, count: int, smoothed: bool
) -> None:
    given = problem(count, smoothed=smoothed)
    for found, expected in zip(
        loss_and_gradient(linear_cross_entropy, given), loss_and_gradient(whole, given), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e5])
def test_pieces_hold_at_every_scale_and_dtype(
    tokens_in_a_piece: int, scale: float, dtype: torch.dtype
) -> None:
    given = problem(23, dtype, scale=scale, smoothed=True)
    found, expected = (loss_and_gradient(f, given) for f in (linear_cross_entropy, whole))
    assert found[0].dtype == torch.promote_types(dtype, torch.float32)
    assert found[1].dtype == dtype
    for mine, theirs in zip(found, expected, strict=True):
        size = float(theirs.detach().abs().max())
        torch.testing.assert_close(mine, theirs, rtol=0, atol=TOLERANCES[dtype] * size)


def test_the_gradient_is_that_of_finite_differences(tokens_in_a_piece: int) -> None:
    hidden, *rest = problem(5, smoothed=True)
    assert torch.autograd.gradcheck(lambda x: linear_cross_entropy(x, *rest), hidden)


def test_the_losses_are_those_of_torchs_own_loss_in_chunks(tokens_in_a_piece: int) -> None:
    hidden, weight, bias, labels, _ = problem(23)

    def torchs(hidden: Any) -> torch.Tensor:
        options = torch.nn.LinearCrossEntropyOptions()
        return F.linear_cross_entropy(
            hidden, weight, labels, linear_bias=bias, reduction="none", options=options
        )

    found = loss_and_gradient(linear_cross_entropy, (hidden, weight, bias, labels))
    torch.testing.assert_close(found, loss_and_gradient(torchs, (hidden,)))


def test_autocast_rounds_as_it_does_for_the_whole(tokens_in_a_piece: int) -> None:
    given = problem(23, torch.float32, smoothed=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = (loss_and_gradient(f, given) for f in (linear_cross_entropy, whole))
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=2e-2, atol=2e-2)


class Largest(TorchDispatchMode):
    """Remembers the most numbers that any tensor held."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor):
            self.numbers = max(self.numbers, found.numel())
        return found


def test_no_tensor_has_the_logits_of_more_than_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(losses.PIECE, "cpu", 20)
    given = problem(200, smoothed=True)
    with Largest() as seen:
        loss_and_gradient(linear_cross_entropy, given)
    assert seen.numbers == 200 * D < 200 * V
    with Largest() as seen:
        loss_and_gradient(whole, given)
    assert seen.numbers == 200 * V


LENGTHS, TASKS = [6, 3, 9, 4], [0, 1, 1, 2]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("name", "flat"),
    # not gemma2 padded: the library's fp32 softmax turns its fp64 mask into NaN
    [("gemma2", True), *itertools.product(("llama", "gpt2", "opt"), (True, False))],
)
def test_the_models_losses_are_those_of_its_logits(
    name: str, flat: bool, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = multi_task(name, smoothing=[0.1, 0.0, 0.3]).train(training)
    assert model.try_flat(), model.flat_problem
    batch = batch_of(examples(LENGTHS, tasks=TASKS), 3, flat=flat)
    given: list[tuple[int, ...]] = []
    head = model.backbone.get_output_embeddings()
    forward = head.forward

    def watched(hidden: torch.Tensor) -> torch.Tensor:  # a hook would make the logits whole
        logits: torch.Tensor = forward(hidden)
        given.append(tuple(logits.shape))
        return logits

    monkeypatch.setattr(head, "forward", watched)
    found, expected = model(batch), model(batch, keep_logits=True)
    tokens = sum(batch.counts)
    # Gemma 2 bends its logits after the head, so they are wanted as a whole.
    first = tokens if name == "gemma2" else 0
    assert given == [(1, first, VOCABULARY), (1, tokens, VOCABULARY)]
    assert found.logits is None
    assert expected.logits.shape == (tokens, VOCABULARY)
    torch.testing.assert_close(found.token_losses, expected.token_losses)
    weights = [p for _, p in model.trainable_parameters()]
    mine, theirs = (torch.autograd.grad(o.loss_sums.sum(), weights) for o in (found, expected))
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("trained", ["weight", "bias"])
def test_a_trained_output_head_gets_its_gradient(trained: str) -> None:
    model = multi_task()
    head = model.backbone.get_output_embeddings()
    head.bias = nn.Parameter(torch.zeros_like(head.weight[:, 0]), requires_grad=False)
    parameter = getattr(head, trained).requires_grad_()
    batch = batch_of(examples(LENGTHS, tasks=TASKS), 3)
    model(batch).loss_sums.sum().backward()
    assert parameter.grad is not None
    assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("place", ["before", "after"])
def test_hooks_on_the_output_head_act_on_the_losses(place: str) -> None:
    model = multi_task()
    head = model.backbone.get_output_embeddings()
    batch = batch_of(examples(LENGTHS, tasks=TASKS), 3)
    plain = model(batch).token_losses
    if place == "before":
        handle = head.register_forward_pre_hook(lambda _, args: (args[0] * 0.5,))
    else:
        handle = head.register_forward_hook(lambda _, args, output: output * 0.5)
    hooked = model(batch).token_losses
    torch.testing.assert_close(hooked, model(batch, keep_logits=True).token_losses)
    assert not torch.allclose(hooked, plain)
    handle.remove()
    torch.testing.assert_close(model(batch).token_losses, plain)


@pytest.mark.parametrize("trained", [1, 2])
def test_a_trained_weight_is_refused_instead_of_left_without_a_gradient(trained: int) -> None:
    given = problem(5)
    given[trained].requires_grad_()
    with pytest.raises(ValueError, match=r"no gradient to (weight|bias): "):
        linear_cross_entropy(*given)
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(*given), whole(*given))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_autocast_makes_of_the_pieces_what_it_makes_of_the_whole(dtype: torch.dtype) -> None:
    given = problem(23, dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = linear_cross_entropy(*given), whole(*given)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected)
