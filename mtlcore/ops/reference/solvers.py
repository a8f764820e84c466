"""Specification of `mtlcore.ops.solvers`, in numpy.

Problems come side by side: G [S, T, T] float64, symmetric. Solvers return their gaps [S] beside the
solution: how far the conditions of the minimum are from being met, in units of the norms.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Smallest eigenvalue of the Gramian of unit gradients: rounding may leave some below 0, and a task
# that is there twice has 0.
FLOOR = 1e-14
# The same for `balance`, whose weights grow without bound as it goes to 0.
BALANCE_FLOOR = 1e-10
# Norm, by the largest, that has a say in the objective of CAGrad.
LEAST = 1e-10
# Eigenvalue of the cosines, by the largest, that counts as 0 in `equal_projections`: what the
# rounding of float32 gradients makes.
RANK = 1e-13
# There, the largest weight of a unit gradient: less is the rounding of a solution that is 0.
NO_DIRECTION = 1e-12
# In units of the norms of the gradients: slopes below it are rounding.
TOLERANCE = 1e-12
# |sum|^2 over (sum of norms)^2: what is left of gradients that cancel is rounding.
VANISHED = 1e-14
# Of a cosine: no finite multiple of the other gradient reaches 1.
MAX_TARGET = 1 - 1e-6


class Units(NamedTuple):
    """Gramians in units of the gradients' norms."""

    there: NDArray[np.bool_]  # [S, T], gradients that are not 0
    norms: Array  # [S, T], 1 where it is 0
    cosines: Array  # [S, T, T]; a gradient of 0 has the floor on the diagonal, and 0 elsewhere


class Minimum(NamedTuple):
    """Solutions of `nonnegative_minimum`."""

    x: Array  # [B, T]
    slopes: Array  # [B, T], 0 where x > 0, and >= 0
    scale: Array  # [B], what the slopes are made of


def units_of(G: Array, floor: float, least: float = 0) -> Units:
    """Norms and cosines; eigenvalues of the cosines are raised to `floor`, unless it is 0.

    `least`: by the largest norm, smaller ones count as 0.
    """
    norms = np.sqrt(np.maximum(np.diagonal(G, axis1=-2, axis2=-1), 0))
    there = norms > least * norms.max(axis=-1, initial=0, keepdims=True)
    norms = np.where(there, norms, 1)
    cosines = G / norms[..., :, None] / norms[..., None, :]
    cosines = np.where(there[..., :, None] & there[..., None, :], cosines, 0)
    if floor == 0:
        return Units(there, norms, cosines)
    values, vectors = np.linalg.eigh(cosines)
    missing = np.maximum(floor - values, 0)[..., None, :]
    return Units(there, norms, cosines + (vectors * missing) @ vectors.swapaxes(-1, -2))


def levels(units: Units) -> Array:
    """1/|g_i| [S, T] in units of the smallest norm: y_i = w_i / a_i weigh the unit gradients."""
    smallest = np.where(units.there, units.norms, np.inf).min(axis=-1, keepdims=True)
    a: Array = np.where(units.there, smallest / units.norms, 0)
    return a


