"""What one adapted layer costs beside its arithmetic: `python -m benchmarks.overhead`.

Microseconds per call of a chain of layers so small (8 wide, 4 tokens, r = 1) that Python and the
calls between Python, torch and the core are all that counts, on one thread:

    linear      nn.Linear
    function    an autograd.Function that does no more than the same linear
    ours        MultiTaskLora as in training: shared and own adapters of 4 tasks, gradients to J
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness import Result, interleave, main, result
from mtlcore.arena import Arena
from mtlcore.model.layout import Layout, Routing, row_segments
from mtlcore.model.lora import MultiTaskLora
from mtlcore.recipe import LoraRecipe, SharingRecipe

TASKS, WIDTH, LAYERS = 4, 8, 50
ROUNDS = 301
TARGET = 15.0  # microseconds above an empty Function, forward and backward each
TOLERANCE = 1e-6


class Function(torch.autograd.Function):
    """A frozen linear layer, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        _, weight = ctx.saved_tensors
        return dy @ weight, None


class FunctionLayer(nn.Module):
    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = Function.apply(x.reshape(-1, WIDTH), self.base.weight)
        return y.view(*x.shape[:-1], WIDTH)


class Case:
    """The same frozen layers, in three ways."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        layout = Layout.build(
            [f"task{task}" for task in range(TASKS)],
            LoraRecipe(r=1, lora_alpha=2),
            SharingRecipe(shared=1, own=1),
        )
        routing = Routing(layout)
        bases = [nn.Linear(WIDTH, WIDTH, bias=False).requires_grad_(False) for _ in range(LAYERS)]
        ours = [MultiTaskLora(base, routing, name=f"{i}") for i, base in enumerate(bases)]
        routing.enter(row_segments(range(TASKS)), [1] * TASKS)
        self.arena = Arena(ours, [], TASKS)
        self.arena.clear()
        routing.sink = self.arena
        self.layers: dict[str, list[nn.Module]] = {
            "linear": list(bases), "function": [FunctionLayer(b) for b in bases], "ours": list(ours)
        }  # fmt: skip
        self.x = torch.randn(1, TASKS, WIDTH, requires_grad=True)
        self.times: dict[str, list[tuple[float, float]]] = {name: [] for name in self.layers}

    def run(self, name: str) -> Tensor:
        """Forward and backward through the chain -> the gradient of x; seconds are in `times`."""
        start = time.perf_counter()
        y = self.x
        for layer in self.layers[name]:
            y = layer(y)
        between = time.perf_counter()
        (grad,) = torch.autograd.grad(y.sum(), self.x)
        self.times[name].append((between - start, time.perf_counter() - between))
        return grad

    def check(self) -> None:
        """B is 0, so that all ways have one gradient of x; ours has put that of B into J."""
        expected = self.run("linear")
        for name in self.layers:
            assert torch.allclose(self.run(name), expected, atol=TOLERANCE), name
        assert bool(self.arena.rows.any(1).all()), "a task without a gradient"


def measure(rounds: int) -> list[Result]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        case = Case()
        interleave({name: functools.partial(case.run, name) for name in case.layers}, rounds)
    finally:
        torch.set_num_threads(threads)
    times = {
        name: [tuple(1e6 * part / LAYERS for part in pair) for pair in pairs[1:]]
        for name, pairs in case.times.items()
    }
    results = []
    for index, way in enumerate(("forward", "backward")):
        alone = {name: [pair[index] for pair in pairs] for name, pairs in times.items()}
        results += [result(way, name, values, "us") for name, values in alone.items()]
        above = [o - f for o, f in zip(alone["ours"], alone["function"], strict=True)]
        results.append(result(way, "ours - function", above, "us", target=TARGET))
    return results


def run(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overhead",
        epilog="--json and --record: see benchmarks/harness.py",
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options, rest = parser.parse_known_args(argv)
    main("overhead", lambda: Case().check(), functools.partial(measure, options.rounds), argv=rest)


if __name__ == "__main__":
    run()
