"""What a row spells is text, even if it is spelt like a special token."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

from mtlcore.data.example import Example, RowError
from mtlcore.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CUT = "\ufdd0"
"""Stands within the spelling of a special token: what is on either side is tokenised apart.

A code point that Unicode keeps free for such uses. `split_special_tokens` of transformers would not
do: a chat template's own markers stand in the same text, and a Unigram model takes the spelling for
the token all the same.
"""
ESCAPED = (r"\ufdd0", "%EF%B7%90")
"""What becomes of a cut when a text is printed as Python or JSON, or in an address."""


def make_example(
    make: Callable[..., Example],
    row: dict[str, Any],
    *,
    task: str,
    index: int,
    tokenizer: PreTrainedTokenizerBase,
) -> Example:
    """What a format's `example` or `question` makes of a row whose texts stay text.

    RowError if the row is bad, UserError if the format tokenises cuts as if they were text.
    """
    cut = _each_column(row, lambda text: cut_special(tokenizer, text))
    try:
        example = make(cut, task=task, index=index, tokenizer=tokenizer)
    except RowError as error:
        error.args = (uncut(str(error)),)
        raise
    texts = (example.prompt, example.target, *example.options)
    if cut == row and not any(CUT in text for text in texts):
        return example
    _require_no_cut(example, row, tokenizer)
    return replace(
        example,
        prompt=uncut(example.prompt),
        target=uncut(example.target),
        options=tuple(map(uncut, example.options)),
        fields=uncut_row(example.fields),
    )


def cut_special(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text with a cut after the first character of whatever is spelt like a special token."""
    return cut_printed(tokenizer, [(text, False)])


def cut_printed(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[tuple[str, bool]]) -> str:
    """The text of `pieces` with a cut in every special token that is not meant.

    Each piece has a flag: whether it is meant as it is written, special tokens and all. A spelling
    that begins in such a piece and ends in another is cut between the two.
    """
    text = "".join(piece for piece, _ in pieces)
    if CUT in text:
        raise RowError("a text holds U+FDD0, which is not a character")
    specials = _specials(tokenizer)
    if specials is None or not specials.any_start.search(text):
        return text
    stretches = _stretches(pieces)
    cuts: set[int] = set()
    for start, stop in specials.spans(text):
        inside = [(end, meant) for begin, end, meant in stretches if begin <= start < end]
        (end, meant) = inside[0]
        if stop <= end and meant:
            continue
        cuts.add(end if meant else start + 1)
    places = [0, *sorted(cuts), len(text)]
    return CUT.join(text[a:b] for a, b in pairwise(places))


def uncut(text: str) -> str:
    """The text as it was."""
    return text.replace(CUT, "")


def uncut_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row as it was, its texts without cuts."""
    return _each_column(row, uncut)


def _stretches(pieces: Sequence[tuple[str, bool]]) -> list[tuple[int, int, bool]]:
    """Start, end and flag of every stretch of pieces that have the same flag."""
    found, start = [], 0
    for meant, group in groupby(pieces, key=lambda piece: piece[1]):
        end = start + sum(len(text) for text, _ in group)
        found.append((start, end, meant))
        start = end
    return found


@dataclass(frozen=True)
class _Specials:
    """The special tokens of a tokenizer, of two characters or more."""

    any_start: re.Pattern[str]
    each: tuple[re.Pattern[str], ...]

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Start and end of every spelling in a text, also of those that overlap."""
        for pattern in self.each:
            for found in pattern.finditer(text):
                yield found.span(1)


@lru_cache(maxsize=8)
def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids of all special tokens, those that were added to the tokenizer too."""
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset({*tokenizer.all_special_ids, *added})


@lru_cache(maxsize=8)
def _specials(tokenizer: PreTrainedTokenizerBase) -> _Specials | None:
    added = [token for token in tokenizer.added_tokens_decoder.values() if token.special]
    spellings = {*tokenizer.all_special_tokens, *(token.content for token in added)}
    longer = sorted(spelling for spelling in spellings if len(spelling) > 1)
    if not longer:
        return None
    normalized = {token.content for token in added if token.normalized}
    patterns = [
        f"(?i:{re.escape(spelling)})"
        if spelling in normalized and _ignores_case(tokenizer, spelling)
        else re.escape(spelling)
        for spelling in longer
    ]
    return _Specials(
        re.compile("|".join(patterns)), tuple(re.compile(f"(?=({one}))") for one in patterns)
    )


def _ignores_case(tokenizer: PreTrainedTokenizerBase, spelling: str) -> bool:
    """Whether the tokenizer makes one text of a spelling's cases before it looks for tokens."""
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    if normalizer is None:
        return False
    cases = (spelling, spelling.upper(), spelling.lower())
    return len({normalizer.normalize_str(case) for case in cases}) < len(set(cases))


def _require_no_cut(
    example: Example, row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Refuse tokens that spell a cut: the model would learn a character that no row has."""
    ids = (example.input_ids, *example.option_ids, example.calibration_ids)
    texts = [str(tokenizer.decode(list(one))) for one in ids if one]
    if any(CUT in text for text in texts):
        raise UserError(
            "the format tokenises the mark U+FDD0, which stands in texts that are spelt like "
            "special tokens",
            where="format",
            fix="let it tokenise with encode_prompt, encode_plain or encode_pair of "
            "mtlcore.data.tokens",
        )
    for escaped in ESCAPED:
        if any(escaped in text for text in texts) and not _has_text(row, escaped):
            raise RowError(
                f"a text that is spelt like a special token is printed with {escaped!r} in it: "
                "print the text itself, not the list or the object that holds it"
            )


def _each_column(row: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """The row with every text in it changed; its columns keep their names."""
    return {column: _each_text(value, change) for column, value in row.items()}


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    """The value with every text in it changed, in lists and objects too, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_each_text(key, change): _each_text(one, change) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_each_text(one, change) for one in value)
    return value


def _has_text(value: Any, part: str) -> bool:
    """Whether a text in the value, in lists and objects too, holds `part`."""
    if isinstance(value, str):
        return part in value
    if isinstance(value, Mapping):
        return any(_has_text(one, part) for pair in value.items() for one in pair)
    return isinstance(value, list | tuple) and any(_has_text(one, part) for one in value)
