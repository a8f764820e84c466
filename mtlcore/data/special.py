"""What a row spells is text, even if it is spelt like a special token."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from mtlcore.data.example import Example, RowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CUT = "\ufdd0"
"""Stands within the spelling of a special token: what is on either side is tokenised apart.

A code point that Unicode keeps free for such uses. `split_special_tokens` of transformers would not
do: a chat template's own markers stand in the same text, and a Unigram model takes the spelling for
the token all the same.
"""


def make_example(
    make: Callable[..., Example],
    row: dict[str, Any],
    *,
    task: str,
    index: int,
    tokenizer: PreTrainedTokenizerBase,
) -> Example:
    """What a format's `example` or `question` makes of a row whose texts stay text.

    RowError if the row is bad.
    """
    cut = _each_text(row, lambda text: cut_special(tokenizer, text))
    if cut == row:
        return make(row, task=task, index=index, tokenizer=tokenizer)
    try:
        example = make(cut, task=task, index=index, tokenizer=tokenizer)
    except RowError as error:
        raise RowError(uncut(str(error))) from None
    return replace(
        example,
        prompt=uncut(example.prompt),
        target=uncut(example.target),
        options=tuple(map(uncut, example.options)),
        fields=_each_text(example.fields, uncut),
    )


def cut_special(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text with a cut after the first character of whatever is spelt like a special token."""
    if CUT in text:
        raise RowError("a text holds U+FDD0, which is not a character")
    starts = _starts(tokenizer)
    return starts.sub(lambda found: found[0] + CUT, text) if starts else text


def uncut(text: str) -> str:
    """The text as it was."""
    return text.replace(CUT, "")


@lru_cache(maxsize=8)
def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids of all special tokens, those that were added to the tokenizer too."""
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset({*tokenizer.all_special_ids, *added})


@lru_cache(maxsize=8)
def _starts(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """Finds the first character of every special token, also of those that overlap."""
    added = tokenizer.added_tokens_decoder.values()
    spellings = {
        *tokenizer.all_special_tokens,
        *(token.content for token in added if token.special),
    }
    longer = sorted(spelling for spelling in spellings if len(spelling) > 1)
    alternatives = "|".join(map(re.escape, longer))
    return re.compile(f"(?={alternatives}).", re.DOTALL) if longer else None


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    """The value with every text in it changed, in lists and objects too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _each_text(one, change) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_each_text(one, change) for one in value)
    return value
