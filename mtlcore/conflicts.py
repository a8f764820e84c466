"""How the task gradients of a step stand to each other, and what the weighting made of them.

All of it is read off the Gramian G = J Jᵀ of the shared weights, where a component of the run has
asked for that; nothing here measures it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtlcore.gradients import Direction
from mtlcore.records import UNTURNED

if TYPE_CHECKING:
    from mtlcore.gradients import Gradients

CANCELLED = 1e-7
"""Share of a squared norm that is left of a sum of gradients where they cancel: G is no finer."""


def pair_cosines(gramian: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines [..., T', T'] and which pairs have one: both gradients are not 0."""
    norms = gramian.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    products = norms[..., :, None] * norms[..., None, :]
    met = products > 0
    return torch.where(met, gramian / products.where(met, 1), 0), met


def pair_counts(gramians: Tensor) -> Tensor:
    """[S, 3] pairs of gradients that are not 0, conflicts and sum of cosines, of G [S, T', T']."""
    cosines, met = pair_cosines(gramians)
    first, second = torch.triu_indices(gramians.shape[1], gramians.shape[1], 1)
    cosines, met = cosines[:, first, second], met[:, first, second]  # [S, pairs]
    return torch.stack([met.sum(1), (cosines < 0).sum(1), cosines.sum(1)], dim=1).double()


def update_cosine(gramian: Tensor, weights: Tensor) -> float | None:
    """Cosine of the update Jᵀ w with the mean gradient Jᵀ 1 / T', from G alone.

        w'G1 / (sqrt(w'Gw) sqrt(1'G1)),    each of the three summed over the scopes

    Args:
        gramian: G [T', T'], or [S, T', T'] for weights by scope.
        weights: w [T'], or [S, T'].

    Returns:
        -1 .. 1; None if the update or the mean gradient is 0, or so small beside the gradients that
        it is of rounding errors.
    """
    norms = gramian.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    ones = torch.ones_like(weights)

    def product(left: Tensor, right: Tensor) -> float:
        return float(torch.einsum("...i,...ij,...j->", left, gramian, right))

    squares = []
    for vector in (weights, ones):
        square = product(vector, vector)
        without_angles = float((vector.abs() * norms).sum(-1).square().sum())
        if not square > CANCELLED * without_angles:
            return None
        squares.append(square)
    cosine = product(weights, ones) / (math.sqrt(squares[0]) * math.sqrt(squares[1]))
    return min(1.0, max(-1.0, cosine))


class PairSums:
    """Sums over the steps by pair of tasks; a pair counts where both have a gradient that is not 0.

    sums: [3, T, T] steps together, cosines (on the diagonal the norms), conflicts.
    """

    def __init__(self, tasks: int) -> None:
        self.steps = 0
        self.sums = torch.zeros(3, tasks, tasks, dtype=torch.float64)

    def add(self, present: Sequence[int], gramian: Tensor) -> None:
        """Take in a step with G [T', T'] of the present tasks."""
        tasks = torch.as_tensor(present, dtype=torch.long)
        at = tasks[:, None], tasks
        cosines, met = pair_cosines(gramian)
        norms = gramian.diagonal().clamp(min=0).sqrt()
        number, cosine_sums, conflicts = self.sums
        number[at] += met.double()
        cosine_sums[at] += torch.where(torch.eye(len(norms), dtype=torch.bool), norms, cosines)
        conflicts[at] += (cosines < 0).double()
        self.steps += 1

    def means(self) -> dict[str, Any]:
        """Means by pair, None for one that never met; norms by task; the number of steps."""
        number, cosine_sums, conflicts = self.sums
        own = number.diagonal()
        norms = cosine_sums.diagonal() / own.clamp(min=1)
        cosine_sums = cosine_sums.clone().fill_diagonal_(0) + own.diag()  # 1 with itself
        return {
            "steps": self.steps,
            "norm": [float(n) if k else None for n, k in zip(norms, own, strict=True)],
            "together": number.long().tolist(),
            "cosine": means(cosine_sums, number),
            "conflict": means(conflicts, number),
        }


def means(sums: Tensor, number: Tensor) -> list[list[float | None]]:
    """Sums [T, T] over how many they are of; None where they are of none."""
    return [
        [value / count if count else None for value, count in zip(row, counts, strict=True)]
        for row, counts in zip(sums.tolist(), number.tolist(), strict=True)
    ]


