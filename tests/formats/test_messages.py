"""messages: exact token masks from the chat template, or a clear refusal."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from mtlcore.data.example import IGNORED, Example, RowError
from mtlcore.errors import UserError
from mtlcore_plugins.formats.messages import Messages
from tests.helpers import learned_text, small_tokenizer

TOKENIZER = small_tokenizer()
TALK = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "the film?"},
    {"role": "assistant", "content": "good"},
    {"role": "user", "content": "the actors?"},
    {"role": "assistant", "content": "bad"},
]


def example(messages: Any, tokenizer: Any = TOKENIZER, **options: Any) -> Example:
    row = {"messages": messages}
    return Messages(**options).example(row, task="a", index=0, tokenizer=tokenizer)


def with_template(template: str | None) -> Any:
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.chat_template = template
    return tokenizer


def test_all_assistant_turns_are_learned_each_with_its_eos() -> None:
    made = example(TALK)
    assert learned_text(made, TOKENIZER) == "good</s>bad</s>"
    whole = TOKENIZER.apply_chat_template(TALK, tokenize=False)
    assert TOKENIZER.decode(made.input_ids) == whole.rstrip("\n")


def test_the_last_turn_alone_can_be_learned() -> None:
    made = example(TALK, train_on="last")
    assert learned_text(made, TOKENIZER) == "bad</s>"
    assert made.input_ids == example(TALK).input_ids


def test_the_prompt_is_all_before_the_last_answer() -> None:
    made = example(TALK)
    prompt = TOKENIZER.apply_chat_template(TALK[:-1], tokenize=False, add_generation_prompt=True)
    assert made.prompt == prompt
    assert TOKENIZER.decode(made.input_ids[: made.prompt_length]) == prompt
    assert made.target == "bad"


def test_messages_after_the_last_answer_are_left_out() -> None:
    assert (
        example([*TALK, {"role": "user", "content": "thanks"}]).input_ids == example(TALK).input_ids
    )


def test_an_eos_is_added_where_the_template_puts_none() -> None:
    plain = "{% for m in messages %}{{ m.role }}:\n{{ m.content }}\n{% endfor %}"
    plain += "{% if add_generation_prompt %}assistant:\n{% endif %}"
    made = example(TALK, with_template(plain))
    assert made.input_ids[-1] == made.labels[-1] == TOKENIZER.eos_token_id
    assert learned_text(made, TOKENIZER) == "good\nbad\n</s>"


def test_a_template_that_rewrites_the_past_is_refused() -> None:
    forgetful = "{% for m in messages %}{% if loop.last or m.role != 'assistant' %}"
    forgetful += "<|{{ m.role }}|>{{ m.content }}{% endif %}{% endfor %}"
    forgetful += "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    tokenizer = with_template(forgetful)
    with pytest.raises(RowError, match="not prefix-stable"):
        example(TALK, tokenizer)
    assert learned_text(example(TALK, tokenizer, train_on="last"), tokenizer) == "bad</s>"


def test_a_token_over_the_seam_is_refused() -> None:
    merging = "{% for m in messages %}{{ m.content }}{% endfor %}"
    talk = [{"role": "user", "content": "the fi"}, {"role": "assistant", "content": "lm was"}]
    with pytest.raises(RowError, match="the tokens of the conversation up to message 1"):
        example(talk, with_template(merging))


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        (None, "found null"),
        ("hello", "found a text"),
        ([], "an empty list"),
        (["hello"], "message 0 must be an object"),
        ([{"role": "usr", "content": "x"}], "did you mean 'user'"),
        ([{"content": "x"}], "has the role None"),
        ([{"role": "user", "content": 3}], "content of message 0 must be a text, found the number"),
        ([{"role": "user", "content": "x"}], "no message has the role 'assistant'"),
        ([TALK[1], {"role": "assistant", "content": " "}], "message 1 of the assistant is empty"),
        ([TALK[1], {"role": "assistant", "content": None}], "must be a text, found null"),
        ([{"role": "user", "content": "\udfff"}, TALK[2]], "not valid Unicode"),
    ],
)
def test_bad_conversations_are_bad_rows(messages: Any, why: str) -> None:
    with pytest.raises(RowError, match=why):
        example(messages)


def test_the_templates_own_refusal_is_passed_on() -> None:
    strict = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(RowError, match="refuses the conversation: roles must alternate"):
        example(TALK, with_template(strict))


def test_a_tokenizer_without_chat_template_is_refused() -> None:
    with pytest.raises(UserError, match=r"(?s)has no chat template.*instruct model"):
        example(TALK, with_template(None))


def test_nothing_of_the_user_or_the_template_is_learned() -> None:
    made = example(TALK)
    learned = [i for i, label in enumerate(made.labels) if label != IGNORED]
    headers = {TOKENIZER.convert_tokens_to_ids(f"<|{role}|>") for role in ("user", "assistant")}
    assert not headers & {made.input_ids[i] for i in learned}
