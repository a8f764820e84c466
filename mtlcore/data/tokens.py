"""How text becomes tokens, the same for training, scoring and generating."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtlcore.data.example import IGNORED, RowError
from mtlcore.errors import UserError

if TYPE_CHECKING:
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
    ids: list[int] = tokenizer(prompt, verbose=False).input_ids
    if ids and ids[-1] == eos_id(tokenizer) and not prompt.endswith(str(tokenizer.eos_token)):
        ids = ids[:-1]
    return ids


def encode_plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The text's tokens and nothing else, as they follow other tokens."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return ids


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
    if not prompt.strip():
        raise RowError("the prompt is empty (format: text trains on text without a prompt)")
    if not target.strip():
        raise RowError("the target is empty: there is nothing to learn from this row")
    given = encode_prompt(tokenizer, prompt)
    learned = [*encode_plain(tokenizer, join_space(prompt, target) + target), eos_id(tokenizer)]
    return (*given, *learned), (*[IGNORED] * len(given), *learned), len(given)
