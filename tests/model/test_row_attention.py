"""Attention by rows: in one call or one for each length, it is that of each row alone.

Needs torch alone, so that a machine with a GPU and little else can run it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mtlcore.model import row_attention
from mtlcore.model.row_attention import at_once, by_length, why_not_at_once

LENGTHS = [9, 1, 5, 5, 70, 5, 9]
BOUNDS = [0, 9, 10, 15, 20, 90, 95, 104]
FEATURES = [{}, {"window": 3}, {"scaling": 0.3}, {"scaling": 0.3, "window": 70}]
CUDA = torch.device("cuda")


def heads(
    groups: int = 3, width: int = 16, dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> tuple[Tensor, ...]:
    """query [H, N, d], key and value [H_kv, N, d] as models give them: views of [N, heads, d]."""
    draw = torch.Generator().manual_seed(width)
    return tuple(
        torch.randn(sum(LENGTHS), count, width, generator=draw, dtype=torch.float64)
        .to(device, dtype)
        .transpose(0, 1)
        .requires_grad_()
        for count in (2 * groups, 2, 2)
    )


def with_gradients(output: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(1)
    upstream = torch.randn(output.shape, generator=draw, dtype=torch.float64).to(output)
    return output.detach(), *torch.autograd.grad(output, inputs, upstream)


def alone(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
    """Each row by itself, written out in full."""
    outputs = []
    for start, stop in pairwise(BOUNDS):
        length = stop - start
        a, b, c = (part[:, start:stop] for part in (q, k, v))
        b, c = (part.repeat_interleave(len(a) // len(b), 0) for part in (b, c))
        scores = a @ b.transpose(1, 2) * options.get("scaling", q.shape[-1] ** -0.5)
        if cap := options.get("softcap"):
            scores = torch.tanh(scores / cap) * cap
        gap = torch.arange(length)[:, None] - torch.arange(length)
        seen = (gap >= 0) & (gap < options.get("window", length))
        scores = scores.masked_fill(~seen.to(scores.device), -torch.inf)
        outputs.append((scores.softmax(-1) @ c).transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize("options", [*FEATURES, {"softcap": 2.0}, {"softcap": 2.0, "window": 4}])
@pytest.mark.parametrize("groups", [1, 3])
def test_one_call_for_each_length_is_each_row_alone(options: dict[str, Any], groups: int) -> None:
    given = heads(groups)
    found = with_gradients(by_length(*given, LENGTHS, **options), given)
    expected = with_gradients(alone(*given, options), given)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


class Kernel:
    """Torch's kernel as its documentation has it, in plain torch; what it was called with."""

    def __init__(self, options: set[str]) -> None:
        self.options = options
        self.bounds: Tensor | None = None

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, bounds_k: Tensor,
        longest: int, longest_k: int, **options: Any,
    ) -> Tensor:  # fmt: skip
        assert options.keys() == self.options - {"return_aux"}
        assert bounds is bounds_k
        assert bounds.dtype == torch.int32
        assert longest == longest_k == max(bounds.diff().tolist())
        assert options.get("enable_gqa") or q.shape[1] == k.shape[1]
        before, behind = options["window_size"]
        outputs = []
        for start, stop in pairwise(bounds.tolist()):
            place = torch.arange(stop - start)
            gap = place[:, None] - place
            seen = (-gap <= behind) & ((gap <= before) if before >= 0 else True)
            a, b, c = (part[start:stop].transpose(0, 1)[None] for part in (q, k, v))
            output = F.scaled_dot_product_attention(
                a, b, c, attn_mask=seen, scale=options["scale"], enable_gqa=True
            )
            outputs.append(output[0].transpose(0, 1))
        return torch.cat(outputs)


OF_TORCH = {
    "2.10": {"return_aux", "scale", "is_causal"},
    "2.11": {"return_aux", "scale", "window_size"},
    "2.13": {"return_aux", "scale", "window_size", "enable_gqa"},
}


