"""How long a weighting takes to solve: `python -m benchmarks.weighting`.

Microseconds from a Gramian [T, T] to the weights [T], as the trainer asks for them,
beside TorchJD's of the same method where it has one that reads the Gramian (ConFIG reads J, here
[T, T]). The gradients are in conflict and their norms lie within a factor of 3; every round has
another Gramian, the same for both.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Result, main, ratios, result, seconds
from mtlcore.components import Weighting
from mtlcore.plugins import PluginManager
from mtlcore.testing import StandInGradients, stand_in_run

SIZES = (2, 8, 32, 64)
TARGETS = {8: 300.0, 32: 5000.0}  # microseconds
ROUNDS = 201
PATIENCE = 5.0  # seconds for a method and size: those that are slow have fewer rounds
COLUMNS = 200  # P
# At T = 8, by the norm of the update: what TorchJD's methods reach when they are asked to be exact.
TOLERANCE = 1e-4
DRAWN = ("pcgrad", "gradvac")  # the order is drawn: nothing to compare

Solve = Callable[[Tensor, Tensor], Tensor]
"""J [T, P] and its Gramian [T, T] -> weights [T]."""


def rivals(*, exact: bool = False) -> dict[str, Solve]:
    """TorchJD's methods by our names, with its own defaults (c and alpha are ours).

    exact: as far as they go; by default its MGDA stops early and its projections are regularized.
    """
    from torchjd import aggregation
    from torchjd.linalg import QuadprogProjector

    projector = QuadprogProjector(norm_eps=0, reg_eps=1e-12) if exact else None
    mgda = {"epsilon": 1e-9, "max_iters": 3000} if exact else {}

    def of(weighting: Any) -> Solve:
        return lambda J, G: weighting(G)

    def config(J: Tensor, G: Tensor) -> Tensor:
        root = torch.linalg.cholesky(G)
        return torch.linalg.solve(root.T, aggregation.ConFIG()(root))

    found = {
        "aligned_mtl": of(aggregation.AlignedMTLWeighting()),
        "config": config,
        "dualproj": of(aggregation.DualProjWeighting(projector=projector)),
        "fairgrad": of(aggregation.FairGradWeighting(alpha=2.0)),
        "gradvac": of(aggregation.GradVacWeighting()),
        "imtl_g": of(aggregation.IMTLGWeighting()),
        "mgda": of(aggregation.MGDAWeighting(**mgda)),
        "pcgrad": of(aggregation.PCGradWeighting()),
        "upgrad": of(aggregation.UPGradWeighting(projector=projector)),
    }
    with suppress(ImportError):  # it needs cvxpy and clarabel, which mtlcore does not
        found["cagrad"] = of(aggregation.CAGradWeighting(c=0.4))
    return found


def methods() -> dict[str, type[Weighting]]:
    """Every weighting of mtlcore that reads the Gramian and needs no option."""
    found = PluginManager.load(environ={"MTLCORE_NO_PLUGINS": "1"}).components()
    return {
        name: info.cls
        for (kind, name), info in sorted(found.items())
        if kind == "weighting"
        and issubclass(info.cls, Weighting)
        and info.cls.needs == "gramian"
        and name != "gradient_similarity"  # its tasks have roles
    }


class Given(StandInGradients):
    """Gradients whose Gramian is there already."""

    G: Tensor

    def gramian(self, scope: str = "model") -> Tensor:
        return self.G


def ours(cls: type[Weighting], tasks: int) -> Solve:
    """A fresh component, asked as in step after step of one run."""
    component: Any = cls()  # its hook is no method of the base class
    run, ask = stand_in_run({str(task): 5 for task in range(tasks)}), component.mtlcore_weigh_tasks
    held = Given(torch.eye(tasks, dtype=torch.float64))
    losses = torch.linspace(0.5, 2, tasks, dtype=torch.float64)
    every = {"run": run, "losses": losses, "gradients": held}
    given = {name: every[name] for name in inspect.signature(ask).parameters}

    def solve(J: Tensor, G: Tensor) -> Tensor:
        run.step += 1
        held.G = G
        weights: Tensor = ask(**given)
        return weights

    return solve


def gradients(tasks: int, seed: int) -> tuple[Tensor, Tensor]:
    """J [T, P] and G [T, T] in conflict, with norms within a factor of 3."""
    draw = torch.Generator().manual_seed(seed)
    J = torch.randn(tasks, COLUMNS, generator=draw, dtype=torch.float64)
    J -= 0.9 * J.mean(0)
    norms = 3 ** torch.rand(tasks, 1, generator=draw, dtype=torch.float64)
    J *= norms / J.norm(dim=1, keepdim=True)
    return J, J @ J.T


def check() -> None:
    """Where both are deterministic, both give one update."""
    theirs = rivals(exact=True)
    for name, cls in methods().items():
        if name not in theirs or name in DRAWN:
            continue
        J, G = gradients(8, seed=0)
        mine, rival = J.T @ ours(cls, 8)(J, G), J.T @ theirs[name](J, G)
        mine, rival = mine / mine.norm(), rival / rival.norm()
        assert (mine - rival).norm() <= TOLERANCE, name


def measure(rounds: int, sizes: Sequence[int]) -> list[Result]:
    return [
        found
        for tasks in sizes
        for name, cls in methods().items()
        for found in _one(name, cls, tasks, rounds)
    ]


def _one(name: str, cls: type[Weighting], tasks: int, rounds: int) -> list[Result]:
    """One method at one size: ours and TorchJD's in turn."""
    ways = {"mtlcore": ours(cls, tasks)}
    if name in (theirs := rivals()):
        ways["torchjd"] = theirs[name]
    times: dict[str, list[float]] = {way: [] for way in ways}
    begun = time.perf_counter()
    for turn in range(-2, rounds):
        J, G = gradients(tasks, seed=turn + 2)
        order = list(ways)[:: 1 if turn % 2 else -1]
        for way in order:
            elapsed = seconds(functools.partial(ways[way], J, G))
            if turn >= 0:
                times[way].append(elapsed)
        if turn >= 2 and time.perf_counter() - begun > PATIENCE:
            break
    case = f"{name} T={tasks}"
    results = [
        result(
            case,
            way,
            [1e6 * value for value in values],
            "us",
            target=TARGETS.get(tasks) if way == "mtlcore" else None,
        )
        for way, values in times.items()
    ]
    if "torchjd" in ways:
        against = ratios(times, "mtlcore", "torchjd")
        results.append(result(case, "mtlcore / torchjd", against, "x", target=1.0))
    return results


def run(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.weighting",
        epilog="--json and --record: see benchmarks/harness.py",
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--tasks", type=int, nargs="+", default=SIZES)
    options, rest = parser.parse_known_args(argv)
    main("weighting", check, functools.partial(measure, options.rounds, options.tasks), argv=rest)


if __name__ == "__main__":
    run()
