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


class Sink(Protocol):
    """Where the layers' backward passes put the gradients of adapter weights, task by task.

    A sink is set as `routing.sink` before the forward pass and kept until the backward is done. A
    segment (see `Routing.enter`) is a task's part of the batch, or a row, if every row was entered
    as a segment of its own. LoRA layers ask once for the `places` of all their weights; others call
    `add` once per weight and segment, never for frozen weights.
    """

    def places(self, layer: AdapterLayer) -> Places:
        """Where the gradients of a LoRA layer go; those of frozen weights go nowhere."""

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
        self._layers = list(layers)
        self._folded: list[float] | None = None
        self._targets: dict[int, list[list[list[Tensor]]]] = {}
        self._places: dict[int, Places] = {}
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

    def clear(self, folded: Sequence[float] | None = None) -> None:
        """Zero the memory for a new step; `folded` [T] are task weights known beforehand."""
        count = self.task_count if folded is None else 1
        if self.rows.shape[0] != count:
            self._allocate(count)
        self.memory.zero_()
        if folded != self._folded:
            self._places.clear()  # they hold the weights of the tasks
        self._folded = None if folded is None else list(folded)
        if not self._targets:
            self._targets = self._views()

    def _allocate(self, count: int) -> None:
        """One memory for both, with so many rows."""
        size = count * self.shared_size
        self.memory = torch.zeros(size + self.own_size, dtype=self.dtype, device=self.device)
        self.rows = self.memory[:size].view(count, self.shared_size)
        self.own = self.memory[size:]
        self._targets.clear()
        self._places.clear()

    def places(self, layer: AdapterLayer) -> Places:
        """Where the gradients of a LoRA layer go (see `Sink`)."""
        found = self._places.get(id(layer))
        if found is None:
            behind = self.rows.numel()  # in the memory: there is `own`
            starts = {
                id(slot.parameter): slot.start + behind * (slot.owner is not None)
                for slot in self.slots
            }
            found = self._places[id(layer)] = places_in(
                self.memory, layer, starts, rows=self.rows, weights=self._folded
            )
        return found

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


def places_in(
    memory: Tensor,
    layer: AdapterLayer,
    starts: Mapping[int, int],
    *,
    rows: Tensor | None = None,
    weights: Sequence[float] | None = None,
    square: bool = False,
) -> Places:
    """Where the gradients of a LoRA layer go in a flat memory.

    starts: id of a weight -> its place in `memory`; others get no gradient. A weight that several
    tasks share has that place in the first of `rows` [T, P], and in the row of each task if there
    are several; `weights` [T] multiply the gradients of such weights.
    """
    tasks = layer.layout.rank_rows(layer.adapters)
    width = max(map(len, tasks), default=0)
    offsets = torch.full((2, len(tasks), width), -1, dtype=torch.int64)
    factors = torch.ones(len(tasks), width, dtype=memory.dtype)
    for task, slots in enumerate(tasks[:-1]):  # rows without a task have no gradient
        for k, (adapter, row, _) in enumerate(slots):
            shared = layer.adapters[adapter].owner is None
            for factor in (0, 1):
                weight = layer.parameter(adapter, factor)
                if (start := starts.get(id(weight))) is None:
                    continue
                offset = start + row * weight.shape[1]
                if shared and rows is not None and len(rows) > 1:
                    offset += task * rows.shape[1]
                offsets[factor, task, k] = offset
            if shared and weights is not None:
                factors[task, k] = weights[task]
    offsets, factors = offsets.to(memory.device), factors.to(memory.device)
    return Places(memory, offsets[0], offsets[1], factors, square)
