"""What a model makes of its output head's product: a factor, a cap, or something unknown."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel


class HeadForm(NamedTuple):
    """logits = cap(scale (weight hidden + bias)), where cap(a) = softcap tanh(a / softcap)."""

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, product: Tensor) -> Tensor:
        logits = product * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


@torch.no_grad()
def head_form(backbone: PreTrainedModel) -> HeadForm | str:
    """The form of a model's logits, or why it is none that is known.

    It is measured, as the names of the numbers in a configuration do not tell what is done with
    them (by `logits_scaling` Granite divides, HyperCLOVA X multiplies): two tokens pass through the
    model, but their products in the head are replaced by float64 numbers from 1e-9 to 1e30 of both
    signs. A small one gives the factor, the largest the cap, and all must be as these two say.
    """
    head = backbone.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return f"the output head is a {type(head).__name__}, no linear layer"
    if head.weight.is_meta:
        return "the model has no weights yet"
    given = _numbers(2 * len(head.weight))  # by size
    order = torch.randperm(len(given), generator=torch.Generator().manual_seed(0))
    put = torch.empty_like(given).index_copy(0, order, given).view(1, 2, -1).to(head.weight.device)
    linear: list[bool] = []

    def replace(_: nn.Module, args: tuple[Tensor, ...], product: Tensor) -> Tensor:
        linear.append(torch.equal(F.linear(args[0], head.weight, head.bias), product))
        return put

    handle = head.register_forward_hook(replace)
    try:
        ids = torch.arange(2, device=head.weight.device)[None]
        logits: Any = backbone(input_ids=ids, use_cache=False).logits
    except Exception as error:  # an architecture may fail in any way here; whole logits still serve
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    finally:
        handle.remove()
    if linear != [True]:
        return "the output head does not give one product of its weight and the hidden states"
    unknown = "the logits are not the output head's product times a factor, capped or not"
    if logits.shape != put.shape or logits.dtype not in (torch.float32, torch.float64):
        return unknown
    found = logits.flatten().cpu().double()[order]
    exact = logits.dtype == torch.float64
    form = _form(given, found, digits=12 if exact else 7)
    alike = torch.allclose(form(given), found, rtol=1e-10 if exact else 1e-5, atol=0.0)
    return form if form.scale > 0 and alike else unknown


def _numbers(count: int) -> Tensor:
    numbers = torch.logspace(-9, 6, count, dtype=torch.float64)
    numbers[-1] = 1e30
    numbers[1::2] *= -1
    return numbers


def _form(given: Tensor, found: Tensor, digits: int) -> HeadForm:
    """Of numbers by size, the first too small for a cap to show, the last too large for none to."""
    scale = float(f"{found[0] / given[0]:.{digits}g}")
    largest = abs(float(found[-1]))
    capped = math.isfinite(largest) and largest < 0.5 * scale * abs(float(given[-1]))
    return HeadForm(scale, largest if capped else None)
