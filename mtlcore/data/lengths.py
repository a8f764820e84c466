"""What happens to an example that is longer than `training.max_length`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from mtlcore.data.example import IGNORED, Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def needed_length(example: Example) -> int:
    """Tokens of the prompt and of its longest continuation.

    All options count, not only the right one: a cut that depends on the label would give it away.
    """
    if not example.option_ids:
        return len(example.input_ids)
    return example.prompt_length + max(len(option) for option in example.option_ids) + 1  # an eos


def fit(
    example: Example, max_length: int, policy: Literal["drop", "truncate"], tokenizer: Any
) -> Example | None:
    """The example, cut if it is too long; None if it is to be dropped.

    A prompt loses tokens at its left, after a bos; an answer is never cut, so a row whose answer
    leaves no room for a token of the prompt is dropped. A text without a prompt is cut at its end.
    """
    excess = needed_length(example) - max_length
    if excess <= 0:
        return example
    if policy == "drop":
        return None
    if not example.prompt_length:
        return _cut_end(example, max_length)
    return _cut_prompt(example, excess, cut_place(example, max_length, tokenizer), tokenizer)


def cut_place(example: Example, max_length: int, tokenizer: PreTrainedTokenizerBase) -> int:
    """The first token that `fit` takes away when it truncates: behind a bos, or at the end."""
    if not example.prompt_length:
        return max_length
    return int(example.input_ids[0] == tokenizer.bos_token_id)


def _cut_end(example: Example, max_length: int) -> Example | None:
    if all(label == IGNORED for label in example.labels[:max_length]):
        return None
    return replace(
        example, input_ids=example.input_ids[:max_length], labels=example.labels[:max_length]
    )


def _cut_prompt(
    example: Example, excess: int, kept: int, tokenizer: PreTrainedTokenizerBase
) -> Example | None:
    if example.prompt_length - kept - excess < 1:
        return None
    ids = example.input_ids[:kept] + example.input_ids[kept + excess :]
    labels = example.labels[:kept] + example.labels[kept + excess :]
    length = example.prompt_length - excess
    shows_bos = kept and example.prompt.startswith(str(tokenizer.bos_token))
    return replace(
        example,
        prompt=str(tokenizer.decode(list(ids[0 if shows_bos else kept : length]))),
        input_ids=ids,
        # Nothing stands before position 0 that could predict it.
        labels=(IGNORED, *labels[1:]),
        prompt_length=length,
    )