class Effect:
    """Follows conflicts, weights and updates through a run: did its weighting change anything?"""

    def __init__(self, tasks: Sequence[str]) -> None:
        self.tasks = list(tasks)
        self.pairs = PairSums(len(tasks))
        self.saw_several_tasks = False
        self.weights_differed = False
        self.differed_unmeasured = False  # in a step whose update has no cosine
        self.compared = 0  # steps with two gradients that are not 0, and sums over these
        self.conflict_rates = self.norm_spreads = 0.0
        self.turned = 0  # steps whose update has a cosine, and the sums of these and their angles
        self.cosines = self.degrees = 0.0

    def see(self, gradients: Gradients, weights: Tensor | Direction | None) -> dict[str, Any]:
        """Take in a step with its weights; what a `StepRecord` tells of its conflicts."""
        if weights is None:  # no update, or nothing to weigh
            return {}
        self.saw_several_tasks |= len(gradients.present) > 1
        gramian = gradients.known_gramian()
        told: dict[str, Any] = {}
        if gramian is not None and bool(torch.isfinite(gramian).all()):
            told = self._measure(gradients, gramian, weights)
        differ = isinstance(weights, Direction) or not _all_alike(weights)
        self.weights_differed |= differ
        lost = gramian is None or isinstance(weights, Direction) or not weights.any()
        self.differed_unmeasured |= differ and lost
        if isinstance(weights, Tensor) and weights.ndim == 2:
            spread = weights.std(0, correction=0).tolist()
            told["weight_spread"] = self._by_task(gradients.present, spread)
        return told

    def _measure(
        self, gradients: Gradients, gramian: Tensor, weights: Tensor | Direction
    ) -> dict[str, Any]:
        self.pairs.add(gradients.present, gramian)
        norms = gramian.diagonal().clamp(min=0).sqrt()
        told: dict[str, Any] = {"task_norms": self._by_task(gradients.present, norms.tolist())}
        pairs, conflicts, _ = pair_counts(gramian[None])[0].tolist()
        if not pairs:
            return told
        told["conflict_rate"] = conflicts / pairs
        told["norm_spread"] = float(norms.max() / norms[norms > 0].min())
        self.compared += 1
        self.conflict_rates += told["conflict_rate"]
        self.norm_spreads += told["norm_spread"]
        if isinstance(weights, Tensor):
            by_scope = weights.ndim == 2
            scope = gradients.scope_of(len(weights)) if by_scope else "model"
            known = gradients.known_gramian(scope)
            cosine = None if known is None else update_cosine(known, weights)
            told["update_cosine"] = cosine
            if cosine is not None:
                self.turned += 1
                self.cosines += cosine
                self.degrees += math.degrees(math.acos(cosine))
        return told

    def _by_task(self, present: Sequence[int], values: Sequence[float]) -> dict[str, float]:
        return {self.tasks[task]: value for task, value in zip(present, values, strict=True)}

    def warning(self, name: str) -> str | None:
        """What to tell of a weighting that looked at the tasks and did nothing with what it saw."""
        if not self.saw_several_tasks:
            return None
        unturned = self.turned > 0 and self.cosines / self.turned > UNTURNED
        if not self.weights_differed and (unturned or not self.turned):
            seen = (
                " (for a method of gradient conflicts: none was seen)" if self.pairs.steps else ""
            )
            return (
                f"warning: the weighting {name!r} gave all tasks equal weights in every step{seen}"
                "; it changed nothing"
            )
        if unturned and not self.differed_unmeasured:
            return (
                f"warning: the weighting {name!r} gave tasks other weights, but turned the update "
                f"by only {self.degrees / self.turned:.1f} degrees from that of equal weights on "
                f"average over {self.turned} steps; beside its length it changed next to nothing"
            )
        return None

    def to_json(self) -> dict[str, Any] | None:
        """Means over the steps in which G was measured; None if that was in none."""
        if not self.pairs.steps:
            return None
        count = self.turned
        update = {
            "steps": count,
            "mean_cosine": self.cosines / count if count else None,
            "mean_angle": self.degrees / count if count else None,
        }
        compared = {
            "steps": self.compared,
            "conflict_rate": self.conflict_rates / self.compared if self.compared else None,
            "norm_spread": self.norm_spreads / self.compared if self.compared else None,
        }
        return {"tasks": self.tasks, **self.pairs.means(), "mean": compared, "update": update}

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        kept = {key: value for key, value in vars(self).items() if key not in ("tasks", "pairs")}
        sums = self.pairs.sums.tolist() if self.pairs.steps else None
        return {**kept, "steps": self.pairs.steps, "sums": sums}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        rest = dict(state)
        sums, self.pairs.steps = rest.pop("sums"), rest.pop("steps")
        if sums is not None:
            self.pairs.sums = torch.tensor(sums, dtype=torch.float64)
        vars(self).update(rest)


def _all_alike(weights: Tensor) -> bool:
    """Whether every task has the same weight, in each scope; 0 for all is an effect too."""
    return bool(weights.any()) and torch.allclose(weights, weights[..., :1].expand_as(weights))
