"""The mean of the task gradients, each projected to conflict with none, found exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mtlcore.components import NotNegative, Scope, Weighting

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from mtlcore.gradients import Gradients
    from mtlcore.run import Run

# In units of the norms of the gradients: conflicts below it are rounding.
TOLERANCE = 1e-12
# Smallest eigenvalue of the Gramian of unit gradients: keeps duplicates of a task solvable.
FLOOR = 1e-14


class UPGrad(Weighting):
    """Project each task gradient onto the directions that harm no task, then take their mean.

    Jacobian Descent for Multi-Objective Optimization (arXiv 2024),
    https://arxiv.org/abs/2406.16232

        w = 1/T sum_i v_i,     v_i = argmin v'Gv  over  v >= e_i

    Jᵀ v_i is the projection of gradient i onto the cone of all d with J d >= 0, so the update
    raises the loss of no task, to first order. With v = e_i + x each problem is a least-squares
    problem in x >= 0, which an active-set method solves exactly (to rounding) for all tasks and
    scopes at once.

    reg_eps: added to the diagonal of G / trace G, as TorchJD does (1e-4 there). 0 solves the
        problem as it is written; above 0 weights stay small when tasks nearly oppose each other,
        and the update may then harm a task a little.
    scope: where conflicts are looked for: in all shared weights ("model", the paper's), or in each
        layer or LoRA factor by itself.
    Shapes: G [T', T'] or [S, T', T'], weights [T'] or [S, T'].
    Native scale: that of the mean of the gradients: without conflicts every weight is 1/T, T all
        tasks of the run.
    """

    name = "upgrad"
    paper = (
        "Jacobian Descent for Multi-Objective Optimization (arXiv 2024), "
        "https://arxiv.org/abs/2406.16232"
    )
    needs = "gramian"
    native_scale = "T'/T without conflicts, more with them: the mean of projected gradients"
    homogeneity = 0

    def __init__(self, *, reg_eps: NotNegative = 0.0, scope: Scope = "model") -> None:
        self.reg_eps = reg_eps
        self.scope = scope

    def mtlcore_weigh_tasks(self, run: Run, gradients: Gradients) -> Tensor:
        """[T'] or [S, T']: the v_i, summed, times 1/T."""
        gramian = gradients.gramian(self.scope).numpy()
        if self.reg_eps:
            trace = np.trace(gramian, axis1=-2, axis2=-1)[..., None, None]
            gramian = gramian + self.reg_eps * trace * np.eye(gramian.shape[-1])
        return torch.from_numpy(upgrad_coefficients(gramian).sum(axis=-2) / len(run.tasks))


def upgrad_coefficients(gramian: NDArray[np.float64]) -> NDArray[np.float64]:
    """V [..., T, T] from G [..., T, T]: row i is argmin v'Gv over v >= e_i."""
    tasks = gramian.shape[-1]
    # In units of each gradient's norm, so that no scale and no spread of norms matters.
    norms = np.sqrt(np.maximum(np.diagonal(gramian, axis1=-2, axis2=-1), 0))  # [..., T]
    units = np.where(norms > 0, norms, 1)
    cosines = gramian / units[..., :, None] / units[..., None, :]
    # G comes of float32 gradients: rounding may leave it with eigenvalues below 0.
    values, vectors = np.linalg.eigh(cosines)
    cosines = (vectors * np.maximum(values, FLOOR)[..., None, :]) @ vectors.swapaxes(-1, -2)
    # A zero gradient has no part in any problem; its floor stands on the diagonal alone.
    problems = np.repeat(cosines.reshape(-1, 1, tasks, tasks), tasks, axis=1)  # [S, T, T, T]
    linear = cosines.reshape(-1, tasks, tasks)  # [S, T, T]: row i is C e_i
    added = nonnegative_minimum(problems.reshape(-1, tasks, tasks), linear.reshape(-1, tasks))
    solved = np.eye(tasks) + added.reshape(gramian.shape)  # in units of the norms
    coefficients: NDArray[np.float64] = solved * units[..., :, None] / units[..., None, :]
    return coefficients


def nonnegative_minimum(
    quadratic: NDArray[np.float64], linear: NDArray[np.float64]
) -> NDArray[np.float64]:
    """x [B, T] that minimises 1/2 x'Qx + c'x over x >= 0, for each Q [B, T, T] and c [B, T].

    The active-set method of Lawson and Hanson (1974) on the normal equations; Q is positive
    definite with a diagonal of about 1. Each problem frees the coordinate with the steepest
    slope, moves to the minimum over its free coordinates, and stops on the way where one of them
    would turn negative, which is then held at 0 again. The problems do so side by side: each pass
    solves one linear system for every problem that is not done.
    """
    size = linear.shape[-1]
    result = np.zeros_like(linear)
    going = np.arange(len(linear))  # problems that are not done
    x, free = np.zeros_like(linear), np.zeros(linear.shape, dtype=bool)
    at_minimum: Any = np.ones(len(linear), dtype=bool)  # over its free coordinates, [B]
    refused = np.zeros(linear.shape, dtype=bool)  # freed to no effect: rounding, not a slope
    for _ in range(20 * size):
        slopes = np.einsum("bij,bj->bi", quadratic, x) + linear
        slopes[free | refused] = 0
        steepest = slopes.argmin(axis=1)
        steep = slopes[np.arange(len(x)), steepest] < -TOLERANCE * (1 + x.max(axis=1))
        done = at_minimum & ~steep
        if done.any():
            result[going[done]] = x[done]
            keep = ~done
            if not keep.any():
                return result
            going, x, free, refused = going[keep], x[keep], free[keep], refused[keep]
            quadratic, linear = quadratic[keep], linear[keep]
            steepest, at_minimum = steepest[keep], at_minimum[keep]
        rows = np.arange(len(x))
        newly = np.flatnonzero(at_minimum)
        free[newly, steepest[newly]] = True
        both = free[:, :, None] & free[:, None, :]
        system = np.where(both, quadratic, np.eye(size))
        target = np.linalg.solve(system, np.where(free, -linear, 0)[..., None])[..., 0]  # [B, T]
        lost = newly[target[newly, steepest[newly]] <= 0]
        free[lost, steepest[lost]] = False
        refused[lost, steepest[lost]] = True
        target[lost] = x[lost]
        # How far each may go before a free coordinate turns negative.
        blocking = free & (target <= 0)
        steps = np.where(blocking, x / np.where(blocking, x - target, 1), np.inf)
        first = steps.argmin(axis=1)
        step = np.minimum(steps[rows, first], 1)
        x = np.where(free, x + step[:, None] * (target - x), 0)
        at_minimum = ~blocking.any(axis=1)
        x[at_minimum] = target[at_minimum]
        stopped = np.flatnonzero(~at_minimum)
        free[stopped, first[stopped]] = False
        free &= x > 0
        x = np.where(free, x, 0)
        refused[np.setdiff1d(rows, lost)] = False
    result[going] = x  # feasible, and better than where it began: rounding keeps it moving
    return result
