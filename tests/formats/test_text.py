"""text: every predictable token is learned."""

from __future__ import annotations

import pytest

from mtlcore.data.example import IGNORED, RowError
from mtlcore_plugins.formats.text import Text
from tests.helpers import small_tokenizer


@pytest.mark.parametrize("adds_eos", [False, True])
def test_all_tokens_but_the_bos_are_learned(adds_eos: bool) -> None:
    tokenizer = small_tokenizer(adds_eos=adds_eos)
    made = Text().example({"text": "the film"}, task="a", index=0, tokenizer=tokenizer)
    assert made.labels == (IGNORED, *made.input_ids[1:])
    assert made.input_ids[0] == tokenizer.bos_token_id
    assert made.input_ids.count(tokenizer.eos_token_id) == 1
    assert (made.prompt, made.prompt_length, made.target) == ("", 0, "the film")


def test_without_a_bos_the_first_token_cannot_be_learned() -> None:
    tokenizer = small_tokenizer(bos=False)
    made = Text().example({"text": "the film"}, task="a", index=0, tokenizer=tokenizer)
    assert made.input_ids[-1] == tokenizer.eos_token_id
    assert made.labels == (IGNORED, *made.input_ids[1:])


@pytest.mark.parametrize("value", ["", "  ", None, 3, ["x"]])
def test_what_is_not_a_text_is_a_bad_row(value: object) -> None:
    with pytest.raises(RowError, match="text"):
        Text().example({"text": value}, task="a", index=0, tokenizer=small_tokenizer())
