"""Small exact problems on the Gramian of the task gradients, which weightings are made of.

They see T tasks, not P weights: float64, on the CPU. No autograd and no graph goes through them, so
none is registered with torch. What is done around them is in numpy where it can be: on so few
numbers torch's calls cost more than the arithmetic.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtlcore.errors import MtlcoreError
from mtlcore.ops import backend
from mtlcore.ops.checks import check_shape, check_tensor

TOLERANCE = 1e-9
"""Largest gap of a solution: the conditions of its minimum, in units of the gradients' norms."""

_ON_CPU = torch.empty(0, device="cpu")


class SolverError(MtlcoreError, ArithmeticError):
    """A solver ended too far from the solution of its problem."""


def simplex_minimum(G: Tensor) -> Tensor:
    """The shares of the tasks whose common gradient is shortest.

        w = argmin w'Gw    over  w >= 0, sum_i w_i = 1

    An active-set method that ends at the minimum itself. Minimum-norm point of a polytope: Wolfe,
    Mathematical Programming 11 (1976), https://doi.org/10.1007/BF01580381.

    Args:
        G: Gramian [..., T, T] float64 on the CPU, symmetric. Every leading index is a problem of
            its own. Only the directions of the gradients are compared, so norms may have any scale
            and spread; eigenvalues of the matrix of cosines below 1e-14 count as 1e-14.

    Returns:
        w [..., T]. A gradient of 0 is left out: its share is 0, or 1/T where all are 0. Where
        several w are minimal (a task twice), one of them.

    Raises:
        TypeError: G is no tensor, or not float64.
        ValueError: G has another shape or device, requires grad, or an entry is not finite.
        SolverError: the gap (slope of w'Gw along an edge, in units of the norms) is above 1e-9.
    """
    batch, G = _problems(G)
    return _solve("simplex_minimum", G).view(batch)


def cone_minimum(G: Tensor, U: Tensor) -> Tensor:
    """The shortest combinations of the gradients with weights that are not below given ones.

        V[r] = argmin v'Gv    over  v >= U[r]

    J'V[r] is the projection of J'U[r] onto the cone of the updates d with J d >= 0, those that
    harm no task. Nonnegative least squares: Lawson and Hanson, Solving Least Squares Problems
    (1974), chapter 23, https://doi.org/10.1137/1.9781611971217.

    Args:
        G: Gramian [..., T, T] as in `simplex_minimum`.
        U: [..., R, T] float64 on the CPU, with the leading axes of G; R problems on each G.

    Returns:
        V [..., R, T]. A gradient of 0 keeps its weight in U; so does every task where nothing is in
        conflict, to the bit. Where several V are minimal, one of them.

    Raises:
        TypeError, ValueError: as in `simplex_minimum`, for G and U.
        SolverError: the gap (the slopes, those of tasks above their bound too) is above 1e-9.
    """
    batch, G = _problems(G)
    check_tensor("U", U, ndim=len(batch) + 1, dtypes=(torch.float64,), like=G)
    check_shape("U", U, (*batch[:-1], U.shape[-2], batch[-1]), "[..., R, T]")
    if not U.numel():
        return U.clone()
    bounds = U.reshape(len(G), -1, batch[-1]).contiguous()
    return _solve("cone_minimum", G, bounds, shape=bounds.shape).view(U.shape)


def cagrad_minimum(G: Tensor, c: float) -> tuple[Tensor, Tensor]:
    """The shares of the tasks that limit an update near the mean gradient most.

        w = argmin g0·J'w + c |g0| |J'w|    over the simplex,    g0 = J'1/T

    All in G: w'G1/T + c sqrt(1'G1)/T sqrt(w'Gw), convex. The dual of the largest worst-case gain
    of an update within c |g0| of g0: Conflict-Averse Gradient Descent for Multi-task Learning
    (NeurIPS 2021), https://arxiv.org/abs/2110.14048. Solved exactly: a quadratic program whose
    parameter is found on the lines along which its solution moves.

    Args:
        G: Gramian [..., T, T] as in `simplex_minimum`.
        c: > 0.

    Returns:
        w [..., T], and the lengths |J'w| and |g0| [..., 2], of which the update
            g0 + c |g0| / |J'w| J'w is made. A gradient of 0, or below 1e-10 of the largest, has
            the share 0 (the objective is minimal to that precision). Where g0 vanishes (below 1e-7
            of the mean norm), so that the objective is 0 everywhere, all have 1/T. |J'w| is 0
            where it is below 1e-7 of the norms that it is made of: the rounding of G.

    Raises:
        TypeError, ValueError: as in `simplex_minimum`; c is not finite and > 0.
        SolverError: the gap of the quadratic program, or of its parameter, is above 1e-9.
    """
    _check_positive("c", c)
    batch, G = _problems(G)
    lengths = torch.from_numpy(np.zeros((*batch[:-1], 2)))
    w = _solve("cagrad_minimum", G, float(c), lengths.view(math.prod(batch[:-1]), 2))
    return w.view(batch), lengths


