"""The diagonal of the Fisher information: how much each weight matters to what was learned."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlcore.arena import offsets_in, slot_weights
from mtlcore.data.batches import collate, row_starts
from mtlcore.distributed import all_reduce_sum, rank, world_size
from mtlcore.errors import UserError
from mtlcore.model.layout import Segment
from mtlcore.ops import Places

if TYPE_CHECKING:
    from mtlcore.data.batches import Batch
    from mtlcore.data.example import Example
    from mtlcore.losses import Outputs
    from mtlcore.model.backbone import MultiTaskModel
    from mtlcore.model.layers import AdapterLayer
    from mtlcore.model.lora import Pack
    from mtlcore.run import Run

Labels = Literal["data", "sampled"]
Mode = Literal["auto", "one_pass", "per_row"]
Draw: TypeAlias = "Callable[[str, int], torch.Generator]"


def fisher(
    run: Run,
    examples: Sequence[Example],
    *,
    labels: Labels = "data",
    own: bool = True,
    mode: Mode = "auto",
) -> dict[str, Tensor]:
    """The Fisher diagonal of the trainable weights on rows of one or several tasks.

        F_k = 1/n sum_i (d log p(completion of row i) / d theta_k)^2

    The gradient is that of the row's *summed* token log-likelihoods, squared for each row by
    itself: not the square of a batch's mean gradient, which is smaller and shrinks with the batch.
    A row counts with 0 for weights that it does not use.

    labels: "data" is the empirical Fisher; "sampled" draws each label from the model at its place
        (the tokens before it are those of the row), an unbiased estimate of the true Fisher with
        the rows' contexts.
    own: False leaves out the weights that belong to one task alone.
    mode: see `squared_gradients`.

    Returns the weights' names (`model.trainable_parameters()`) -> F in the shape of the weight,
    fp32 (fp64 for fp64 weights), equal on all ranks. Without dropout; weights and mode of the model
    are left as they were.
    """
    if not examples:
        raise UserError("the Fisher information needs at least one row", fix="give it train rows")
    model = run.model

    def generator(task: str, start: int) -> torch.Generator:
        return run.generator(run.step, "fisher", task, str(start))

    draw = generator if labels == "sampled" else None
    with run.autocast():
        sums = squared_gradients(model, _batches(run, examples), draw=draw, own=own, mode=mode)
    return {name: all_reduce_sum(value).div_(len(examples)) for name, value in sums.items()}


def squared_gradients(
    model: MultiTaskModel,
    batches: Iterable[Batch],
    *,
    draw: Draw | None = None,
    own: bool = True,
    mode: Mode = "auto",
) -> dict[str, Tensor]:
    """The sum over all rows of the squared gradient of the row's summed log-likelihood.

    one_pass: one forward and one backward per batch with every row as a segment of its own; each
        row's product is squared and added as it comes, none is stored.
    per_row: one forward and backward per row in ordinary autograd; the same numbers, slower, right
        for trainable weights of any kind.
    auto: one_pass, unless a weight has no rule for it or is used twice in a forward.

    With `draw` the labels are drawn from the model, those of a row with the generator of its task
    and place (`Batch.row_starts`).
    """
    adapters = {id(p) for a in model.layout.adapters for p in model.adapter_parameters(a.name)}
    weights = dict(model.trainable_parameters())
    if not own:
        alone = [a for a in model.layout.adapters if a.owner is not None]
        owned = {id(p) for a in alone for p in model.adapter_parameters(a.name)}
        weights = {name: weight for name, weight in weights.items() if id(weight) not in owned}
    without_rule = [name for name, weight in weights.items() if id(weight) not in adapters]
    if without_rule and mode == "one_pass":
        raise UserError(
            f"{without_rule[0]} has no rule for the gradients of single rows in one pass",
            fix="use mode='per_row' (one pass per row, the same result)",
        )
    memory, sums = _zeros(weights)
    sink = None if without_rule or mode == "per_row" else _Squares(weights, sums, memory)
    training, routing = model.training, model.routing
    before = routing.sink
    model.eval()
    try:
        for batch in batches:
            if sink is not None:
                routing.sink = sink
                _loss(model, _by_row(batch), draw).backward()
                if not sink.used_twice(batch):
                    continue
                # So it is from the first batch on, and nothing right was added yet.
                if mode == "one_pass":
                    raise UserError(
                        "a layer is used several times in one forward pass, so that the gradients "
                        "of single rows are not known in one pass",
                        fix="use mode='per_row' (one pass per row, the same result)",
                    )
                sink, routing.sink = None, None
                memory.zero_()
            _add_per_row(model, batch, weights, sums, draw)
    finally:
        routing.sink = before
        routing.leave()
        model.train(training)
    return sums


def _zeros(weights: Mapping[str, nn.Parameter]) -> tuple[Tensor, dict[str, Tensor]]:
    """A flat memory, and a view of it for each weight."""
    dtype = torch.float32
    for weight in weights.values():
        dtype = torch.promote_types(dtype, weight.dtype)
    device = next((weight.device for weight in weights.values()), None)
    sizes = [weight.numel() for weight in weights.values()]
    memory = torch.zeros(sum(sizes), dtype=dtype, device=device)
    parts = zip(weights.items(), memory.split(sizes), strict=True)
    return memory, {name: part.view_as(weight) for (name, weight), part in parts}


class _Squares:
    """Squares each segment's gradient and adds it; with one segment per row, a sum over rows."""

    def __init__(
        self, weights: Mapping[str, nn.Parameter], sums: Mapping[str, Tensor], memory: Tensor
    ) -> None:
        self._memory = memory
        self._sums = {id(weight): sums[name] for name, weight in weights.items()}
        self._layers: Counter[int] = Counter()
        self._rows: Counter[tuple[int, int]] = Counter()
        self._places: dict[Pack, Places] = {}

    def places(self, pack: Pack) -> Places:
        """The sums of LoRA layers' weights, as the places of their squared gradients."""
        self._layers.update(map(id, pack.layers))
        found = self._places.get(pack)
        if found is None:
            starts = {weight: int(total.storage_offset()) for weight, total in self._sums.items()}
            weights = slot_weights(pack, self._memory.dtype)
            found = Places(self._memory, *offsets_in(pack, starts), weights, square=True)
            self._places[pack] = found
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
        """Square and add the gradient of one weight from one row (see `mtlcore.arena.Sink`)."""
        weight = id(layer.parameter(adapter, factor))
        total = self._sums.get(weight)
        if total is None:
            return
        self._rows[weight, task] += 1
        if right is None:
            gradient = left.sum(0, dtype=total.dtype)
        else:
            gradient = (left.t() @ right).to(total.dtype)
        total.addcmul_(gradient, gradient, value=scale * scale)

    def used_twice(self, batch: Batch) -> bool:
        """Whether some weight was used twice in the forward pass of this batch, and count anew.

        A row's gradients should then have been summed before the square.
        """
        of_task = Counter(task for task, start, stop in batch.rows for _ in range(start, stop))
        found = any(count > 1 for count in self._layers.values()) or any(
            count > of_task[task] for (_, task), count in self._rows.items()
        )
        self._layers.clear()
        self._rows.clear()
        return found


