"""Where a backward pass puts gradients: J [T, P] of the shared weights, and each task's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from mtlcore.model.layers import weights_of
from mtlcore.model.layout import block_name as block_name
from mtlcore.ops import Places

if TYPE_CHECKING:
    from mtlcore.model.layers import AdapterLayer
    from mtlcore.model.lora import Pack


class Sink(Protocol):
    """Where the layers' backward passes put the gradients of adapter weights, task by task.

    A sink is set as `routing.sink` before the forward pass and kept until the backward is done. A
    segment (see `Routing.enter`) is a task's part of the batch, or a row, if every row was entered
    as a segment of its own. LoRA layers ask once for the `places` of all their weights, those that
    run as one together; others call `add` once per weight and segment, never for frozen weights.
    """

    def places(self, pack: Pack) -> Places:
        """Where the gradients of LoRA layers go; those of frozen weights go nowhere."""

    def add(
        self,
        layer: AdapterLayer,
        adapter: int,
        factor: int,
        task: int,
        left: Tensor,
        right: Tensor | None,
        scale: float,
    ) -> None:
        """Take the gradient of the weight ``layer.parameter(adapter, factor)`` from one segment.

        A matrix: ``scale * leftᵀ right``, left [n, rows of it], right [n, columns of it], of the
        segment's n tokens. A bias: `right` is None, ``scale * left.sum(0)``.
        """


class Slot(NamedTuple):
    """One parameter and its columns [start, stop): of J when `owner` is None, else of `own`."""

    name: str
    parameter: nn.Parameter
    owner: int | None
    start: int
    stop: int


class Arena:
    """Flat gradient memory for one step, and the map from parameters to its columns.

    `rows` [T, P] holds row t = the gradient of task t's loss sum with respect to the P weights
    that several tasks share; when the task weights are known before the backward pass it is
    folded into a single row [1, P] = sum_t w_t row t, and no [T, P] memory is taken.
    `own` [Q] holds the gradients of what belongs to a single task (adapters, its head), ordered by
    task. Frozen weights have no columns.

    fp32 for fp32 weights, fp64 for fp64 weights.
    """

    def __init__(
        self,
        layers: Iterable[AdapterLayer],
        others: Sequence[tuple[str, nn.Parameter]],
        task_count: int,
    ) -> None:
        self.task_count = task_count
        self.slots: list[Slot] = []
        self._borders: dict[str, Tensor] = {}
        self._layers = list(layers)
        self._folded: list[float] | None = None
        self._targets: dict[int, list[list[list[Tensor]]]] = {}
        self._offsets: dict[Pack, Offsets] = {}
        self._weights: dict[tuple[int, ...], Tensor] = {}  # by the adapters that lie in a pack
        self.shared_size = self.own_size = 0
        trained = [weight for weight in weights_of(self._layers) if not weight.owner.frozen]
        for weight in trained:
            if weight.owner.owner is None:
                self._append(weight.key, weight.parameter)
        for name, parameter in others:
            self._append(name, parameter)
        for task in range(task_count):
            for weight in trained:
                if weight.owner.owner == task:
                    self._append(weight.key, weight.parameter, owner=task)
        first = self.slots[0].parameter
        self.dtype = torch.promote_types(first.dtype, torch.float32)
        self.device = first.device
        self._allocate(0)

    def _append(self, name: str, parameter: nn.Parameter, owner: int | None = None) -> None:
        start = self.shared_size if owner is None else self.own_size
        stop = start + parameter.numel()
        self.slots.append(Slot(name, parameter, owner, start, stop))
        if owner is None:
            self.shared_size = stop
        else:
            self.own_size = stop

    def own_columns(self, task: int) -> slice:
        """The columns of `own` that belong to one task."""
        mine = [slot for slot in self.slots if slot.owner == task]
        return slice(mine[0].start, mine[-1].stop) if mine else slice(0, 0)

    def scopes(self, scope: str) -> list[tuple[str, int, int]]:
        """Contiguous columns of J by "model", "layer" (one block of the network) or "factor"."""
        if scope == "model":
            return [("model", 0, self.shared_size)]
        if scope not in ("layer", "factor"):
            raise ValueError(f"scope must be model, layer or factor, found {scope!r}")
        scopes: list[tuple[str, int, int]] = []
        for slot in self.slots:
            if slot.owner is None:
                key = slot.name if scope == "factor" else block_name(slot.name)
                if scopes and scopes[-1][0] == key:
                    scopes[-1] = (key, scopes[-1][1], slot.stop)
                else:
                    scopes.append((key, slot.start, slot.stop))
        return scopes

    def borders(self, scope: str) -> Tensor:
        """[S + 1] int64: the columns of J at which its scopes begin and end."""
        if scope not in self._borders:
            stops = [stop for _, _, stop in self.scopes(scope)]
            self._borders[scope] = torch.tensor([0, *stops])
        return self._borders[scope]

    def clear(self, folded: Sequence[float] | None = None) -> None:
        """Zero the memory for a new step; `folded` [T] are task weights known beforehand."""
        count = self.task_count if folded is None else 1
        if self.rows.shape[0] != count:
            self._allocate(count)
        self.memory.zero_()
        if folded != self._folded:
            self._weights.clear()
        self._folded = None if folded is None else list(folded)
        if not self._targets:
            self._targets = self._views()

    def _allocate(self, count: int) -> None:
        """One memory for both, with so many rows."""
        size = count * self.shared_size
        self.memory = torch.zeros(size + self.own_size, dtype=self.dtype, device=self.device)
        self.rows = self.memory[:size].view(count, self.shared_size)
        self.own = self.memory[size:]
        self._starts = {  # in the memory: `own` lies behind all rows
            id(slot.parameter): slot.start + (0 if slot.owner is None else size)
            for slot in self.slots
        }
        self._targets.clear()
        self._offsets.clear()

    def places(self, pack: Pack) -> Places:
        """Where the gradients of LoRA layers go (see `Sink`)."""
        offsets = self._offsets.get(pack)
        if offsets is None:
            row_size = self.shared_size if len(self.rows) > 1 else 0
            offsets = self._offsets[pack] = offsets_in(pack, self._starts, row_size)
        weights = self._weights.get(pack.places)
        if weights is None:
            weights = self._weights[pack.places] = slot_weights(pack, self.dtype, self._folded)
        return Places(self.memory, *offsets, weights)

    def add(
        self,
        layer: AdapterLayer,
        adapter: int,
        factor: int,
        task: int,
        left: Tensor,
        right: Tensor | None,
        scale: float,
    ) -> None:
        """Add the gradient of one weight from one task (see `Sink`)."""
        targets = self._targets[id(layer)][adapter][factor]
        if len(targets) == 1:
            target = targets[0]
            if self._folded is not None and layer.adapters[adapter].owner is None:
                scale *= self._folded[task]
        else:
            target = targets[task]
        if right is None:
            target.add_(left.sum(0, dtype=target.dtype), alpha=scale)
        elif target.dtype == left.dtype:
            target.addmm_(left.t(), right, alpha=scale)
        else:  # half precision: the product is rounded once, the sum stays in fp32
            target.add_(left.t() @ right, alpha=scale)

    def add_rows(self, task: int, grads: Mapping[int, Tensor]) -> None:
        """Add the gradients of one task, by slot number: what `multi_pass` computes."""
        for index, grad in grads.items():
            slot = self.slots[index]
            target = self.rows[task] if slot.owner is None else self.own
            target[slot.start : slot.stop].add_(grad.reshape(-1))

    def _views(self) -> dict[int, list[list[list[Tensor]]]]:
        """layer -> adapter -> factor -> the tensors to add to, one per row of J (or just one)."""
        where = {id(slot.parameter): slot for slot in self.slots}
        views: dict[int, list[list[list[Tensor]]]] = {
            id(layer): [[] for _ in layer.adapters] for layer in self._layers
        }
        for weight in weights_of(self._layers):
            slot = where.get(id(weight.parameter))
            parts: list[Tensor] = []  # of a frozen weight: nothing is ever added
            if slot is not None:
                memory = self.own.unsqueeze(0) if slot.owner is not None else self.rows
                columns = memory[:, slot.start : slot.stop]
                parts = list(columns.unflatten(1, slot.parameter.shape).unbind(0))
            views[id(weight.layer)][weight.adapter].append(parts)
        return views


class Offsets(NamedTuple):
    """`Places.a_offsets` and `Places.b_offsets` of LoRA layers that run as one, [T + 1, K] each."""

    a: Tensor
    b: Tensor


def offsets_in(pack: Pack, starts: Mapping[int, int], row_size: int = 0) -> Offsets:
    """Where the gradients of LoRA layers go in a flat memory.

    starts: id of a weight -> its place in the memory; others get no gradient. Weights that several
    tasks share have it in the row of task 0; the next task's lies `row_size` further.
    """
    tasks = pack.layout.rank_rows(pack.adapters)
    offsets = torch.full((2, len(tasks), max(map(len, tasks), default=0)), -1, dtype=torch.int64)
    for task, slots in enumerate(tasks[:-1]):  # rows without a task have no gradient
        first = 0
        for index in dict.fromkeys(adapter for adapter, _, _ in slots):
            adapter = pack.adapters[index]
            stop = first + adapter.r
            for factor in (0, 1):
                weight = pack.parameter(index, factor)
                start = starts.get(id(weight))
                if start is not None:
                    start += task * row_size if adapter.owner is None else 0
                    columns = weight.shape[1]
                    offsets[factor, task, first:stop] = start + columns * torch.arange(adapter.r)
            first = stop
    return Offsets(*offsets.to(pack.parameter(0, 0).device))


def slot_weights(pack: Pack, dtype: torch.dtype, weights: Sequence[float] | None = None) -> Tensor:
    """`Places.weights` [T + 1, K]: 1, but weights[t] for the slots of weights that tasks share."""
    tasks = pack.layout.rank_rows(pack.adapters)
    factors = torch.ones(len(tasks), max(map(len, tasks), default=0), dtype=dtype)
    for factor, slots, weight in zip(factors, tasks, weights or (), strict=False):
        shared = [pack.adapters[adapter].owner is None for adapter, _, _ in slots]
        factor[: len(slots)][torch.tensor(shared, dtype=torch.bool)] = weight
    return factors.to(pack.parameter(0, 0).device)
