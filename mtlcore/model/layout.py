"""Which adapters exist, which tasks use them, and where each token of a batch goes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch

from mtlcore.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from mtlcore.arena import Arena
    from mtlcore.recipe import LoraRecipe, SharingRecipe

SHARED_ONLY = -1
"""Stands for a task in a row that has none: such rows use the shared adapter alone."""


@dataclass(frozen=True)
class Adapter:
    """One LoRA pair per adapted layer, used by the rows of its tasks.

    `scale` is what the product B A is multiplied with: lora_alpha / r, or for rsLoRA
    lora_alpha / r * sqrt(rank) (Kalajdzievski 2023, https://arxiv.org/abs/2312.03732).
    """

    name: str
    tasks: tuple[int, ...]
    r: int
    scale: float
    shared: bool = False

    def serves(self, task: int) -> bool:
        """Whether rows of this task use the adapter."""
        return self.shared if task == SHARED_ONLY else task in self.tasks

    @property
    def owner(self) -> int | None:
        """The one task it belongs to, or None when its weights are shared between tasks."""
        return self.tasks[0] if len(self.tasks) == 1 else None


@dataclass(frozen=True)
class Layout:
    """All adapters of a layer side by side in rank space.

    The rows of task t pass through ``y = x Wᵀ + ((x Aᵀ) * S[t]) Bᵀ`` with A [R, in], B [out, R]
    and S [T, R] holding an adapter's scale where task t uses it, 0 elsewhere.
    """

    task_names: tuple[str, ...]
    adapters: tuple[Adapter, ...]

    @property
    def rank(self) -> int:
        """R, the ranks of all adapters in sum."""
        return sum(adapter.r for adapter in self.adapters)

    def of_task(self, task: int) -> list[Adapter]:
        """The adapters that the rows of one task use (`SHARED_ONLY` for rows without a task)."""
        return [adapter for adapter in self.adapters if adapter.serves(task)]

    def scales(self) -> Tensor:
        """S [T + 1, R]; the last row is that of `SHARED_ONLY`."""
        tasks = [*range(len(self.task_names)), SHARED_ONLY]
        return torch.tensor(
            [
                [a.scale * a.serves(task) for a in self.adapters for _ in range(a.r)]
                for task in tasks
            ]
        ).reshape(len(tasks), self.rank)

    @classmethod
    def build(
        cls, task_names: Sequence[str], lora: LoraRecipe, sharing: SharingRecipe | None
    ) -> Layout:
        """Read the recipe: one shared adapter, group adapters, one own adapter per task.

        Without `sharing` there is one shared adapter of rank `lora.r`. The ratio of alpha to rank
        is the same for every adapter, so that ranks can be moved without retuning.
        """
        everyone = tuple(range(len(task_names)))
        ratio = lora.lora_alpha / lora.r

        def scale(r: int) -> float:
            return ratio * math.sqrt(r) if lora.use_rslora else ratio

        shared, own = (sharing.shared, sharing.own) if sharing else (lora.r, 0)
        adapters = [Adapter("shared", everyone, shared, scale(shared), True)] if shared else []
        for name, group in (sharing.groups if sharing else {}).items():
            members = tuple(sorted(task_names.index(task) for task in group.tasks))
            adapters.append(Adapter(f"group:{name}", members, group.r, scale(group.r)))
        if own:
            adapters += [
                Adapter(f"own:{task}", (index,), own, scale(own))
                for index, task in enumerate(task_names)
            ]
        if not adapters:
            raise UserError(
                "no adapter is left to train",
                where="sharing",
                fix="give sharing.shared, sharing.own or a group a rank above 0",
            )
        return cls(tuple(task_names), tuple(adapters))


class Segment(NamedTuple):
    """Rows (or tokens) [start, stop) of a batch, all of one task."""

    task: int
    start: int
    stop: int


class AdapterPlan(NamedTuple):
    """What one adapter does in one batch, in tokens.

    `runs` are the stretches [start, stop) that use it, as long as possible: the forward's work.
    `segments` cut them by task: the backward's work.
    """

    runs: tuple[tuple[int, int], ...]
    segments: tuple[Segment, ...]


@dataclass
class Routing:
    """What every layer must know of the batch that is passing; one object, shared by all layers.

    A flat batch has tokens [1, N] (`row_lengths` given); else rows are [rows, length] of equal
    length. `sink` is where backward passes put the gradients of the adapters; without one the
    layers run in ordinary autograd.
    """

    layout: Layout
    rows: tuple[Segment, ...] = ()
    row_lengths: tuple[int, ...] | None = None
    label_index: Tensor | None = None
    attention_calls: int = 0
    sink: Arena | None = None
    _plans: dict[int, tuple[AdapterPlan, ...]] = field(default_factory=dict)

    def enter(
        self,
        rows: Sequence[Segment],
        row_lengths: Sequence[int] | None,
        label_index: Tensor | None = None,
    ) -> None:
        """Announce the next batch: its rows by task, and their lengths if it is flat.

        `label_index` [L] holds the positions, among all tokens, whose logits are wanted.
        """
        self.rows = tuple(rows)
        self.row_lengths = None if row_lengths is None else tuple(row_lengths)
        self.label_index = label_index
        self._plans.clear()

    def leave(self) -> None:
        """Forget the batch, so that nothing can run on stale segments."""
        self.enter((), None)

    def segments(self, tokens: int) -> tuple[Segment, ...]:
        """The tokens of each task, for an input of so many tokens in all."""
        if not self.rows:
            raise RuntimeError("no batch was announced to the adapters (Routing.enter)")
        if self.row_lengths is not None:
            ends = [0]
            for length in self.row_lengths:
                ends.append(ends[-1] + length)
            if ends[-1] != tokens:
                raise RuntimeError(f"the batch has {ends[-1]} tokens, a layer was given {tokens}")
            return tuple(Segment(task, ends[lo], ends[hi]) for task, lo, hi in self.rows)
        per_row, rest = divmod(tokens, self.rows[-1].stop)
        if rest:
            raise RuntimeError(f"{tokens} tokens do not divide into {self.rows[-1].stop} rows")
        return tuple(Segment(task, lo * per_row, hi * per_row) for task, lo, hi in self.rows)

    def plans(self, tokens: int) -> tuple[AdapterPlan, ...]:
        """One plan per adapter of the layout."""
        if tokens not in self._plans:
            segments = self.segments(tokens)
            self._plans[tokens] = tuple(
                _plan(adapter, segments) for adapter in self.layout.adapters
            )
        return self._plans[tokens]

    def token_tasks(self, tokens: int, device: torch.device) -> Tensor:
        """[tokens] the task of each token (`SHARED_ONLY` indexes the last row of S)."""
        segments = self.segments(tokens)
        tasks = torch.tensor([segment.task for segment in segments], device=device)
        counts = torch.tensor([segment.stop - segment.start for segment in segments], device=device)
        return tasks.repeat_interleave(counts)


def row_segments(tasks: Sequence[int]) -> tuple[Segment, ...]:
    """One segment per stretch of rows of one task; the rows must be sorted by task."""
    segments: list[Segment] = []
    for row, task in enumerate(tasks):
        if segments and segments[-1].task == task:
            segments[-1] = segments[-1]._replace(stop=row + 1)
        else:
            segments.append(Segment(task, row, row + 1))
    return tuple(segments)


def _plan(adapter: Adapter, segments: Sequence[Segment]) -> AdapterPlan:
    mine = tuple(s for s in segments if adapter.serves(s.task) and s.stop > s.start)
    runs: list[tuple[int, int]] = []
    for _, start, stop in mine:
        if runs and runs[-1][1] == start:
            runs[-1] = (runs[-1][0], stop)
        else:
            runs.append((start, stop))
    return AdapterPlan(tuple(runs), mine)