def balance(G: Tensor, exponent: float) -> Tensor:
    """The positive weights with which each task gains in a fixed proportion to its weight.

        G a = a^-exponent,    a > 0

    The minimum of the strictly convex 1/2 a'Ga - sum_i phi(a_i), phi'(a) = a^-exponent, by Newton's
    method with a line search. exponent 1: Multi-Task Learning as a Bargaining Game (ICML 2022),
    https://arxiv.org/abs/2202.01017; 1/alpha: Fair Resource Allocation in Multi-Task Learning (ICML
    2024), https://arxiv.org/abs/2402.15638.

    Args:
        G: Gramian [..., T, T] as in `simplex_minimum`; here eigenvalues of the matrix of cosines
            below 1e-10 count as 1e-10. Gradients that cancel (a mix of them is 0) have no solution
            without it; with it a_i is at most about 1e5 / |g_i| for exponent 1.
        exponent: > 0.

    Returns:
        a [..., T]; 0 for a gradient of 0.

    Raises:
        TypeError, ValueError: as in `simplex_minimum`; the exponent is not finite and > 0.
        SolverError: the two sides differ by more than 1e-9 of the terms that they are made of.
    """
    _check_positive("exponent", exponent)
    batch, G = _problems(G)
    return _solve("balance", G, float(exponent)).view(batch)


def equal_projections(G: Tensor) -> Tensor:
    """The shortest update that goes equally far along every gradient, in units of their norms.

        a = D^-1 C⁺ 1,    C = D^-1 G D^-1,  D = diag(|g_i|)

    J'a has the product 1 with each g_i / |g_i|. Where no such update exists, the products are as
    near to 1 as can be (least squares). Towards Impartial Multi-task Learning (ICLR 2021),
    https://openreview.net/forum?id=IMPnRXEWpvr; ConFIG: Towards Conflict-free Training of Physics
    Informed Neural Networks (ICLR 2025), https://arxiv.org/abs/2408.11104.

    Args:
        G: Gramian [..., T, T] as in `simplex_minimum`; here eigenvalues of the matrix of cosines
            up to 1e-13 of the largest count as 0 (gradients that depend on each other).

    Returns:
        a [..., T]; 0 for a gradient of 0. All 0 where no update comes nearer to 1 than none does
        (opposed gradients).

    Raises:
        TypeError, ValueError: as in `simplex_minimum`.
        SolverError: the gap (the slope of the squared distance of the products from 1) is above
            1e-9.
    """
    batch, G = _problems(G)
    return _solve("equal_projections", G).view(batch)


def pcgrad(G: Tensor, keys: Tensor) -> Tensor:
    """The sum of the gradients, each projected away from those that it conflicts with in turn.

        C = I;  for each i, for j != i by rising key:  if p = (C G)_ij < 0:  C_ij -= p / G_jj
        w_j = sum_i C_ij

    Gradient Surgery for Multi-Task Learning (NeurIPS 2020), https://arxiv.org/abs/2001.06782. A
    direct computation, without a gap. A gradient of 0 changes no other, and has the weight 1.

    Args:
        G: Gramian [..., T, T] as in `simplex_minimum`, used as it is.
        keys: [T, T-1] float64 on the CPU: a key for each of the others of a task, in their own
            order, for all problems. A task meets the lowest first; of equal ones, the first.

    Returns:
        w [..., T].

    Raises:
        TypeError, ValueError: as in `simplex_minimum`, for G and keys.
    """
    batch, G = _problems(G)
    weights = _empty(G.shape[:-1])
    _run("pcgrad", G, _checked_keys(keys, G), weights)
    return weights.view(batch)