def nonnegative_minimum(Q: Array, c: Array, level: Array | None = None) -> Minimum:
    """x [B, T] that minimises 1/2 x'Qx + c'x over x >= 0; with a level a [B, T], over a'x = 1 too.

    The active-set method of Lawson and Hanson (1974) on the normal equations. Q is positive
    definite with a diagonal of about 1 (C + aa' with a level: a'x = 1 makes that the problem of
    C). Each problem frees the coordinate with the steepest slope, moves to the minimum over its
    free coordinates, and stops on the way where one of them would turn negative, which is then
    held at 0 again. The problems do so side by side: each pass solves one linear system for every
    problem that is not done.
    """
    count, size = c.shape
    x, free = np.zeros_like(c), np.zeros(c.shape, dtype=bool)
    if level is not None:
        start = level.argmax(axis=1)
        free[np.arange(count), start] = True
        x[free] = 1 / level.max(axis=1)
    pull = np.zeros(count)  # the multiplier of a'x = 1
    going = np.arange(count)  # problems that are not done
    at_minimum: Any = np.full(count, level is None)  # over its free coordinates, [B]
    refused = np.zeros(c.shape, dtype=bool)  # freed to no effect: rounding, not a slope

    def slopes_of(which: NDArray[np.int64]) -> Array:
        slopes: Array = np.einsum("bij,bj->bi", Q[which], x[which]) + c[which]
        return slopes if level is None else slopes - pull[which, None] * level[which]

    def scale_of(which: NDArray[np.int64]) -> Array:
        scale: Array = np.maximum(x[which], abs(c[which])).max(axis=1, initial=1)
        return scale

    for _ in range(50 * (size + 1)):
        slopes = np.where(free[going] | refused[going], 0, slopes_of(going))
        steepest = slopes.argmin(axis=1)
        steep = slopes[np.arange(len(going)), steepest] < -TOLERANCE * scale_of(going)
        keep = steep | ~at_minimum[going]
        going, steepest = going[keep], steepest[keep]
        if not len(going):
            break
        rows = np.arange(len(going))
        newly = np.flatnonzero(at_minimum[going])
        free[going[newly], steepest[newly]] = True
        held = free[going]
        system = np.where(held[:, :, None] & held[:, None, :], Q[going], np.eye(size))
        pulling = np.zeros_like(c[going]) if level is None else level[going]
        right = np.where(held[:, :, None], np.stack([-c[going], pulling], axis=-1), 0)
        target, along = np.moveaxis(np.linalg.solve(system, right), -1, 0)  # [B, T] each
        new_pull = pull[going]
        if level is not None:
            a = level[going]
            new_pull = (1 - (a * target).sum(axis=1)) / (a * along).sum(axis=1)
            target = target + new_pull[:, None] * along
        lost = newly[target[newly, steepest[newly]] <= 0]
        free[going[lost], steepest[lost]] = False
        refused[going[lost], steepest[lost]] = True
        target[lost], new_pull[lost] = x[going[lost]], pull[going[lost]]
        # How far each may go before a free coordinate turns negative.
        held = free[going]
        here = x[going]
        blocking = held & (target <= 0)
        steps = np.where(blocking, here / np.where(blocking, here - target, 1), np.inf)
        first = steps.argmin(axis=1)
        step = np.minimum(steps[rows, first], 1)
        stopped = blocking.any(axis=1)
        moved = np.where(stopped[:, None], here + step[:, None] * (target - here), target)
        held[rows[stopped], first[stopped]] = False
        held &= moved > 0
        x[going], free[going] = np.where(held, moved, 0), held
        at_minimum[going], pull[going] = ~stopped, new_pull
        refused[np.setdiff1d(going, going[lost])] = False
    everyone = np.arange(count)  # if not done: feasible, and better than where it began
    return Minimum(x, slopes_of(everyone), scale_of(everyone))


def gap_of(found: Minimum) -> Array:
    """How far from minimal: a slope that leads down, or one where x > 0. [B]"""
    x, slopes, scale = found
    share = x / np.maximum(x.max(axis=1, initial=0), np.finfo(float).tiny)[:, None]
    gaps: Array = np.maximum(-slopes, abs(slopes) * share).max(axis=1, initial=0) / scale
    return gaps


def simplex_minimum(G: Array) -> tuple[Array, Array]:
    """w [S, T] = argmin w'Gw over the simplex."""
    units = units_of(G, FLOOR)
    a = levels(units)
    some = units.there.any(axis=1)
    w = np.full(a.shape, 1 / max(a.shape[1], 1))
    gaps = np.zeros(len(a))
    found = nonnegative_minimum(_with_level(units.cosines, a)[some], 0 * a[some], a[some])
    w[some] = _shares(a[some], found.x)
    gaps[some] = gap_of(found)
    return w, gaps


def cone_minimum(G: Array, U: Array) -> tuple[Array, Array]:
    """V [S, R, T], each row argmin v'Gv over v >= u, u the same row of U [S, R, T]."""
    units = units_of(G, FLOOR)
    norms = units.norms[:, None]
    bounds = np.where(units.there[:, None], U * norms, 0)
    top = abs(bounds).max(axis=-1, initial=0, keepdims=True)
    top = np.where(top > 0, top, 1)
    linear = bounds / top @ units.cosines  # with x = v - u: 1/2 x'Cx + (C u)'x over x >= 0
    problems = np.broadcast_to(units.cosines[:, None], (*U.shape, U.shape[-1]))
    flat = U.shape[0] * U.shape[1], U.shape[-1]
    found = nonnegative_minimum(problems.reshape(*flat, -1), linear.reshape(flat))
    gaps = gap_of(found).reshape(U.shape[:2]).max(axis=1, initial=0)
    return U + found.x.reshape(U.shape) * top / norms, gaps