def _by_row(batch: Batch) -> Batch:
    """The same batch with every row as a segment of its own."""
    tasks = [task for task, start, stop in batch.rows for _ in range(start, stop)]
    return replace(batch, rows=tuple(Segment(task, i, i + 1) for i, task in enumerate(tasks)))


def _add_per_row(
    model: MultiTaskModel,
    batch: Batch,
    weights: Mapping[str, nn.Parameter],
    sums: Mapping[str, Tensor],
    draw: Draw | None,
) -> None:
    starts = batch.row_starts or [None] * len(batch.examples)
    for example, (task, _, _), start in zip(
        batch.examples, _by_row(batch).rows, starts, strict=True
    ):
        single = collate(
            [example],
            [task],
            len(batch.counts),
            flat=batch.row_lengths is not None,
            device=batch.input_ids.device,
            row_starts=None if start is None else [start],
        )
        loss = _loss(model, single, draw)
        grads = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        for value, grad in zip(sums.values(), grads, strict=True):
            if grad is not None:
                grad = grad.to(value.dtype)
                value.addcmul_(grad, grad)


def _loss(model: MultiTaskModel, batch: Batch, draw: Draw | None) -> Tensor:
    """Minus the log-likelihood of all labels in sum: rows do not mix, so each keeps its own."""
    if draw is None:
        loss: Tensor = model(batch).token_losses.sum()
        return loss
    outputs: Outputs = model(batch, keep_logits=True)
    assert outputs.logits is not None
    parts = (outputs.logits, *outputs.head_logits)
    numbers = _uniform(batch, draw).split([len(part) for part in parts])
    return torch.stack(list(map(_drawn_loss, parts, numbers))).sum()


def _uniform(batch: Batch, draw: Draw) -> Tensor:
    """[L + H] a number in [0, 1) for each label; a row's are the same in every batch."""
    assert batch.row_starts is not None
    of_row = [
        draw(example.task, start)
        for example, start in zip(batch.examples, batch.row_starts, strict=True)
    ]
    rows = batch.label_rows.tolist()
    return torch.tensor(
        [float(torch.rand((), generator=of_row[row], dtype=torch.float64)) for row in rows],
        dtype=torch.float64,
    )


def _drawn_loss(logits: Tensor, numbers: Tensor) -> Tensor:
    """The summed loss of labels that numbers [L] draw from the model itself, logits [L, V]."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    cumulative = logits.detach().softmax(-1).cumsum(-1)
    # One number per label: so a draw costs no copy of [L, V] from a GPU.
    places = numbers.to(cumulative)[:, None] * cumulative[:, -1:]
    drawn = torch.searchsorted(cumulative, places).squeeze(1)
    return F.cross_entropy(logits, drawn.clamp(max=logits.shape[-1] - 1), reduction="sum")


def _batches(run: Run, examples: Sequence[Example]) -> Iterator[Batch]:
    """This rank's rows in batches of about equal tokens: those of an average training batch."""
    index = {task.name: task.index for task in run.tasks}
    # Rows of like length together: less padding where a batch has it.
    ordered = sorted(examples, key=lambda example: len(example.input_ids))
    mean = sum(len(example.input_ids) for example in ordered) / len(ordered)
    budget = math.ceil(mean * run.recipe.training.per_device_train_batch_size)
    mine = list(zip(ordered, row_starts(ordered), strict=True))[rank() :: world_size()]
    batch: list[tuple[Example, int]] = []
    tokens = 0
    for row in [*mine, None]:
        if batch and (row is None or tokens + len(row[0].input_ids) > budget):
            yield collate(
                [example for example, _ in batch],
                [index[example.task] for example, _ in batch],
                len(run.tasks),
                flat=run.model.flat,
                device=run.device,
                row_starts=[start for _, start in batch],
            )
            batch, tokens = [], 0
        if row is not None:
            batch.append(row)
            tokens += len(row[0].input_ids)