@pytest.mark.parametrize("version", ["2.11", "2.13"])
@pytest.mark.parametrize("options", FEATURES)
@pytest.mark.parametrize("groups", [1, 3])
def test_the_one_call_asks_for_what_each_row_alone_gives(
    version: str, options: dict[str, Any], groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel(OF_TORCH[version])
    monkeypatch.setattr(row_attention, "_varlen", lambda: kernel)
    monkeypatch.setattr(row_attention, "_parameters", lambda: frozenset(kernel.options))
    given = heads(groups)
    bounds = torch.tensor(BOUNDS, dtype=torch.int32)
    found = with_gradients(at_once(*given, bounds, max(LENGTHS), **options), given)
    expected = with_gradients(by_length(*given, LENGTHS, **options), given)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_the_installed_torch_has_the_options_that_are_asked_for() -> None:
    assert {"scale", "window_size", "enable_gqa"} <= row_attention._parameters()


class Fact:
    """What is asked of a tensor that would be on a GPU."""

    def __init__(self, width: int = 64, dtype: torch.dtype = torch.bfloat16) -> None:
        self.device, self.shape, self.dtype = CUDA, (6, 10, width), dtype

    def __getitem__(self, _: slice) -> Fact:
        return self

    def to(self, dtype: torch.dtype) -> Fact:
        return Fact(self.shape[-1], dtype)


def why_not(query: Fact, value: Fact | None = None, **options: Any) -> str | None:
    of_query: Any = query
    of_value: Any = query if value is None else value
    return why_not_at_once(of_query, of_value, **options)


def test_the_one_call_is_chosen_where_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_attention, "_missing", lambda device: None)
    assert why_not(Fact()) is None
    assert why_not(Fact(256, torch.float16)) is None
    assert why_not(Fact(), softcap=50.0) == "it has no soft cap"
    assert why_not(Fact(), dropout=0.1) == "it has no dropout"
    assert why_not(Fact(dtype=torch.float32)) == "it takes float16 and bfloat16, found float32"
    assert str(why_not(Fact(), Fact(dtype=torch.float32))).startswith("it takes float16 and")
    for widths in ((60, 60), (264, 264), (192, 128)):
        found = why_not(*map(Fact, widths))
        assert str(found).endswith(f"found {sorted(set(widths))}")
    query, _, value = heads()
    assert why_not_at_once(query, value) == "the tensors are on cpu"


def test_under_autocast_its_dtype_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_attention, "_missing", lambda device: None)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.bfloat16)
    assert why_not(Fact(dtype=torch.float32), Fact()) is None
    assert str(why_not(Fact(dtype=torch.float64))).endswith("found float64")


@pytest.mark.parametrize(
    ("version", "flash", "capability", "reason"),
    [
        ("2.13", True, (9, 0), None),
        ("2.11", True, (8, 0), None),
        ("2.10", True, (9, 0), "takes no window"),
        ("2.13", False, (9, 0), "without flash attention"),
        ("2.13", True, (7, 5), "it needs compute capability 8.0, found 7.5"),
    ],
)
def test_what_the_machine_lacks_is_told(
    version: str, flash: bool, capability: Any, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_attention, "_parameters", lambda: frozenset(OF_TORCH[version]))
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: flash)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    found = row_attention._missing.__wrapped__(CUDA)
    assert found is None if reason is None else reason in found


def test_a_torch_without_the_kernel_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ImportError("no module named varlen")

    monkeypatch.setattr(row_attention, "_parameters", missing)
    assert "has none: no module named varlen" in row_attention._missing.__wrapped__(CUDA)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", FEATURES)
@pytest.mark.parametrize(("groups", "width"), [(1, 64), (3, 64), (4, 128), (3, 40)])
def test_on_a_gpu_the_one_call_is_as_near_to_each_row_alone(
    dtype: torch.dtype, options: dict[str, Any], groups: int, width: int
) -> None:
    given = heads(groups, width, dtype, "cuda")
    assert why_not_at_once(given[0], given[2]) is None
    bounds = torch.tensor(BOUNDS, dtype=torch.int32, device="cuda")
    found = with_gradients(at_once(*given, bounds, max(LENGTHS), **options), given)
    rival = with_gradients(by_length(*given, LENGTHS, **options), given)
    wide = tuple(part.detach().double().requires_grad_() for part in given)
    exact = with_gradients(alone(*wide, options), wide)
    for mine, theirs, value in zip(found, rival, exact, strict=True):
        error, allowed = ((one.double() - value).norm() for one in (mine, theirs))
        assert mine.dtype == dtype
        assert error <= 2 * allowed + torch.finfo(dtype).eps * value.norm()


@pytest.mark.gpu
def test_on_a_gpu_autocast_takes_the_one_call_in_its_dtype() -> None:
    given = heads(3, 64, torch.float32, "cuda")
    assert why_not_at_once(given[0], given[2]) is not None
    bounds = torch.tensor(BOUNDS, dtype=torch.int32, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        assert why_not_at_once(given[0], given[2]) is None
        found, expected = at_once(*given, bounds, max(LENGTHS)), by_length(*given, LENGTHS)
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected)