def cagrad_minimum(G: Array, c: float) -> tuple[Array, Array, Array]:
    """The lengths of `cagrad_shares` [S, 2], |J'w| (0 where it is rounding) and |g0|; w; gaps."""
    w, gaps = cagrad_shares(G, c)
    both = np.stack([w, np.full(w.shape, 1 / max(G.shape[1], 1))], axis=1)
    squared = np.maximum(np.einsum("ski,sij,skj->sk", both, G, both), 0)
    norms = np.sqrt(np.maximum(np.diagonal(G, axis1=1, axis2=2), 0))
    squared[:, 0] *= squared[:, 0] > VANISHED * (w * norms).sum(axis=1) ** 2
    return np.sqrt(squared), w, gaps


def cagrad_shares(G: Array, c: float) -> tuple[Array, Array]:
    """w [S, T] = argmin w'G1/T + c |g0| sqrt(w'Gw) over the simplex.

    With sqrt(s) = min over t > 0 of (s/t + t)/2 this is a quadratic program for each tau = t/k,
    k = c |g0|; the tau at which |J'w| = k tau is found by bisection.
    """
    w = np.full(G.shape[:2], 1 / max(G.shape[1], 1))
    gaps = np.zeros(len(G))
    units = units_of(G, FLOOR, LEAST)
    a, C = levels(units), units.cosines
    mean = np.where(units.there, 1 / np.where(units.there, a, 1), 0) / max(G.shape[1], 1)
    b = np.einsum("sij,sj->si", C, mean)
    squared = (mean * b).sum(axis=1)
    some = squared > VANISHED * mean.sum(axis=1) ** 2  # else all weights are as good
    if not some.any():
        return w, gaps
    a, C, b, Q = a[some], C[some], b[some], _with_level(C, a)[some]
    k = c * np.sqrt(squared[some])
    # |J'w| is at most the largest norm, but for rounding of C.
    low, high = np.zeros(len(k)), 2 * mean[some].max(axis=1) * G.shape[1] / k
    for _ in range(100):
        tau = (low + high) / 2
        found = nonnegative_minimum(Q, tau[:, None] * b, a)
        length = np.maximum(np.einsum("si,sij,sj->s", found.x, C, found.x), 0)
        longer = length > (k * tau) ** 2
        low, high = np.where(longer, tau, low), np.where(longer, high, tau)
    w[some] = _shares(a, found.x)
    gaps[some] = np.maximum(gap_of(found), abs(length - (k * tau) ** 2) / found.scale**2)
    return w, gaps


def balance(G: Array, exponent: float) -> tuple[Array, Array]:
    """a [S, T] > 0 with G a = a^-exponent; 0 for a gradient of 0."""
    units = units_of(G, BALANCE_FLOOR)
    a, gaps = np.zeros(G.shape[:2]), np.zeros(len(G))
    for s, there in enumerate(units.there):
        if there.any():
            norms, cosines = units.norms[s][there], units.cosines[s][np.ix_(there, there)]
            a[s, there], gaps[s] = _balance(cosines, norms, exponent)
    return a, gaps


def _balance(C: Array, norms: Array, e: float) -> tuple[Array, float]:
    """Newton's method on 1/2 y'Cy - sum_i m_i phi(y_i), phi'(y) = y^-e, convex; y_i = a_i |g_i|."""
    logs = (e - 1) * np.log(norms)
    m = np.exp(logs - logs.mean())
    y = m ** (1 / (1 + e))
    # The best point on the ray through y: of the right size where tasks nearly cancel.
    y *= ((m * y ** (1 - e)).sum() / (y @ C @ y)) ** (1 / (1 + e))
    gap = np.inf
    for _ in range(1000):
        slopes, terms = C @ y - m * y**-e, abs(C) @ y + m * y**-e
        last, gap = gap, float((abs(slopes) / terms).max())
        if gap <= 1e-15 or (gap <= 1e-11 and gap >= last / 2):
            break
        step = np.linalg.solve(C + np.diag(e * m * y ** (-e - 1)), slopes)  # against it y moves
        down = step > 0
        longest = (0.95 * y[down] / step[down]).min(initial=1)
        # Each coordinate as far as it may go, which some need to end far below the others; else
        # all by the same factor.
        for move in [np.minimum(step, 0.999 * y), *(longest * step * 0.5**k for k in range(60))]:
            after = C @ (y - move) - m * (y - move) ** -e
            # Convex along a move: where its slope, but for rounding, still points on, the objective
            # has fallen.
            before, rounding = move @ slopes, 1e-15 * (abs(move) @ terms)
            if before > 0 and -move @ after <= 0.1 * before + rounding:
                break
        else:
            break
        y = y - move
    return y * np.exp(logs.mean() / (1 + e)) / norms, gap


