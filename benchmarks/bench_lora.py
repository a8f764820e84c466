"""Speed of `lora_forward` and `lora_backward`: `pytest benchmarks/bench_lora.py`.

The variants of `benchmarks.lora`, one layer each with its frozen product; each case is checked
against the others before it is timed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.lora import Case

SHAPES = ((512, 576, 1), (512, 576, 8), (2048, 576, 8), (512, 2048, 8))


@functools.cache
def checked(shape: tuple[int, int, int]) -> Case:
    case = Case(*shape)
    case.check()
    return case


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "N{}-{}-T{}".format(*shape))
@pytest.mark.parametrize("variant", ["frozen", "ours", "loop", "dense", "peft"])
def test_lora(benchmark: Any, shape: tuple[int, int, int], variant: str) -> None:
    case = checked(shape)
    benchmark.group = case.name
    run: Callable[[], object] = case.variants[variant]
    benchmark.pedantic(run, warmup_rounds=2, rounds=15)
