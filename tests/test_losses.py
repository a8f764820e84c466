"""A model's losses are those of its logits, whether these are made in pieces or as a whole."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM

import mtlcore
from tests.models import VOCABULARY, batch_of, examples, multi_task

LENGTHS, TASKS = [6, 3, 9, 4], [0, 1, 1, 2]
ARCHITECTURES = ("llama", "gpt2", "opt", "cohere", "granite")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("name", "flat"),
    # not gemma2 padded: the library's fp32 softmax turns its fp64 mask into NaN
    [("gemma2", True), *itertools.product(ARCHITECTURES, (True, False))],
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
    assert given == [(1, 0, VOCABULARY), (1, tokens, VOCABULARY)]
    assert found.logits is None
    assert expected.logits.shape == (tokens, VOCABULARY)
    torch.testing.assert_close(found.token_losses, expected.token_losses)
    weights = [p for _, p in model.trainable_parameters()]
    mine, theirs = (torch.autograd.grad(o.loss_sums.sum(), weights) for o in (found, expected))
    torch.testing.assert_close(mine, theirs)


def test_logits_of_an_unknown_form_are_made_whole_and_the_reason_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = LlamaForCausalLM.forward

    def squared(self: LlamaForCausalLM, **given: Any) -> Any:
        output = plain(self, **given)
        output.logits = output.logits**2 / 50
        return output

    batch = batch_of(examples(LENGTHS, tasks=TASKS), 3)
    known = multi_task("llama")
    assert known.whole_logits_problem is None
    monkeypatch.setattr(LlamaForCausalLM, "forward", squared)
    model = multi_task("llama")
    assert model.whole_logits_problem == (
        "the logits are not the output head's product times a factor, capped or not"
    )
    found, expected = model(batch), model(batch, keep_logits=True)
    assert torch.equal(found.token_losses, expected.token_losses)
    losses = F.cross_entropy(expected.logits, batch.labels, reduction="none")
    torch.testing.assert_close(found.token_losses, losses)


def test_a_run_tells_that_logits_are_made_whole(
    tiny_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = "token losses are taken from whole logits, which needs more memory: no reason"
    assert told not in mtlcore.train(tiny_recipe("training.max_steps=1")).notes
    monkeypatch.setattr("mtlcore.model.backbone.head_form", lambda backbone: "no reason")
    assert told in mtlcore.train(tiny_recipe("training.max_steps=1")).notes


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
