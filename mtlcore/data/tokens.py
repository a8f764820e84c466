"""How text becomes tokens, the same for training, scoring and generating."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from mtlcore.data.example import IGNORED, RowError
from mtlcore.data.special import CUT
from mtlcore.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase


def eos_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends an answer; UserError if the tokenizer has none."""
    if isinstance(tokenizer.eos_token_id, int):
        return tokenizer.eos_token_id
    raise UserError(
        f"the tokenizer {tokenizer.name_or_path!r} has no eos token, so an answer could never end",
        where="model.name_or_path",
        fix="set eos_token in the model's tokenizer_config.json, or choose another model",
    )


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """The prompt's tokens: a bos that the tokenizer puts before stays, an eos after goes."""
    first, *rest = prompt.split(CUT)
    ids: list[int] = tokenizer(first, verbose=False).input_ids
    if ids and ids[-1] == eos_id(tokenizer) and not first.endswith(str(tokenizer.eos_token)):
        ids = ids[:-1]
    return ids + _following(tokenizer, rest)


def encode_start(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The text's tokens and nothing else, as they stand at the beginning."""
    first, *rest = text.split(CUT)
    ids: list[int] = tokenizer(first, add_special_tokens=False, verbose=False).input_ids
    return ids + _following(tokenizer, rest)


def encode_question(tokenizer: PreTrainedTokenizerBase, prompt: str) -> tuple[int, ...]:
    """The tokens of a prompt that is to be answered; RowError if it is empty."""
    if not prompt.strip():
        raise RowError("the prompt is empty (format: text trains on text without a prompt)")
    return tuple(encode_prompt(tokenizer, prompt))


def encode_plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The text's tokens and nothing else, as they follow other tokens."""
    return _following(tokenizer, text.split(CUT))


def _following(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[str]) -> list[int]:
    """The tokens of texts that go on after other tokens, each by itself."""
    inner = _without_prefix(tokenizer)
    ids: list[int] = []
    for piece in pieces:
        if inner is None:
            ids += tokenizer(piece, add_special_tokens=False, verbose=False).input_ids
        else:
            ids += inner.encode(piece, add_special_tokens=False).ids
    return ids


@lru_cache(maxsize=8)
def _without_prefix(tokenizer: PreTrainedTokenizerBase) -> Tokenizer | None:
    """A copy that puts no space before a text; None if the tokenizer itself puts none.

    SentencePiece models and their kin begin every text with a space ("▁"). Text that goes on after
    other tokens must not, or " word" becomes "▁▁word" and "word" becomes "▁word".
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    state = json.loads(backend.to_str())
    parts = {key: state[key] for key in ("normalizer", "pre_tokenizer")}
    changed = {key: _no_prefix(part) for key, part in parts.items()}
    if changed == parts:
        return None
    from tokenizers import Tokenizer

    state |= {**changed, "truncation": None, "padding": None}
    copy: Tokenizer = Tokenizer.from_str(json.dumps(state))
    return copy


def _no_prefix(part: dict[str, Any] | None) -> dict[str, Any] | None:
    """A normalizer or pre-tokenizer of tokenizer.json without what puts a space before a text."""
    kind = (part or {}).get("type")
    if part is None or kind == "Prepend":
        return None
    if kind == "Metaspace":
        return {**part, "prepend_scheme": "never"}
    if kind == "ByteLevel":
        return {**part, "add_prefix_space": False}
    if kind == "Sequence":
        key = "normalizers" if "normalizers" in part else "pretokenizers"
        return {**part, key: [changed for one in part[key] if (changed := _no_prefix(one))]}
    return part


def join_space(prompt: str, target: str) -> str:
    """What is put before the target: a space, if neither side has white space at the seam."""
    seam = prompt[-1:].isspace() or target[:1].isspace()
    return "" if seam or not prompt else " "


def encode_pair(
    tokenizer: PreTrainedTokenizerBase, prompt: str, target: str
) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Tokens, labels and prompt length of a prompt and the answer to learn.

    Prompt and answer are tokenised apart, so that the prompt's tokens are the same with and without
    an answer; only the answer and the eos after it are trained. RowError if either is empty.
    """
    given = encode_question(tokenizer, prompt)
    if not target.strip():
        raise RowError("the target is empty: there is nothing to learn from this row")
    learned = [*encode_plain(tokenizer, join_space(prompt, target) + target), eos_id(tokenizer)]
    return (*given, *learned), (*[IGNORED] * len(given), *learned), len(given)
