"""Classification heads of single tasks on pooled hidden states."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

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
    chooses from; None while no row was read: the head then takes size and options of the saved one.
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

    def take_options(self, task: int, options: tuple[str, ...]) -> None:
        """Say which options the head of a task was trained to choose from."""
        self.facts[task] = replace(self.facts[task], options=options)

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


class PromptStates:
    """The last hidden states of a batch's prompts, pooled as heads and penalties ask for them.

    `hidden` [..., d] holds the states of all tokens. A row without a prompt counts as a whole.
    """

    def __init__(self, hidden: Tensor, batch: Batch) -> None:
        self.hidden = hidden.reshape(-1, hidden.shape[-1])
        device = hidden.device
        counts = [example.prompt_length or len(example.input_ids) for example in batch.examples]
        width = batch.input_ids.shape[1]
        starts = [row * width for row in range(len(counts))]
        if batch.row_lengths is not None:
            starts = [0, *accumulate(batch.row_lengths[:-1])]
        self.counts = torch.tensor(counts, device=device)  # [rows] prompt tokens
        self.starts = torch.tensor(starts, device=device)  # [rows] where they begin

    @cached_property
    def last(self) -> Tensor:
        """[rows, d] the state of each prompt's last token."""
        return self.hidden[self.starts + self.counts - 1]

    @cached_property
    def mean(self) -> Tensor:
        """[rows, d] the mean of each prompt's states, in fp32 at least."""
        ends = self.counts.cumsum(0)
        rows = torch.arange(len(self.counts), device=ends.device).repeat_interleave(self.counts)
        places = torch.arange(len(rows), device=ends.device)
        places = places + (self.starts - (ends - self.counts))[rows]  # [M] among all tokens
        states = self.hidden[places]
        states = states.to(torch.promote_types(states.dtype, torch.float32))
        sums = states.new_zeros(len(self.counts), states.shape[1]).index_add(0, rows, states)
        return sums / self.counts[:, None]


POOLINGS: dict[Pooling, Callable[[PromptStates], Tensor]] = {
    "last": lambda states: states.last,
    "mean": lambda states: states.mean,
}
"""How a head reads a row's prompt: -> [rows, d]."""
