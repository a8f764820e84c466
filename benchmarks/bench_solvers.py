"""Speed of the solvers on G beside TorchJD's: `pytest benchmarks/bench_solvers.py`.

Each case is checked before it is timed: the compiled solver against the reference, to which TorchJD
comes as near as its settings let it.
"""

from __future__ import annotations

import pytest
import torch

from mtlcore import ops
from mtlcore.ops import use_backend

TASKS = (2, 8, 32, 64)


def gramian(tasks):
    """G [T, T] of gradients in conflict."""
    J = torch.randn(
        tasks, 1000, generator=torch.Generator().manual_seed(tasks), dtype=torch.float64
    )
    J -= 0.9 * J.mean(0)
    return J @ J.T


def keys(tasks):
    """The others of a task in their own order."""
    return torch.zeros(tasks, tasks - 1, dtype=torch.float64)


def eye(G):
    return torch.eye(len(G), dtype=torch.float64)


OURS = {
    "simplex_minimum": lambda G: ops.simplex_minimum(G),
    "cone_minimum": lambda G: ops.cone_minimum(G, eye(G)).mean(0),
    "cagrad_minimum": lambda G: ops.cagrad_minimum(G, 0.4)[0],
    "balance": lambda G: ops.balance(G, 0.5),
    "pcgrad": lambda G: ops.pcgrad(G, keys(len(G))),
    "gradvac": lambda G: ops.gradvac(G, 0 * G, keys(len(G)), 0.5)[0],
}


def torchjd_weightings():
    """TorchJD's weighting for each solver, made when it is called for."""
    aggregation = pytest.importorskip("torchjd.aggregation")
    return {
        "simplex_minimum": aggregation.MGDAWeighting,
        "cone_minimum": aggregation.UPGradWeighting,
        "balance": lambda: aggregation.FairGradWeighting(alpha=2.0),
        "pcgrad": aggregation.PCGradWeighting,
        "gradvac": aggregation.GradVacWeighting,
    }


def norm(G, w):
    return (w @ G @ w).clamp(min=0).sqrt()


# The reference is not made to be fast.
@pytest.mark.parametrize(
    ("name", "tasks"), [*(("cpp", T) for T in TASKS), ("reference", 2), ("reference", 8)]
)
@pytest.mark.parametrize("op", OURS)
def test_ours(benchmark, op, name, tasks):
    benchmark.group = f"{op} T={tasks} fp64 cpu"
    G = gramian(tasks)
    with use_backend(name):
        found = OURS[op](G)
        with use_backend("reference"):
            expected = OURS[op](G)
        assert norm(G, found - expected) <= 1e-7 * norm(G, expected)
        benchmark.pedantic(OURS[op], args=(G,), warmup_rounds=2, rounds=15)


@pytest.mark.parametrize("tasks", TASKS)
@pytest.mark.parametrize("op", sorted(OURS.keys() - {"cagrad_minimum"}))  # it asks for cvxpy there
def test_torchjd(benchmark, op, tasks):
    benchmark.group = f"{op} T={tasks} fp64 cpu"
    G = gramian(tasks)
    weighting = torchjd_weightings()[op]()
    found, exact = weighting(G), OURS[op](G)
    if op in ("pcgrad", "gradvac"):  # in a random order
        assert torch.isfinite(found).all()
    else:  # its default settings: MGDA ends early, UPGrad adds 1e-4 to the diagonal
        assert norm(G, found - exact) <= 0.5 * norm(G, exact)
    benchmark.pedantic(weighting, args=(G,), warmup_rounds=1, rounds=5)
