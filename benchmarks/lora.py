"""What adapters of many tasks cost beside a frozen linear layer: `python -m benchmarks.lora`.

Forward and backward of one layer, N tokens in T segments of like length, each token on a shared
adapter and on its task's own, r = 16. The figure is the overhead: the time of a variant less that
of the frozen layer alone (``x Wᵀ`` and ``dy W``) in the same round.

    ours    ops.lora_forward and lora_backward as the trainer calls them: a gradient of the shared
            adapter for each task
    loop    plain torch, the same maths: a few matrix products for each task
    dense   plain torch: all adapters in one matrix, a mask in rank space; the shared adapter's
            gradient in sum only, so less work than ours
    peft    a loop over adapters as in PEFT's mixed batches: gather, two linears, scatter, autograd

The floor of an overhead is its operations at the frozen layer's rate or its bytes at that of a copy
of x, whichever takes longer, both of the same rounds.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Result, Work, interleave, main, result
from mtlcore import ops

TOKENS = (512, 2048)
WIDTHS = (576, 1536, 2048)
TASKS = (1, 8)
RANK = 16
SCALE = 2.0
ROUNDS = 21
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # relative to the norm
# Overhead of ours over that of a rival; against `loop` and `dense` the faster one counts.
TARGETS = {"plain": 1.0, "plain at 576": 1 / 1.3, "peft": 0.5}
TARGET_TASKS = 1.1  # total at T = 8 over total at T = 1


class Case:
    """One layer and one batch, as every variant wants them."""

    def __init__(self, tokens: int, width: int, tasks: int, device: str, dtype: str) -> None:
        self.name = f"N={tokens} {width} T={tasks}"
        self.tasks, self.width, self.device = tasks, width, device
        self.dtype: torch.dtype = getattr(torch, dtype)
        draw = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw).to(device)

        ranks = RANK * (tasks + 1)
        self.x, self.dy = normal(tokens, width), normal(tokens, width)
        self.W = normal(width, width) / width**0.5
        self.x, self.dy, self.W = (part.to(self.dtype) for part in (self.x, self.dy, self.W))
        # Ours are fp32 beside a half-precision layer; the rivals' are of its dtype.
        self.factors = normal(ranks, width) / width**0.5, normal(ranks, width) / RANK**0.5
        self.A, self.B = (factor.to(self.dtype) for factor in self.factors)
        ends = torch.linspace(0, tokens, tasks + 1).long().tolist()
        self.cuts = [slice(*cut) for cut in itertools.pairwise(ends)]
        shared = torch.arange(RANK, device=device)
        self.rows = [torch.cat([shared, RANK * (t + 1) + shared]) for t in range(tasks)]
        self._for_ours()
        self._for_dense()
        self._for_peft()
        self.variants: dict[str, Callable[[], dict[str, Tensor]]] = {
            "frozen": self.frozen, "ours": self.ours, "loop": self.loop,
            "dense": self.dense, "peft": self.peft, "copy": self.copied,
        }  # fmt: skip

    def _for_ours(self) -> None:
        tasks, width = self.tasks, self.width
        rows = torch.stack(self.rows).int()
        segments = [(t, cut.start, cut.stop) for t, cut in enumerate(self.cuts)]
        device = self.device
        self.slots = ops.Slots(
            torch.tensor(segments, device=device), rows,
            torch.full(rows.shape, SCALE, device=device),
        )  # fmt: skip
        # J [T, shared A | shared B], then the own adapters' gradients [T, own A | own B].
        half = RANK * width
        place = torch.arange(2 * RANK).remainder(RANK) * width
        own = torch.arange(2 * RANK).div(RANK, rounding_mode="floor")
        offsets = 2 * half * (own * tasks + torch.arange(tasks)[:, None]) + place
        memory = torch.zeros(4 * half * tasks, device=device)
        offsets = offsets.to(device)
        ones = torch.ones(rows.shape, device=device)
        self.places = ops.Places(memory, offsets, offsets + half, ones)

    def _for_dense(self) -> None:
        self.mix = torch.zeros(len(self.x), len(self.A), device=self.device, dtype=self.dtype)
        for cut, rows in zip(self.cuts, self.rows, strict=True):
            self.mix[cut, rows] = SCALE
        self.dA, self.dB = torch.zeros_like(self.A), torch.zeros_like(self.B)

    def _for_peft(self) -> None:
        every = torch.arange(len(self.x), device=self.device)
        self.adapters = [(every, slice(0, RANK))] + [
            (every[cut], slice(RANK * (t + 1), RANK * (t + 2))) for t, cut in enumerate(self.cuts)
        ]
        self.leaves = [
            (self.A[rows].clone().requires_grad_(), self.B[rows].t().clone().requires_grad_())
            for _, rows in self.adapters
        ]
        self.leaf = self.x.clone().requires_grad_()

    # -- the variants: y, dx, and gradients of A and B [R, width], summed over the tasks ----------

    def frozen(self) -> dict[str, Tensor]:
        return {"y": F.linear(self.x, self.W), "dx": self.dy @ self.W}

    def ours(self) -> dict[str, Tensor]:
        self.places.memory.zero_()
        y = F.linear(self.x, self.W)
        z = ops.lora_forward(self.x, *self.factors, self.slots, y, check=False)
        dx = self.dy @ self.W
        ops.lora_backward(
            self.dy, self.x, z, *self.factors, self.slots, self.places, dx, check=False
        )
        return {"y": y, "dx": dx}

    def loop(self) -> dict[str, Tensor]:
        J = self.places.memory.zero_().view(2, self.tasks, 2, RANK, self.width)
        y, kept = F.linear(self.x, self.W), []
        for cut, rows in zip(self.cuts, self.rows, strict=True):
            kept.append(self.x[cut] @ self.A[rows].t() * SCALE)
            y[cut].addmm_(kept[-1], self.B[rows])
        dx = self.dy @ self.W
        for t, (cut, rows) in enumerate(zip(self.cuts, self.rows, strict=True)):
            dz = self.dy[cut] @ self.B[rows].t() * SCALE
            dx[cut].addmm_(dz, self.A[rows])
            for factor, grad in enumerate((dz.t() @ self.x[cut], kept[t].t() @ self.dy[cut])):
                J[:, t, factor] += grad.view(2, RANK, self.width)
        return {"y": y, "dx": dx}

    def dense(self) -> dict[str, Tensor]:
        y = F.linear(self.x, self.W)
        z = (self.x @ self.A.t()).mul_(self.mix)
        y.addmm_(z, self.B)
        dx = self.dy @ self.W
        dz = (self.dy @ self.B.t()).mul_(self.mix)
        dx.addmm_(dz, self.A)
        torch.mm(dz.t(), self.x, out=self.dA)
        torch.mm(z.t(), self.dy, out=self.dB)
        return {"y": y, "dx": dx, "dA": self.dA, "dB": self.dB}

    def peft(self) -> dict[str, Tensor]:
        for leaf in (self.leaf, *(factor for pair in self.leaves for factor in pair)):
            leaf.grad = None
        y = F.linear(self.leaf, self.W)
        for (tokens, _), (down, up) in zip(self.adapters, self.leaves, strict=True):
            part = F.linear(F.linear(self.leaf[tokens], down), up) * SCALE
            y = y.index_add(0, tokens, part)
        y.backward(self.dy)
        assert self.leaf.grad is not None
        return {"y": y.detach(), "dx": self.leaf.grad}

    def copied(self) -> dict[str, Tensor]:
        return {"x": self.x.clone()}

    @property
    def work(self) -> Work:
        """Forward and backward of the adapters: x, y, dy, x, dx and y, dx written; the factors and
        their gradients, each read and added to."""
        small = sum(factor.nbytes for factor in self.factors) + self.places.memory.nbytes
        slots = 2 * RANK * len(self.x)
        return Work(12 * slots * self.width, 7 * self.x.nbytes + 2 * small)

    # -- the check ------------------------------------------------------------------------------

    def found(self, variant: str) -> dict[str, Tensor]:
        """What a variant computes, with the gradients of A and B in sum over the tasks."""
        values = dict(self.variants[variant]())
        if variant in ("ours", "loop"):
            J = self.places.memory.view(2, self.tasks, 2, RANK, self.width)
            for factor, name in enumerate(("dA", "dB")):
                values[name] = torch.cat([J[0, :, factor].sum(0), J[1, :, factor].flatten(0, 1)])
        if variant == "peft":
            grads = [[factor.grad for factor in pair] for pair in self.leaves]
            values["dA"] = torch.cat([grad[0] for grad in grads])
            values["dB"] = torch.cat([grad[1].t() for grad in grads])
        return {name: value.clone() for name, value in values.items()}

    def check(self) -> None:
        expected = self.found("loop")
        for variant in ("ours", "dense", "peft"):
            for name, value in self.found(variant).items():
                error = float((value - expected[name]).norm() / expected[name].norm())
                assert error <= TOLERANCE[self.dtype], (
                    f"{self.name}: {name} of {variant} is {error:.1e} off"
                )


def cases(options: argparse.Namespace) -> Iterator[Case]:
    for tokens in options.tokens:
        for width in options.widths:
            for tasks in TASKS:
                yield Case(tokens, width, tasks, options.device, options.dtype)


def check(options: argparse.Namespace) -> None:
    for case in cases(options):
        case.check()


def measure(options: argparse.Namespace) -> list[Result]:
    results: list[Result] = []
    for tokens in options.tokens:
        for width in options.widths:
            pair = [Case(tokens, width, t, options.device, options.dtype) for t in TASKS]
            times = interleave(
                {f"{c.name} {name}": run for c in pair for name, run in c.variants.items()},
                options.rounds,
                synchronize=torch.cuda.synchronize if options.device == "cuda" else None,
            )
            for case in pair:
                results += _overheads(case, times)
            one, many = (times[f"{case.name} ours"] for case in pair)
            ratio = [b / a for a, b in zip(one, many, strict=True)]
            name = f"N={tokens} {width}"
            results.append(result(name, "T=8 / T=1, total", ratio, "x", target=TARGET_TASKS))
    return results


def _overheads(case: Case, times: dict[str, list[float]]) -> list[Result]:
    """Milliseconds of the frozen layer and above it, and ours over the rivals'."""
    frozen = times[f"{case.name} frozen"]
    milliseconds = [1000 * value for value in frozen]
    results = [result(case.name, "frozen", milliseconds, "ms")]
    above = {}
    for name in ("ours", "loop", "dense", "peft"):
        pairs = zip(times[f"{case.name} {name}"], frozen, strict=True)
        above[name] = [1000 * (total - alone) for total, alone in pairs]
        results.append(result(case.name, f"{name}, overhead", above[name], "ms"))
    ours, loop, dense, peft = (one.value for one in results[1:])
    plain = TARGETS["plain at 576" if case.width == 576 else "plain"]
    for name, rival, target in (
        ("ours / best plain torch", min(loop, dense), plain),
        ("ours / peft", peft, TARGETS["peft"]),
    ):
        results.append(result(case.name, name, [ours / rival], "x", target=target))
    share = 100 * ours / results[0].value
    results.append(result(case.name, "ours, share of frozen", [share], "%"))
    rate = 4 * case.width * case.x.numel() / statistics.median(frozen)
    bandwidth = 2 * case.x.nbytes / statistics.median(times[f"{case.name} copy"])
    floor = 1000 * case.work.floor(rate, bandwidth)
    for name, value, unit in (
        ("frozen, rate", rate / 1e9, "GFLOP/s"),
        ("copy of x, bandwidth", bandwidth / 1e9, "GB/s"),
        ("floor of the overhead", floor, "ms"),
        ("ours, share of the floor reached", floor / ours, "x"),
        ("best plain torch, share of the floor reached", floor / min(loop, dense), "x"),
    ):
        results.append(result(case.name, name, [value], unit))
    return results


def run(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lora", epilog="--json and --record: see benchmarks/harness.py"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options, rest = parser.parse_known_args(argv)
    main(
        "lora",
        functools.partial(check, options),
        functools.partial(measure, options),
        device=options.device,
        argv=rest,
    )


if __name__ == "__main__":
    run()
