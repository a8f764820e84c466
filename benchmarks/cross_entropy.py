"""Token losses without whole logits: `python -m benchmarks.cross_entropy`.

Forward and backward of `task_cross_entropy` (ours) against torch's way: logits [L, V] by
`F.linear`, then `F.cross_entropy`; the output head frozen, the hidden states trained. Time in one
process, interleaved; peak memory above the inputs, each way in a process of its own (on Linux). The
floor is two products of that size, the logits' and the gradient's, at the rate of the first alone.
"""

from __future__ import annotations

import argparse
import functools
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Result, interleave, main, ratios, result
from mtlcore.ops import task_cross_entropy

LABELS, VOCABULARY, WIDTH = 1024, 49152, 576  # SmolLM2-135M
ROUNDS = 11
TIME, MEMORY = 1.0, 0.25  # ours over torch's
TOLERANCE = 1e-5


@dataclass
class Case:
    """The hidden states of L labelled tokens, and the frozen head."""

    hidden: Tensor
    weight: Tensor
    labels: Tensor

    def whole(self) -> Tensor:
        return self._grad(lambda x: F.cross_entropy(F.linear(x, self.weight), self.labels))

    def ours(self) -> Tensor:
        tasks = torch.zeros_like(self.labels)

        def loss(hidden: Tensor) -> Tensor:
            _, sums = task_cross_entropy(hidden, self.weight, self.labels, tasks, 1)
            return sums.sum() / len(tasks)

        return self._grad(loss)

    def logits(self) -> Tensor:
        """One of the two products that the loss and its gradient need at least."""
        return F.linear(self.hidden, self.weight)

    def _grad(self, loss: Callable[[Tensor], Tensor]) -> Tensor:
        hidden = self.hidden.clone().requires_grad_()
        (grad,) = torch.autograd.grad(loss(hidden), hidden)
        return grad


def case(labels: int, vocabulary: int) -> Case:
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(labels, WIDTH, generator=draw)
    weight = torch.randn(vocabulary, WIDTH, generator=draw) / WIDTH**0.5
    return Case(hidden, weight, torch.randint(vocabulary, (labels,), generator=draw))


def check() -> None:
    small = case(300, 1000)
    error = float((small.ours() - small.whole()).norm() / small.whole().norm())
    assert error < TOLERANCE, f"the gradient is {error:.1e} off"


def peak(options: argparse.Namespace) -> float:
    """MB above the inputs in this process, which does nothing else."""
    given = case(options.labels, options.vocabulary)
    getattr(case(8, 8), options.peak)()  # what torch sets up once
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what there is
    before = _resident("VmHWM")
    getattr(given, options.peak)()
    return (_resident("VmHWM") - before) / 1024


def _resident(what: str) -> float:
    """kB that the kernel counts for this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(what)]
    return float(line.split()[1])


def measure(options: argparse.Namespace) -> list[Result]:
    given = case(options.labels, options.vocabulary)
    name = f"L={options.labels} V={options.vocabulary}"
    ways = {"ours": given.ours, "whole": given.whole, "logits": given.logits}
    times = interleave(ways, options.rounds)
    results = [
        result(name, way, [1000 * value for value in values], "ms") for way, values in times.items()
    ]
    results.append(result(name, "ours / whole", ratios(times, "ours", "whole"), "x", target=TIME))
    floors = [2 * share for share in ratios(times, "logits", "ours")]
    results.append(result(name, "ours, share of the floor reached", floors, "x"))
    sizes = ["--labels", str(options.labels), "--vocabulary", str(options.vocabulary)]
    peaks = {}
    for way in ("ours", "whole"):
        command = [sys.executable, "-m", "benchmarks.cross_entropy", *sizes, "--peak", way]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[way] = float(done.stdout)
        results.append(result(name, f"{way}, peak", [peaks[way]], "MB"))
    share = peaks["ours"] / peaks["whole"]
    results.append(result(name, "ours / whole, peak", [share], "x", target=MEMORY))
    return results


def run(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cross_entropy", epilog="--json, --record: benchmarks/harness.py"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--labels", type=int, default=LABELS)
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    parser.add_argument("--peak", choices=["ours", "whole"], help="measure memory, print MB")
    options, rest = parser.parse_known_args(argv)
    if options.peak:
        print(peak(options))
        return
    main("cross_entropy", check, functools.partial(measure, options), argv=rest)


if __name__ == "__main__":
    run()
