"""The rows of each step, and the flat batch they become."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from mtlcore.data.example import IGNORED, Example
from mtlcore.errors import MtlcoreError
from mtlcore.model.layout import Segment, row_segments

if TYPE_CHECKING:
    from mtlcore.run import Run

_Row = TypeVar("_Row")


@dataclass(frozen=True)
class Batch:
    """Rows of several tasks, sorted by task.

    Flat form: `input_ids` and `position_ids` [1, N], the rows one after another without padding,
    `row_lengths` their lengths. Padded form (for models whose attention cannot be replaced):
    `input_ids` [rows, length] with `attention_mask`, `row_lengths` None.

    Of the L labelled positions: `label_index` [L] where the logits that predict them stand among
    all tokens, `labels` [L] the tokens to predict. Of the H rows that the head of their task
    answers: `head_rows` their numbers, `head_labels` [H] the right options. `label_rows` and
    `label_tasks` [L + H] are the row and task of each labelled position, then of each head row.
    """

    examples: tuple[Example, ...]
    rows: tuple[Segment, ...]
    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor | None
    row_lengths: tuple[int, ...] | None
    label_index: Tensor
    labels: Tensor
    label_rows: Tensor
    label_tasks: Tensor
    counts: tuple[int, ...]
    """[T] labels of each task: labelled tokens, and rows that its head answers."""
    tokens: tuple[int, ...]
    """[T] tokens of each task, padding left out."""
    head_rows: tuple[int, ...] = ()
    head_labels: Tensor | None = None
    true_lengths: tuple[int, ...] | None = None
    """Padded form: the length of each row without its padding."""
    row_starts: tuple[int, ...] | None = None
    """The tokens of its task before each row in the step; None: as if the batch were the step."""


def collate(
    examples: Sequence[Example],
    tasks: Sequence[int],
    task_count: int,
    *,
    flat: bool = True,
    device: torch.device | str = "cpu",
    row_starts: Sequence[int] | None = None,
) -> Batch:
    """Build a batch from examples and their task indices; rows come out sorted by task."""
    order = sorted(range(len(examples)), key=lambda i: tasks[i])
    examples = [examples[i] for i in order]
    tasks = [tasks[i] for i in order]
    lengths = [len(example.input_ids) for example in examples]
    width = 0 if flat else max(lengths)
    ids: list[int] = []
    positions: list[int] = []
    index: list[int] = []
    labels: list[int] = []
    label_rows: list[int] = []
    for row, (example, length) in enumerate(zip(examples, lengths, strict=True)):
        start = len(ids)
        padding = max(width - length, 0)
        ids += [*example.input_ids, *[0] * padding]
        positions += [*range(length), *[0] * padding]
        for position in range(1, length):
            label = example.labels[position]
            if label != IGNORED:
                index.append(start + position - 1)
                labels.append(label)
                label_rows.append(row)
    heads = [row for row, example in enumerate(examples) if example.head]
    label_rows += heads
    shape = (1, -1) if flat else (len(examples), width)
    mask = None
    if not flat:
        mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long().to(device)
    counts, tokens = [0] * task_count, [0] * task_count
    for row in label_rows:
        counts[tasks[row]] += 1
    for task, length in zip(tasks, lengths, strict=True):
        tokens[task] += length
    row_of_label = torch.tensor(label_rows, dtype=torch.long, device=device)
    return Batch(
        examples=tuple(examples),
        rows=row_segments(tasks),
        input_ids=torch.tensor(ids, device=device).view(shape),
        position_ids=torch.tensor(positions, device=device).view(shape),
        attention_mask=mask,
        row_lengths=tuple(lengths) if flat else None,
        label_index=torch.tensor(index, dtype=torch.long, device=device),
        labels=torch.tensor(labels, dtype=torch.long, device=device),
        label_rows=row_of_label,
        label_tasks=torch.tensor(tasks, device=device)[row_of_label],
        counts=tuple(counts),
        tokens=tuple(tokens),
        head_rows=tuple(heads),
        head_labels=torch.tensor([examples[row].label for row in heads], device=device)
        if heads
        else None,
        true_lengths=None if flat else tuple(lengths),
        row_starts=None if row_starts is None else tuple(row_starts[i] for i in order),
    )


def micro_batches(
    run: Run,
    examples: Sequence[Example],
    *,
    flat: bool,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
) -> list[Batch]:
    """The micro-batches that one rank makes of the examples of a step."""
    count = run.recipe.training.gradient_accumulation_steps * world_size
    index = {task.name: task.index for task in run.tasks}
    hands = zip(deal(examples, count), deal(row_starts(examples), count), strict=True)
    return [
        collate(
            hand,
            [index[example.task] for example in hand],
            len(run.tasks),
            flat=flat,
            device=device,
            row_starts=starts,
        )
        for hand, starts in islice(hands, rank, None, world_size)
    ]


def row_starts(examples: Sequence[Example]) -> list[int]:
    """How many tokens of its task stand before each of the rows."""
    seen: Counter[str] = Counter()
    starts: list[int] = []
    for example in examples:
        starts.append(seen[example.task])
        seen[example.task] += len(example.input_ids)
    return starts


def draw_rows(run: Run, step: int) -> list[list[int]]:
    """The row ids of each task [T] for one step over all ranks; the draw is noted in the run."""
    counts = run.plugins.hook.mtlcore_plan_step(run=run, step=step)
    names = [task.name for task in run.tasks]
    if counts is None or len(counts) != len(names) or min(counts) < 0 or sum(counts) == 0:
        raise MtlcoreError(f"mtlcore_plan_step gave {counts} as rows of the tasks {names}")
    drawn: list[list[int]] = [[] for _ in names]
    for task, count in zip(run.tasks, counts, strict=True):
        if not count:
            continue
        rows = run.plugins.hook.mtlcore_choose_rows(run=run, step=step, task=task, count=count)
        if rows is None or len(rows) != count:
            raise MtlcoreError(f"mtlcore_choose_rows gave {rows} as {count} rows of {task.name!r}")
        if not all(0 <= row < len(task.train) for row in rows):
            raise MtlcoreError(
                f"mtlcore_choose_rows gave the row ids {rows} of {task.name!r}, which has rows "
                f"0 .. {len(task.train) - 1}"
            )
        drawn[task.index] = list(rows)
        run.rows_drawn[task.index] += count
    return drawn


def plan_rows(run: Run, step: int) -> list[Example]:
    """The examples of one step over all ranks, sorted by task, and the count drawn is noted.

    Three hooks decide: how many rows of each task, which ones, and which to add. All of them draw
    from generators seeded by (seed, step), so every rank and every resumed run sees the same rows.
    """
    drawn = draw_rows(run, step)
    examples = [
        task.train[row] for task, rows in zip(run.tasks, drawn, strict=True) for row in rows
    ]
    for added in run.plugins.hook.mtlcore_add_rows(run=run, step=step, rows=examples):
        examples += added
    order = {task.name: index for index, task in enumerate(run.tasks)}
    return sorted(examples, key=lambda example: order[example.task])


def deal(rows: Sequence[_Row], hands: int) -> list[Sequence[_Row]]:
    """Deal the rows of a step to micro-batches (and ranks), each as mixed as the whole."""
    return [rows[hand::hands] for hand in range(hands) if rows[hand::hands]]
