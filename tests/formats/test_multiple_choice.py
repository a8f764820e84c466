"""multiple_choice: answers from columns or a list, labels in three spellings, calibration."""

from __future__ import annotations

from typing import Any

import pytest

from mtlcore.data.example import Example, RowError
from mtlcore_plugins.formats.multiple_choice import MultipleChoice
from tests.helpers import learned_text, small_tokenizer

TOKENIZER = small_tokenizer()
ROW = {"prompt": "the film is", "a": "good", "b": "very bad", "label": "b"}


def example(made: MultipleChoice, **columns: Any) -> Example:
    return made.example({**ROW, **columns}, task="t", index=0, tokenizer=TOKENIZER)


@pytest.mark.parametrize("label", [1, "b", "very bad"])
def test_the_right_answer_is_learned_and_all_are_options(label: int | str) -> None:
    made = example(MultipleChoice(options=["a", "b"]), label=label)
    assert learned_text(made, TOKENIZER) == " very bad</s>"
    assert made.options == ("good", "very bad")
    assert made.label == 1
    assert [TOKENIZER.decode(ids) for ids in made.option_ids] == [" good", " very bad"]
    assert made.calibration_ids == ()


def test_answers_may_be_a_list() -> None:
    made = example(MultipleChoice(), options=["x", "y", "z"], label=2)
    assert made.options == ("x", "y", "z")
    assert made.target == "z"


def test_the_calibration_prompt_lacks_the_question() -> None:
    made = example(MultipleChoice(options=["a", "b"], calibration="it is"))
    assert TOKENIZER.decode(list(made.calibration_ids)) == "<s>it is"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": "c"}, "none of the 2 answers"),
        ({"label": 2}, "none of the 2 answers"),
        ({"label": True}, "none of the 2 answers"),
        ({"a": ""}, "answer 0 must be a text"),
        ({"a": 3}, "must be a text, found the number 3"),
        ({"a": "very bad"}, "two answers are the same"),
    ],
)
def test_bad_rows_say_what_is_wrong(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError, match=message):
        example(MultipleChoice(options=["a", "b"]), **columns)


@pytest.mark.parametrize("options", ["good", ["one"], None])
def test_a_list_of_answers_must_be_one(options: Any) -> None:
    with pytest.raises(RowError, match="list of 2 or more"):
        example(MultipleChoice(), options=options)


def test_one_option_column_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 columns"):
        MultipleChoice(options=["a"])
