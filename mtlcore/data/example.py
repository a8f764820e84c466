"""One row as the model sees it, and the error of a row that cannot become one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mtlcore.errors import UserError

IGNORED = -100
"""The label of a token that is not trained on (the name and value of Hugging Face)."""


class RowError(ValueError):
    """A row that its format cannot use; the message says why, the loader adds the place.

    option: the option of the format that the row does not fit. If no row fits it, it is at fault.
    missing: the column that the row lacks; the loader adds those that it has.
    """

    def __init__(self, message: str, *, option: str = "", missing: str = "") -> None:
        super().__init__(message)
        self.option = option
        self.missing = missing


@dataclass(frozen=True, slots=True)
class Example:
    """One tokenised row.

    `input_ids` and `labels` have the same length; `labels` is -100 where a token is not trained on,
    and always at position 0, which nothing predicts. The first `prompt_length` tokens are what the
    model is given when it answers.
    """

    task: str
    row: int
    """Row number in the file of its split, from 0."""
    prompt: str
    target: str
    """The text to be learned, and what an answer is compared with."""
    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    prompt_length: int
    options: tuple[str, ...] = ()
    """Classification: the words, in the order of the label set."""
    option_ids: tuple[tuple[int, ...], ...] = ()
    """Classification: the tokens of each word as they follow the prompt."""
    calibration_ids: tuple[int, ...] = ()
    """With options: a prompt without the question; its likelihoods are taken off the scores."""
    label: int | None = None
    """Classification: index of the right word in `options`."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """The row's columns, by the file's names and by the format's names."""
    head: bool = False
    """Whether the task's head answers: then `input_ids` is the prompt and no token is learned."""

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.input_ids):
            raise ValueError(f"{len(self.labels)} labels for {len(self.input_ids)} tokens")
        if self.head and any(label != IGNORED for label in self.labels):
            raise ValueError("a row that a head answers has no tokens to learn")

    @property
    def label_count(self) -> int:
        """How many labels are learned: tokens, or one with a head."""
        return 1 if self.head else sum(label != IGNORED for label in self.labels)


def without_answer(example: Example) -> Example:
    """The same row as a question alone: no target, no label, no token to learn."""
    ids = example.input_ids[: example.prompt_length]
    ignored = (IGNORED,) * len(ids)
    return replace(example, target="", input_ids=ids, labels=ignored, label=None)


def head_row(example: Example) -> Example:
    """The same row for the head of its task: the prompt alone, answered by an option's index."""
    if example.head:
        return example
    if not example.options or example.label is None or not example.prompt_length:
        raise UserError(
            f"task {example.task!r} has a head, but its format gives no options to choose from",
            where=f"tasks.{example.task}.head",
            fix="use the format classification, or remove the head: the language model answers",
        )
    length = example.prompt_length
    return replace(
        example,
        input_ids=example.input_ids[:length],
        labels=(IGNORED,) * length,
        option_ids=(),
        calibration_ids=(),
        head=True,
    )
