"""Which adapters exist, which tasks use them, and where each token of a batch goes."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from mtlcore.errors import UserError
from mtlcore.ops.lora import Dropout, Slots
from mtlcore.ops.reference.lora import keep_mask
from mtlcore.seeds import seed_of

if TYPE_CHECKING:
    from torch import Tensor

    from mtlcore.arena import Sink
    from mtlcore.model.lora import Kept
    from mtlcore.recipe import BottleneckRecipe, LoraRecipe, SharingRecipe

SHARED_ONLY = -1
"""Stands for a task in a row that has none: such rows use the shared adapter alone."""


@dataclass(frozen=True)
class Adapter:
    """Weights that the rows of its tasks use: in every adapted layer, or in some `blocks` only.

    Of three families: a LoRA pair per layer, a bottleneck per layer, or the head of one task.
    `r` is its rank or width (0 for a head: as many as the task has options). `scale` is what its
    output is multiplied with: for LoRA lora_alpha / r, or for rsLoRA lora_alpha / r * sqrt(rank)
    (Kalajdzievski 2023, https://arxiv.org/abs/2312.03732). A `frozen` one takes part in the
    forward pass and is not trained.
    """

    name: str
    tasks: tuple[int, ...]
    r: int
    scale: float
    shared: bool = False
    frozen: bool = False
    family: Literal["lora", "bottleneck", "head"] = "lora"
    blocks: tuple[int, ...] | None = None

    def serves(self, task: int) -> bool:
        """Whether rows of this task use the adapter."""
        return self.shared if task == SHARED_ONLY else task in self.tasks

    @property
    def owner(self) -> int | None:
        """The one task it belongs to, or None when its weights are shared between tasks."""
        return self.tasks[0] if len(self.tasks) == 1 else None

    def lies_in(self, module: str) -> bool:
        """Whether a module of that path has it."""
        return self.blocks is None or block_number(module) in self.blocks

    @property
    def blocks_key(self) -> str:
        """The key of the recipe that names its blocks."""
        if self.name.startswith("group:"):
            return f"sharing.groups.{self.name.partition(':')[2]}.layers_to_transform"
        return "sharing.shared_layers" if self.shared else "sharing.own_layers"


@dataclass(frozen=True)
class Layout:
    """All adapters, LoRA first, then bottlenecks, then heads.

    The LoRA adapters of a layer stand side by side in rank space: the rows of task t pass through
    ``y = x Wᵀ + ((x Aᵀ) * S[t]) Bᵀ`` with A [R, in], B [R, out] and S [T, R] holding an adapter's
    scale where task t uses it, 0 elsewhere.
    """

    task_names: tuple[str, ...]
    adapters: tuple[Adapter, ...]

    @property
    def rank(self) -> int:
        """R, the ranks of all LoRA adapters in sum."""
        return sum(adapter.r for adapter in self.family("lora"))

    def family(self, family: str) -> list[Adapter]:
        """The adapters of one family: "lora", "bottleneck" or "head"."""
        return [adapter for adapter in self.adapters if adapter.family == family]

    def of_task(self, task: int) -> list[Adapter]:
        """The adapters that the rows of one task use (`SHARED_ONLY` for rows without a task)."""
        return [adapter for adapter in self.adapters if adapter.serves(task)]

    def scales(self, adapters: Sequence[Adapter] | None = None) -> Tensor:
        """S [T + 1, R] of some adapters (default: LoRA); the last row is that of `SHARED_ONLY`."""
        adapters = self.family("lora") if adapters is None else adapters
        tasks = [*range(len(self.task_names)), SHARED_ONLY]
        return torch.tensor(
            [[a.scale * a.serves(task) for a in adapters for _ in range(a.r)] for task in tasks]
        ).reshape(len(tasks), sum(a.r for a in adapters))

    def rank_rows(self, adapters: Sequence[Adapter]) -> list[list[tuple[int, int, float]]]:
        """For each task, then for `SHARED_ONLY`: the rank rows that it uses of these adapters.

        Each row as (adapter, counted in `adapters`; row within the adapter; scale).
        """
        return [
            [
                (i, row, a.scale)
                for i, a in enumerate(adapters)
                if a.serves(task)
                for row in range(a.r)
            ]
            for task in [*range(len(self.task_names)), SHARED_ONLY]
        ]

    @classmethod
    def build(
        cls,
        task_names: Sequence[str],
        lora: LoraRecipe,
        sharing: SharingRecipe | None,
        *,
        bottleneck: BottleneckRecipe | None = None,
        heads: Collection[str] = (),
        frozen_tasks: Collection[str] = (),
    ) -> Layout:
        """Read the recipe: one shared adapter, group adapters, one own adapter per task.

        Without `sharing` there is one shared adapter of rank `lora.r`. The ratio of alpha to rank
        is the same for every adapter, so that ranks can be moved without retuning. `heads` are the
        tasks with a head of their own. Frozen is what belongs to `frozen_tasks` alone.
        """
        names = tuple(task_names)
        everyone = tuple(range(len(names)))
        asleep = {names.index(task) for task in frozen_tasks}
        ratio = lora.lora_alpha / lora.r

        def scale(r: int) -> float:
            return ratio * math.sqrt(r) if lora.use_rslora else ratio

        def made(
            name: str,
            tasks: tuple[int, ...],
            r: int,
            scale: float,
            family: Literal["lora", "bottleneck", "head"] = "lora",
            blocks: Sequence[int] | None = None,
            shared: bool = False,
        ) -> Adapter:
            frozen = asleep.issuperset(tasks)
            chosen = None if blocks is None else tuple(blocks)
            return Adapter(name, tasks, r, scale, shared, frozen, family, chosen)

        shared, own = (sharing.shared, sharing.own) if sharing else (lora.r, 0)
        adapters: list[Adapter] = []
        if shared:
            blocks = sharing.shared_layers if sharing else None
            adapters.append(
                made("shared", everyone, shared, scale(shared), blocks=blocks, shared=True)
            )
        for name, group in (sharing.groups if sharing else {}).items():
            members = tuple(sorted(names.index(task) for task in group.tasks))
            blocks = group.layers_to_transform
            adapters.append(made(f"group:{name}", members, group.r, scale(group.r), blocks=blocks))
        if own:
            blocks = sharing.own_layers if sharing else None
            for index, task in enumerate(names):
                adapters.append(made(f"own:{task}", (index,), own, scale(own), blocks=blocks))
        if bottleneck is not None:
            width, factor = bottleneck.shared, bottleneck.scaling
            if width:
                adapters.append(
                    made("bottleneck:shared", everyone, width, factor, "bottleneck", shared=True)
                )
            for index, task in enumerate(names if bottleneck.own else ()):
                adapter = f"bottleneck:own:{task}"
                adapters.append(made(adapter, (index,), bottleneck.own, factor, "bottleneck"))
            if not width and not bottleneck.own:
                raise UserError(
                    "the bottleneck adapters have no width",
                    where="bottleneck",
                    fix="set bottleneck.shared or bottleneck.own above 0, or remove `bottleneck`",
                )
        if not adapters:
            raise UserError(
                "no adapter is left to train",
                where="sharing",
                fix="give sharing.shared, sharing.own or a group a rank above 0",
            )
        for index, task in enumerate(names):
            if task in heads:
                adapters.append(made(f"head:{task}", (index,), 0, 1.0, "head"))
        if all(adapter.frozen for adapter in adapters):
            raise UserError(
                "every adapter is frozen, so there is nothing to train",
                where="start.freeze_own",
                fix="train a task in some stage, or set freeze_own: false",
            )
        return cls(names, tuple(adapters))


def block_name(path: str) -> str:
    """The block of the network that a module lies in: its path up to the first number."""
    match = re.match(r"(.*?\.\d+)\.", path)
    return match[1] if match else path


def block_number(path: str) -> int | None:
    """The number of the block that a module lies in, from 0; None outside of all blocks."""
    match = re.match(r".*?\.(\d+)\.", path)
    return int(match[1]) if match else None


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
    layers run in ordinary autograd. `dropout` [T] is each task's share of zeroed adapter inputs.
    """

    layout: Layout
    dropout: tuple[float, ...] = ()
    rows: tuple[Segment, ...] = ()
    row_lengths: tuple[int, ...] | None = None
    label_index: Tensor | None = None
    attention_calls: int = 0
    attention_slow: str | None = None  # on a GPU: why rows do not go in one call
    sink: Sink | None = None
    draw: tuple[object, ...] | None = None
    true_lengths: tuple[int, ...] | None = None
    row_starts: tuple[int, ...] | None = None
    kept: Kept | None = None  # what LoRA layers of one input made for each other
    _plans: dict[int, tuple[AdapterPlan, ...]] = field(default_factory=dict)
    _tables: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _segment_tables: dict[Any, Tensor] = field(default_factory=dict)
    _bounds: dict[torch.device, Tensor] = field(default_factory=dict)
    _masks: dict[Any, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def enter(
        self,
        rows: Sequence[Segment],
        row_lengths: Sequence[int] | None,
        label_index: Tensor | None = None,
        *,
        draw: tuple[object, ...] | None = None,
        true_lengths: Sequence[int] | None = None,
        row_starts: Sequence[int] | None = None,
    ) -> None:
        """Announce the next batch: its rows by task, and their lengths if it is flat.

        `label_index` [L] holds the positions, among all tokens, whose logits are wanted. `draw`
        is what dropout masks depend on beside layer and task: (seed, step, ...); without it they
        come from torch's global generator. `true_lengths` are those of padded rows, `row_starts`
        the tokens of its task before each row in the step (default: in this batch).
        """
        self.rows = tuple(rows)
        self.row_lengths = None if row_lengths is None else tuple(row_lengths)
        self.label_index = label_index
        self.draw = draw
        self.true_lengths = None if true_lengths is None else tuple(true_lengths)
        self.row_starts = None if row_starts is None else tuple(row_starts)
        for table in (self._plans, self._segment_tables, self._bounds, self._masks):
            table.clear()
        self.kept = None

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

    def row_bounds(self, device: torch.device) -> Tensor:
        """[rows + 1] int32: where each row of a flat batch starts, and the number of its tokens."""
        if device not in self._bounds:
            ends = [0, *accumulate(self.row_lengths or ())]
            self._bounds[device] = torch.tensor(ends, dtype=torch.int32, device=device)
        return self._bounds[device]

    def plans(self, tokens: int) -> tuple[AdapterPlan, ...]:
        """One plan per adapter of the layout."""
        if tokens not in self._plans:
            segments = self.segments(tokens)
            self._plans[tokens] = tuple(
                _plan(adapter, segments) for adapter in self.layout.adapters
            )
        return self._plans[tokens]

    def slots(self, places: tuple[int, ...], x: Tensor, dtype: torch.dtype) -> Slots:
        """What `mtlcore.ops.lora` must know of an input [tokens, in] of a layer.

        `places` are the positions in the layout of the adapters that lie there, `dtype` is theirs.
        Its tasks are those of the layout and, as the last, `SHARED_ONLY`.
        """
        key = (places, dtype, x.device)
        tables = self._tables.get(key)
        if tables is None:
            tables = self._tables[key] = _slot_tables(self.layout, places, dtype, x.device)
        return Slots(self._segment_table(x), *tables)

    def _segment_table(self, x: Tensor) -> Tensor:
        """[S, 3] the segments of an input [tokens, in], on its device."""
        tokens = x.shape[0]
        key = (tokens, x.device)
        found = self._segment_tables.get(key)
        if found is None:
            last = len(self.layout.task_names)
            rows = [
                (last if s.task == SHARED_ONLY else s.task, *s[1:]) for s in self.segments(tokens)
            ]
            found = torch.tensor(rows, dtype=torch.int64, device=x.device)
            self._segment_tables[key] = found
        return found

    def dropout_of(self, layer: int, x: Tensor) -> Dropout | None:
        """The masks of an adapter layer's input x [tokens, in]; `layer`: a number of its own.

        The mask of a token depends on `draw`, the layer, the task's name and the token's place
        among those of its task in the step alone: not on the other tasks, nor on how the step is
        cut into batches, and a recomputed forward pass meets the same. None where no row of the
        batch has dropout.
        """
        if not any(self.dropout) or not any(self._dropout(task) for task, _, _ in self.rows):
            return None
        key = (len(x), x.device)
        if key not in self._masks:
            self._masks[key] = self._mask_tables(x)
        return Dropout(*self._masks[key], layer)

    def _mask_tables(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Shares [T + 1], keys [T + 1] and positions [tokens] of an input [tokens, in]."""
        names = self.layout.task_names
        shares = [*(self._dropout(task) for task in range(len(names))), 0.0]
        if self.draw is None:
            keys = torch.randint(2**63 - 1, (len(names) + 1,))
        else:
            keys = torch.tensor([*(seed_of(*self.draw, name) for name in names), 0])
        positions = torch.full((len(x),), -1, dtype=torch.int32)
        seen = [0] * len(keys)
        places = self._row_places(len(x))
        for task, first, last in self.rows:
            for row in range(first, last):
                start, length = places[row]
                if self.row_starts is not None:
                    seen[task] = self.row_starts[row]
                positions[start : start + length] = torch.arange(seen[task], seen[task] + length)
                seen[task] += length
        table = torch.tensor(shares, dtype=torch.float64, device=x.device)
        return table, keys.to(x.device), positions.to(x.device)

    def keep_mask(self, layer: str, x: Tensor) -> Tensor | None:
        """What the masks of a layer multiply its input with, [tokens, in]: 0 or 1 / (1 - share)."""
        dropout = self.dropout_of(seed_of(layer), x)
        if dropout is None:
            return None
        slots = self.slots((), x, torch.float64)
        return keep_mask(x, slots, dropout).to(x.dtype)

    def _dropout(self, task: int) -> float:
        return self.dropout[task] if 0 <= task < len(self.dropout) else 0.0

    def _row_places(self, tokens: int) -> list[tuple[int, int]]:
        """Of each row: where it starts in an input of so many tokens, its length unpadded."""
        if self.row_lengths is not None:
            ends = accumulate(self.row_lengths)
            return [(end - n, n) for end, n in zip(ends, self.row_lengths, strict=True)]
        count = self.rows[-1].stop
        lengths = self.true_lengths or (tokens // count,) * count
        return [(row * tokens // count, length) for row, length in enumerate(lengths)]

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


def _slot_tables(
    layout: Layout, places: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """`Slots.rows` and `Slots.scales` [T + 1, K] of the adapters at some places of the layout."""
    adapters = [layout.adapters[place] for place in places]
    starts = [sum(a.r for a in adapters[:i]) for i in range(len(adapters))]
    used = layout.rank_rows(adapters)
    width = max(map(len, used), default=0)
    rows = torch.full((len(used), width), -1, dtype=torch.int32)
    scales = torch.zeros(len(used), width, dtype=dtype)
    for task, slots in enumerate(used):
        for k, (adapter, row, scale) in enumerate(slots):
            rows[task, k], scales[task, k] = starts[adapter] + row, scale
    return rows.to(device), scales.to(device)