def equal_projections(G: Array) -> tuple[Array, Array]:
    """a [S, T] = D^-1 C⁺ 1; 0 for a gradient of 0."""
    there, norms, C = units_of(G, 0)
    values, vectors = np.linalg.eigh(C)
    inverses = 1 / np.where(values > RANK * values[:, -1:], values, np.inf)
    along = np.einsum("sje,sj->se", vectors, there)
    y = np.where(there, np.einsum("sie,se->si", vectors, inverses * along), 0)
    size = abs(y).max(axis=1, initial=0)
    slopes = np.einsum("sij,sj->si", C, np.einsum("sij,sj->si", C, y) - there)
    gaps = abs(slopes).max(axis=1, initial=0) / np.maximum(size, 1)
    return np.where((size > NO_DIRECTION)[:, None], y / norms, 0), gaps


def pcgrad(G: Array, keys: Array) -> Array:
    """Weights [S, T]: the columns of C, summed; task i meets the others by rising `keys[i]` [T-1].

    All tasks and problems take their k-th projection at once: they do not read each other's C.
    """
    tasks = G.shape[-1]
    task = np.arange(tasks)
    squares = np.diagonal(G, axis1=-2, axis2=-1)  # |g_j|^2 [S, T]
    # A zero gradient conflicts with none: its products are 0, and so is what is taken away.
    inverse = 1 / np.where(squares > 0, squares, 1)
    coefficients = np.zeros(G.shape) + np.eye(tasks)  # C [S, T, T]
    for other in _orders(keys).T:  # [T]: the task j that each i meets now
        products = np.einsum("...ij,...ij->...i", coefficients, G[..., other, :])
        coefficients[..., task, other] -= np.minimum(products, 0) * inverse[..., other]
    weights: Array = coefficients.sum(axis=-2)
    return weights


def gradvac(G: Array, targets: Array, keys: Array, beta: float) -> tuple[Array, Array]:
    """Weights [S, T] and the new targets [S, T, T], likewise."""
    tasks = G.shape[-1]
    task = np.arange(tasks)
    norms = np.sqrt(np.maximum(np.diagonal(G, axis1=-2, axis2=-1), 0))
    coefficients = np.zeros(G.shape) + np.eye(tasks)
    targets = targets.copy()
    for other in _orders(keys).T:
        products = np.einsum("...ij,...ij->...i", coefficients, G[..., other, :])
        squares = np.einsum("...ij,...jk,...ik->...i", coefficients, G, coefficients)
        total = np.einsum("...ij,...j->...i", abs(coefficients), norms)
        others = norms[..., other]
        met = (others > 0) & (squares > VANISHED * total**2)  # else there is no cosine
        norm = np.sqrt(np.where(met, squares, 1))
        cosine = np.clip(products / norm / np.where(met, others, 1), -1, 1)
        stored = targets[..., task, other]
        target = np.minimum(stored, MAX_TARGET)
        sine, target_sine = np.sqrt(1 - cosine**2), np.sqrt(1 - target**2)
        added = norm * (target * sine - cosine * target_sine) / target_sine
        added = added / np.where(met, others, 1)
        coefficients[..., task, other] += np.where(met & (cosine < target), added, 0)
        targets[..., task, other] = np.where(met, (1 - beta) * stored + beta * cosine, stored)
    return coefficients.sum(axis=-2), targets


def _orders(keys: Array) -> NDArray[np.int64]:
    """The others of each task [T, T-1], lowest key first."""
    orders = keys.argsort(axis=1, kind="stable")
    return orders + (orders >= np.arange(len(keys))[:, None])


def _with_level(C: Array, a: Array) -> Array:
    return C + a[..., :, None] * a[..., None, :]


def _shares(a: Array, y: Array) -> Array:
    """Weights of sum 1 from weights of the unit gradients."""
    w: Array = a * y / (a * y).sum(axis=-1, keepdims=True)
    return w
