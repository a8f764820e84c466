"""Gramian, combination and both with a weighting between: `python -m benchmarks.gramian`.

J [T, P] fp32 against plain torch and against the bandwidth of a copy of the same size in the same
rounds. The floor of a Gramian is to read J once, that of the combination to read J and write P, or
their operations at the rate of a square matrix product, whichever takes longer.

    gramian     ops.gramian             torch: J @ Jᵀ (fp32, as torch adds it up)
    by slice    ops.gramian_by_slice, of as many slices as a model has factors
    cross       ops.cross_gramian       torch: J @ v
    combine     ops.combine             torch: torch.mv(Jᵀ, w, out=...)
    project     ops.project_task_gradients: Gramian, PCGrad's weights and combination
                                        torch: J @ Jᵀ, the same weights, w @ J
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.harness import Result, Work, interleave, main, ratios, result
from mtlcore import ops
from mtlcore.ops.reference.gramian import gramian as reference

TASKS = (8, 32)
COLUMNS = 5_000_000
ROUNDS = 21
SLICES = 400
SHARE = 0.7  # of the copy's bandwidth
PRODUCT = 1024  # a square matrix product, whose rate bounds operations
SPEEDUP = {8: 2.5, 32: 1.6}  # over torch's J @ Jᵀ
TOLERANCE = 1e-6  # of the norms' product


class Case:
    """T task gradients, and what every variant does with them."""

    def __init__(self, tasks: int, columns: int, device: str) -> None:
        self.name = f"T={tasks} P={columns:.0e}"
        draw = torch.Generator().manual_seed(0)
        self.J = torch.randn(tasks, columns, generator=draw).to(device)
        self.square = torch.randn(PRODUCT, PRODUCT, generator=draw).to(device)
        self.copy = torch.empty_like(self.J)
        self.w = torch.rand(tasks, generator=draw).to(device)
        self.out = torch.empty(columns, device=device)
        # In their own order PCGrad meets the others.
        self.keys = torch.zeros(tasks, tasks - 1, dtype=torch.float64)
        self.v = torch.randn(columns, generator=draw).to(device)
        self.starts = [columns * slice_ // SLICES for slice_ in range(SLICES + 1)]
        self.variants: dict[str, Callable[[], object]] = {
            "copy": lambda: self.copy.copy_(self.J),
            "gramian": lambda: ops.gramian(self.J),
            "torch J @ Jt": lambda: self.J @ self.J.T,
            "by slice": lambda: ops.gramian_by_slice(self.J, self.starts),
            "cross": lambda: ops.cross_gramian(self.J, self.v),
            "torch J @ v": lambda: self.J @ self.v,
            "combine": lambda: ops.combine(self.J, self.w, out=self.out),
            "torch mv": lambda: torch.mv(self.J.T, self.w, out=self.out),
            "project": lambda: ops.project_task_gradients(self.J, self.solve, out=self.out),
            "torch project": self.torch_project,
            "product": lambda: self.square @ self.square,
        }

    def solve(self, gramian: Tensor) -> Tensor:
        return ops.pcgrad(gramian, self.keys)

    def torch_project(self) -> Tensor:
        weights = self.solve((self.J @ self.J.T).double().cpu())
        return weights.to(self.J) @ self.J

    def run(self, variant: str) -> Tensor:
        """What the variant gives, in float64."""
        found = self.variants[variant]()
        assert isinstance(found, Tensor)
        return found.double()

    def error(self, variant: str) -> float:
        """The largest error of a Gramian, in units of the norms' product."""
        exact = reference(self.J)
        norms = exact.diagonal().sqrt()
        found = self.run(variant)
        found = found.sum(0) if found.ndim == 3 else found
        return float(((found - exact).abs() / norms[:, None] / norms).max())

    def check(self) -> None:
        for name in ("gramian", "by slice"):
            assert self.error(name) <= TOLERANCE, f"{self.name}, {name}: {self.error(name):.1e} off"
        J, v = self.J.double(), self.v.double()
        off = (self.run("cross") - J @ v).abs() / (J.norm(dim=1) * v.norm())
        assert off.max() <= TOLERANCE, f"{self.name}, cross: {off.max():.1e} off"
        projected = self.solve(reference(self.J).cpu()).to(J) @ J
        for name, expected in (("combine", self.w.double() @ J), ("project", projected)):
            assert torch.allclose(self.run(name), expected, rtol=1e-5, atol=1e-5), name

    @property
    def work(self) -> dict[str, Work]:
        """The fewest operations and bytes of each op."""
        size, column = self.J.nbytes, self.out.nbytes
        pairs = (len(self.J) + 1) * self.J.numel()
        each = 2 * self.J.numel()
        return {
            "copy": Work(0, 2 * size),
            "product": Work(2 * PRODUCT**3, 0),
            "gramian": Work(pairs, size),
            "by slice": Work(pairs, size),
            "cross": Work(each, size + column),
            "combine": Work(each, size + column),
            "project": Work(pairs + each, 2 * size + column),
        }


def check(options: argparse.Namespace) -> None:
    for tasks in TASKS:
        Case(tasks, 100_003, options.device).check()


def measure(options: argparse.Namespace) -> list[Result]:
    results: list[Result] = []
    synchronize = torch.cuda.synchronize if options.device == "cuda" else None
    for tasks in TASKS:
        case = Case(tasks, options.columns, options.device)
        times = interleave(case.variants, options.rounds, synchronize=synchronize)
        results += [
            result(case.name, name, [1000 * value for value in values], "ms")
            for name, values in times.items()
        ]
        rounds = list(zip(times["product"], times["copy"], strict=True))
        rates = [case.work["product"].operations / product for product, _ in rounds]
        widths = [case.work["copy"].bytes / copy for _, copy in rounds]
        for name in ("gramian", "by slice", "cross", "combine", "project"):
            work, taken = case.work[name], times[name]
            floors = [work.floor(rate, width) for rate, width in zip(rates, widths, strict=True)]
            shares = [floor / time for floor, time in zip(floors, taken, strict=True)]
            results.append(result(case.name, f"{name}, share of the floor reached", shares, "x"))
            moved = [work.bytes / time / width for time, width in zip(taken, widths, strict=True)]
            target = SHARE if name in ("gramian", "combine") else None
            results.append(
                result(case.name, f"{name}, share of copy bandwidth", moved, "x",
                       target=target, higher_is_better=True)
            )  # fmt: skip
        results.append(
            result(case.name, "torch J @ Jt / gramian", ratios(times, "torch J @ Jt", "gramian"),
                   "x", target=SPEEDUP[tasks], higher_is_better=True)
        )  # fmt: skip
        for rival, name in (
            ("torch J @ v", "cross"), ("torch mv", "combine"), ("torch project", "project"),
        ):  # fmt: skip
            faster = ratios(times, rival, name)
            results.append(result(case.name, f"{rival} / {name}", faster, "x"))
        for name in ("gramian", "torch J @ Jt"):
            results.append(result(case.name, f"{name}, error", [case.error(name)], ""))
    return results


def run(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gramian", epilog="--json and --record: see benchmarks/harness.py"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--columns", type=int, default=COLUMNS)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options, rest = parser.parse_known_args(argv)
    main(
        "gramian",
        functools.partial(check, options),
        functools.partial(measure, options),
        device=options.device,
        argv=rest,
    )


if __name__ == "__main__":
    run()
