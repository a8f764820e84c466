"""A question is the row of training without its answer, whatever the format."""

from __future__ import annotations

from typing import Any

import pytest

from mtlcore.data.example import RowError, without_answer
from mtlcore.plugins import PluginManager
from mtlcore.recipe import ComponentSpec
from tests.helpers import small_tokenizer

TALK = [
    {"role": "user", "content": "the film was"},
    {"role": "assistant", "content": "good"},
    {"role": "user", "content": "and the actors were"},
    {"role": "assistant", "content": "bad"},
]
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "classification": ({"labels": ["good", "bad"]}, {"text": "the film"}, {"label": "bad"}),
    "multiple_choice": (
        {"calibration": "say"},
        {"prompt": "the film was", "options": ["good", "bad"]},
        {"label": 1},
    ),
    "prompt_completion": ({}, {"prompt": "the film was"}, {"completion": "good"}),
    "messages": ({}, {"messages": TALK[:3]}, {"messages": TALK}),
}


def format_of(name: str) -> Any:
    plugins = PluginManager.load(environ={})
    return plugins.create("format", ComponentSpec(name=name, options=CASES[name][0]), "format")


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_a_question_is_the_row_without_its_answer(name: str, bos: bool) -> None:
    form = format_of(name)
    _, asked, answer = CASES[name]
    place: dict[str, Any] = {"task": "t", "index": 3, "tokenizer": small_tokenizer(bos=bos)}
    whole = form.example({**asked, **answer}, **place)
    question = form.question({**asked, **answer}, **place)
    assert question == without_answer(whole)
    assert len(question.input_ids) == question.prompt_length > 0
    assert question.label_count == 0
    alone = form.question(asked, **place)
    assert (alone.prompt, alone.input_ids) == (question.prompt, question.input_ids)
    assert alone.fields == asked


def test_a_conversation_needs_a_message_before_the_answer() -> None:
    row = {"messages": TALK[1:2]}
    with pytest.raises(RowError, match="no message stands before the answer"):
        format_of("messages").question(row, task="t", index=0, tokenizer=small_tokenizer())


@pytest.mark.parametrize("name", ["multiple_choice", "prompt_completion", "classification"])
def test_an_empty_prompt_cannot_be_asked(name: str) -> None:
    row = {key: " " if isinstance(value, str) else value for key, value in CASES[name][1].items()}
    with pytest.raises(RowError, match="is empty"):
        format_of(name).question(row, task="t", index=0, tokenizer=small_tokenizer())
