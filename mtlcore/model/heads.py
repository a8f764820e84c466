"""Classification heads of single tasks on pooled hidden states."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlcore.errors import UserError
from mtlcore.model.layers import AdapterLayer

if TYPE_CHECKING:
    from mtlcore.data.batches import Batch
    from mtlcore.data.tasks import Task
    from mtlcore.model.layout import Routing
    from mtlcore.recipe import Recipe

Pooling = Literal["last", "mean"]


@dataclass(frozen=True)
class TaskFacts:
    """What the model knows of one task beside its adapters.

    `head` is how its head pools, None without a head. `options` are the texts that the head
    chooses from; None while no row was read: the head then takes the size of the saved one.
    """

    dropout: float = 0.0
    smoothing: float = 0.0
    head: Pooling | None = None
    options: tuple[str, ...] | None = None

    @classmethod
    def of(cls, task: Task, recipe: Recipe) -> TaskFacts:
        """Read the recipe, and the options of the task's rows if they were read."""
        mine = task.recipe
        dropout, smoothing = mine.lora_dropout, mine.label_smoothing_factor
        return cls(
            dropout=recipe.lora.lora_dropout if dropout is None else dropout,
            smoothing=recipe.training.label_smoothing_factor if smoothing is None else smoothing,
            head=mine.head.pooling if mine.head else None,
            options=head_options(task) if mine.head else None,
        )


def head_options(task: Task) -> tuple[str, ...] | None:
    """The options of a task's rows, which must be the same in all; None if no row was read."""
    options: tuple[str, ...] | None = None
    for split in task.splits().values():
        for example in split:
            if options is None:
                options = example.options
            elif example.options is not options and example.options != options:
                raise UserError(
                    f"task {task.name!r}: a head has the same options for every row, but row "
                    f"{example.row} of {split.path} has {list(example.options)}, others have "
                    f"{list(options)}",
                    where=f"tasks.{task.name}.head",
                    fix="remove the head: the language model chooses between answers of each row",
                )
    return options


class Heads(AdapterLayer):
    """A linear layer with bias for each task that has a head: pooled state [d] -> options.

    `weight[name]` [options, d] is normal with deviation 0.02 at the start, `bias[name]` is 0; in
    fp32 (fp64 for fp64 models), whatever the model computes in. With `routing.sink` set their
    gradients go there, task by task (or row by row), as those of every adapter.
    """

    factors = ("weight", "bias")

    def __init__(
        self,
        features: int,
        routing: Routing,
        facts: Mapping[int, TaskFacts],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
        generator: Callable[[str], torch.Generator] | None = None,
    ) -> None:
        super().__init__(routing, "head", "head")
        self.features = features
        self.facts = {adapter.tasks[0]: facts[adapter.tasks[0]] for adapter in self.adapters}
        self.index = {adapter.tasks[0]: index for index, adapter in enumerate(self.adapters)}
        dtype = torch.promote_types(dtype, torch.float32)
        for adapter in self.adapters:
            task = adapter.tasks[0]
            weight = torch.empty(len(self.facts[task].options or ()), features, dtype=dtype)
            name = routing.layout.task_names[task]
            nn.init.normal_(weight, std=0.02, generator=generator(name) if generator else None)
            bias = torch.zeros(len(weight), dtype=dtype)
            self._set(adapter, (weight.to(device), bias.to(device)))

    def __contains__(self, task: int) -> bool:
        return task in self.index

    def size(self, task: int) -> int:
        """How many options the head of a task has; 0 while that is not known."""
        return len(self.parameter(self.index[task], 0))

    def take_sizes(self, state: Mapping[str, Tensor]) -> None:
        """Give heads of unknown size that of the saved weights."""
        for index, adapter in enumerate(self.adapters):
            for factor, kind in enumerate(self.factors):
                parameter = self.parameter(index, factor)
                saved = state.get(f"{self.name}.{kind}.{adapter.name}")
                if saved is not None and not parameter.numel():
                    parameter.data = torch.zeros_like(saved, dtype=parameter.dtype).to(parameter)

    def forward(self, states: Tensor, task: int) -> Tensor:
        """Pooled states [n, d] of rows of one task -> logits [n, options]."""
        index = self.index[task]
        weight, bias = self.parameter(index, 0), self.parameter(index, 1)
        with torch.autocast(states.device.type, enabled=False):
            states = states.to(weight.dtype)
            if self.routing.sink is None and torch.is_grad_enabled():
                return F.linear(states, weight, bias)
            apply: Callable[..., Tensor] = _HeadLinear.apply  # torch leaves it untyped
            return apply(states, weight, bias, self, index, task)


class _HeadLinear(torch.autograd.Function):
    """A linear layer of one task; gradients of weight and bias go to the sink."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, heads: Heads, index: int, task: int
    ) -> Tensor:
        ctx.heads, ctx.index, ctx.task = heads, index, task
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        heads, index, task = ctx.heads, ctx.index, ctx.task
        if not heads.adapters[index].frozen:
            sink = heads.sink()
            sink.add(heads, index, 0, task, dy, x, 1.0)
            sink.add(heads, index, 1, task, dy, None, 1.0)
        return (dy @ weight if ctx.needs_input_grad[0] else None, None, None, None, None, None)


class _Prompts(NamedTuple):
    """Where the prompt tokens of a batch's rows stand among all tokens."""

    places: Tensor  # [M]
    rows: Tensor  # [M] the row of each
    counts: Tensor  # [rows]
    last: Tensor  # [rows] the place of each row's last prompt token


def prompts_of(batch: Batch) -> _Prompts:
    """The prompt tokens of each row; all tokens of a row without a prompt."""
    device = batch.input_ids.device
    counts = [example.prompt_length or len(example.input_ids) for example in batch.examples]
    width = batch.input_ids.shape[1]
    starts = [row * width for row in range(len(counts))]
    if batch.row_lengths is not None:
        starts = [0]
        for length in batch.row_lengths[:-1]:
            starts.append(starts[-1] + length)
    first, count = torch.tensor(starts), torch.tensor(counts)
    rows = torch.arange(len(counts)).repeat_interleave(count)
    ends = count.cumsum(0)
    places = torch.arange(int(ends[-1])) + (first - (ends - count))[rows]
    found = (places, rows, count, first + count - 1)
    return _Prompts(*(tensor.to(device) for tensor in found))


def pool(hidden: Tensor, prompts: _Prompts) -> Tensor:
    """[rows, d] the mean of each row's prompt states, hidden [..., d]; in fp32 at least."""
    flat = hidden.reshape(-1, hidden.shape[-1])
    flat = flat[prompts.places].to(torch.promote_types(flat.dtype, torch.float32))
    sums = flat.new_zeros(len(prompts.counts), flat.shape[1]).index_add(0, prompts.rows, flat)
    return sums / prompts.counts[:, None]


def last_states(hidden: Tensor, prompts: _Prompts, rows: Sequence[int] | slice) -> Tensor:
    """[n, d] the state of the last prompt token of some rows."""
    return hidden.reshape(-1, hidden.shape[-1])[prompts.last[rows]]
