"""The factor and the cap of a model's logits are measured; what is neither is told."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlcore.model.output_head import HeadForm, head_form
from tests.models import backbone

V, D = 50, 4
UNKNOWN = "the logits are not the output head's product times a factor, capped or not"


class Model(nn.Module):
    """Two tokens, an output head, and what a model makes of its product."""

    def __init__(self, after: Callable[[Tensor], Tensor], head: nn.Module | None = None) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, D)
        self.head = nn.Linear(D, V) if head is None else head
        self.after = after

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
        assert not use_cache
        return SimpleNamespace(logits=self.after(self.head(self.embedding(input_ids))))


def form(after: Callable[[Tensor], Tensor], head: nn.Module | None = None) -> HeadForm | str:
    model: Any = Model(after, head)
    found = head_form(model)
    assert not model.head._forward_hooks, "the hook is left"
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", HeadForm()),
        ("gpt2", HeadForm()),
        ("cohere", HeadForm(0.0625)),
        ("granite", HeadForm(1 / 3)),
        ("gemma2", HeadForm(1.0, 5.0)),
    ],
)
def test_the_form_of_an_architecture_is_found(
    name: str, expected: HeadForm, dtype: torch.dtype
) -> None:
    found = head_form(backbone(name, dtype))
    assert isinstance(found, HeadForm)
    assert found.scale == pytest.approx(expected.scale, rel=1e-11)
    assert found.softcap == expected.softcap


@pytest.mark.parametrize("scale", [1.0, 0.0195, 7.0, 1000.0])
@pytest.mark.parametrize("cap", [None, 0.5, 30.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_factor_and_cap_are_found_together(
    scale: float, cap: float | None, dtype: torch.dtype
) -> None:
    found = form(lambda product: HeadForm(scale, cap)(product.to(dtype)))
    assert isinstance(found, HeadForm)
    precise = 1e-11 if dtype == torch.float64 else 1e-6
    assert found.scale == pytest.approx(scale, rel=precise)
    assert found.softcap == (None if cap is None else pytest.approx(cap, rel=1e-6))


def masked(product: Tensor) -> Tensor:
    place = torch.arange(V) == 7
    return product.masked_fill(place, -torch.inf)


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        (lambda product: product**2, UNKNOWN),
        (lambda product: -product, UNKNOWN),
        (lambda product: product * 0, UNKNOWN),
        (lambda product: product + 1e-3, UNKNOWN),
        (lambda product: product + 1e-3 * (torch.arange(V) == 7), UNKNOWN),
        (lambda product: product * (1 + 1e-3 * (torch.arange(V) == 7)), UNKNOWN),
        (lambda product: product * torch.tensor([[1.0], [1.001]]), UNKNOWN),
        (lambda product: product.clamp(-30, 30), UNKNOWN),
        (lambda product: 30 * torch.atan(product / 30), UNKNOWN),
        (lambda product: 30 * torch.tanh(product / 30) + product, UNKNOWN),
        (lambda product: product.log_softmax(-1), UNKNOWN),
        (lambda product: product[..., :-1], UNKNOWN),
        (lambda product: product.bfloat16(), UNKNOWN),
        (masked, UNKNOWN),
        (lambda product: product.no_such_thing(), "AttributeError: 'Tensor' object has no"),
    ],
)
def test_what_is_no_factor_and_no_cap_is_told(
    after: Callable[[Tensor], Tensor], reason: str
) -> None:
    found = form(after)
    assert isinstance(found, str)
    assert found.startswith(reason)


class Odd(nn.Linear):
    """More than its product."""

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.weight) * 2


def test_a_head_that_is_no_plain_linear_layer_is_told() -> None:
    def plain(product: Tensor) -> Tensor:
        return product

    assert form(plain, nn.Sequential(nn.Linear(D, V))) == (
        "the output head is a Sequential, no linear layer"
    )
    told = "the output head does not give one product of its weight and the hidden states"
    assert form(plain, Odd(D, V)) == told
    assert form(plain, nn.Linear(D, V, device="meta")) == "the model has no weights yet"


def test_a_head_that_runs_twice_is_told() -> None:
    model: Any = Model(lambda product: product)
    model.after = lambda product: model.head(model.embedding(torch.arange(2)[None]))
    assert str(head_form(model)).startswith("the output head does not give one product")