def gradvac(G: Tensor, targets: Tensor, keys: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """The sum of the gradients, each turned until its cosines with the others reach targets.

        v_i = g_i;  for j by rising key:  phi = cos(v_i, g_j),  t = targets_ij;  if phi < t:
            v_i += |v_i| (t sqrt(1 - phi²) - phi sqrt(1 - t²)) / (|g_j| sqrt(1 - t²)) g_j
        targets_ij <- (1 - beta) t + beta phi

    Gradient Vaccine: Investigating and Improving Multi-task Optimization in Massively Multilingual
    Models (ICLR 2021), https://arxiv.org/abs/2010.05874; with targets of 0 it is `pcgrad`. Done in
    coefficients C of the g_j, like that. A gradient of 0, or a v_i that has become 0, has no
    cosine: the pair is passed over. Targets above 1 - 1e-6 count as that.

    Args:
        G: Gramian [..., T, T] as in `simplex_minimum`, used as it is.
        targets: cosines [..., T, T] float64 on the CPU; not written to.
        keys: [T, T-1] as in `pcgrad`.
        beta: the share of a new cosine in its target, in [0, 1].

    Returns:
        w [..., T] and the new targets [..., T, T].

    Raises:
        TypeError, ValueError: as in `pcgrad`; targets or beta lie outside [-1, 1] and [0, 1].
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must be in [0, 1], found {beta}")
    check_tensor("targets", targets, ndim=G.ndim, dtypes=(torch.float64,), like=G)
    check_shape("targets", targets, G.shape, "[..., T, T]")
    batch, G = _problems(G)
    weights, new = _empty(G.shape[:-1]), _empty(G.shape)
    given = targets.reshape(G.shape).contiguous()
    _run("gradvac", G, given, _checked_keys(keys, G), float(beta), weights, new)
    return weights.view(batch), new.view(targets.shape)


def _problems(G: Tensor) -> tuple[list[int], Tensor]:
    """The shape of weights [..., T], and G as [S, T, T]."""
    ndim = max(G.ndim, 2) if isinstance(G, Tensor) else 2
    check_tensor("G", G, ndim=ndim, dtypes=(torch.float64,), like=_ON_CPU)
    if G.shape[-1] != G.shape[-2]:
        raise ValueError(f"G must be square in its last two dimensions, found {list(G.shape)}")
    count = -1 if G.numel() else 0
    return list(G.shape[:-1]), G.reshape(count, *G.shape[-2:]).contiguous()


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be finite and greater than 0, found {value}")


def _checked_keys(keys: Tensor, G: Tensor) -> Tensor:
    tasks = G.shape[-1]
    check_tensor("keys", keys, ndim=2, dtypes=(torch.float64,), like=G)
    check_shape("keys", keys, (tasks, max(tasks - 1, 0)), "[T, T-1]")
    return keys.contiguous()


def _run(op: str, G: Tensor, *arguments: Any) -> None:
    if G.numel():  # else there is nothing to fill
        backend.kernel(op, G.device)(G, *arguments)


def _empty(shape: Sequence[int]) -> Tensor:
    return torch.from_numpy(np.empty(shape))


def _solve(op: str, G: Tensor, *arguments: Any, shape: Sequence[int] | None = None) -> Tensor:
    """What the kernel fills, [S, T] or `shape`, and whose gaps are small."""
    count, tasks = G.shape[:2]
    solution, gaps = _empty(shape or (count, tasks)), np.zeros(count)
    _run(op, G, *arguments, solution, torch.from_numpy(gaps))
    if not all(gap <= TOLERANCE for gap in gaps.tolist()):
        worst = gaps.argmax()
        which = "" if count == 1 else f" (problem {worst} of {count})"
        raise SolverError(
            f"op {op}: no solution for {tasks} tasks{which}: its gap is {gaps[worst]:.2g}, "
            f"at most {TOLERANCE:g} is accepted\n  fix: G must be symmetric, J Jᵀ of some J"
        )
    return solution


def _check_values(name: str, values: Any) -> None:
    """What the compiled core checks by itself, for the reference."""
    if name == "targets":
        if not (abs(values) <= 1).all():
            raise ValueError("targets must be cosines in [-1, 1]")
    elif not (finite := np.isfinite(values)).all():
        raise ValueError(f"{name} must be finite, found {values[~finite][0]}")


def _declare(op: str, outputs: int, *, threaded: bool = False) -> None:
    """Its kernels, whose last arguments are so many outputs."""

    def compiled(*arguments: Any) -> None:
        threads = [torch.get_num_threads()] if threaded else []
        getattr(backend.core(), op)(*arguments, *threads)

    def reference(*arguments: Any) -> None:
        from mtlcore.ops.reference import solvers

        solver = getattr(solvers, op)
        given = [x.numpy() if isinstance(x, Tensor) else x for x in arguments[:-outputs]]
        for name, values in zip(inspect.signature(solver).parameters, given, strict=True):
            _check_values(name, values)
        found = solver(*given)
        for out, values in zip(
            arguments[-outputs:], found if outputs > 1 else [found], strict=True
        ):
            out.copy_(torch.from_numpy(values))

    backend.declare(op, cpp=compiled, reference=reference)


for _op in ("simplex_minimum", "balance", "equal_projections", "gradvac"):
    _declare(_op, outputs=2)
_declare("cagrad_minimum", outputs=3)
_declare("cone_minimum", outputs=2, threaded=True)
_declare("pcgrad", outputs=1)
