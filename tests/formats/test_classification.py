"""classification: the label set, its words, and their tokens."""

from __future__ import annotations

from typing import Any

import pytest

from mtlcore.data.example import Example, RowError
from mtlcore.errors import UserError
from mtlcore_plugins.formats.classification import Classification
from tests.helpers import learned_text, small_tokenizer

TOKENIZER = small_tokenizer()


def example(made: Classification, label: Any, **columns: Any) -> Example:
    row = {"text": "the film", "label": label, **columns}
    return made.example(row, task="a", index=0, tokenizer=TOKENIZER)


def test_the_default_prompt_is_the_text_and_a_line_for_the_label() -> None:
    made = example(Classification(labels=["good", "bad"]), "bad")
    assert made.prompt == "the film\nLabel:"
    assert learned_text(made, TOKENIZER) == " bad</s>"
    assert made.target == "bad"
    assert (made.options, made.label) == (("good", "bad"), 1)


def test_option_ids_are_the_tokens_that_follow_the_prompt() -> None:
    made = example(Classification(labels=["good", "bad"]), "bad")
    assert [TOKENIZER.decode(ids) for ids in made.option_ids] == [" good", " bad"]
    after = made.input_ids[made.prompt_length :]
    assert after == (*made.option_ids[1], TOKENIZER.eos_token_id)
    spaced = example(Classification(labels=["good", "bad"], template="{{ text }}\n\n"), "bad")
    assert [TOKENIZER.decode(ids) for ids in spaced.option_ids] == ["good", "bad"]


def test_options_end_with_eos_only_where_one_begins_another() -> None:
    made = example(Classification(labels=["good", "good enough"]), "good")
    assert all(ids[-1] == TOKENIZER.eos_token_id for ids in made.option_ids)
    assert made.input_ids[made.prompt_length :] == made.option_ids[0]
    assert made.input_ids.count(TOKENIZER.eos_token_id) == 1


def test_the_label_set_is_collected_sorted_from_the_train_rows() -> None:
    made = Classification()
    made.prepare([{"label": label} for label in ("x", "b ", "b", None, "10", 2, ["y"])])
    assert made.options == ("2", "10", "b", "x")
    assert example(made, "b").label == 2
    with pytest.raises(RowError, match="found in the train rows"):
        example(made, "c")


@pytest.mark.parametrize(
    "labels", [["0", "1"], [0, 1], {"0": "no", "1": "yes"}, {0: "no", 1: "yes"}]
)
@pytest.mark.parametrize("value", [1, 1.0, "1", " 1 ", "1.0"])
def test_numbers_meet_their_texts(labels: Any, value: Any) -> None:
    made = example(Classification(labels=labels), value)
    assert made.label == 1
    assert made.target in ("1", "yes")


def test_booleans_and_shared_words() -> None:
    made = Classification(labels={True: "yes", False: "no"})
    assert example(made, True).target == example(made, "true").target == "yes"
    stars = Classification(labels={1: "bad", 2: "bad", 3: "good"})
    assert stars.options == ("bad", "good")
    assert [example(stars, value).label for value in (1, 2, 3)] == [0, 0, 1]


def test_a_label_outside_the_set_names_the_set_and_the_nearest() -> None:
    made = Classification(labels=["positive", "negative"])
    with pytest.raises(
        RowError, match=r"'positve' is not in the set: 'positive', 'negative'; did you"
    ):
        example(made, "positve")


@pytest.mark.parametrize("value", [None, ["x"], {"a": 1}, float("nan")])
def test_what_cannot_be_a_label_is_a_bad_row(value: Any) -> None:
    with pytest.raises(RowError, match="'label' must be a text or a number"):
        example(Classification(labels=["x", "y"]), value)


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        (["one"], "at least 2"),
        (["a", ""], "empty"),
        (["1", 1], "the same"),
        ({1: "x", 2: "x"}, "at least 2"),
    ],
)
def test_impossible_label_sets_are_refused(labels: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Classification(labels=labels)


def test_one_label_in_all_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 labels are needed"):
        Classification().prepare([{"label": "x"}] * 3)


def test_a_template_takes_any_column() -> None:
    made = Classification(labels=["yes", "no"], template="{{ premise }} => {{ text }}?")
    assert set(made.columns) == {"label"}
    assert example(made, "no", premise="p").prompt == "p => the film?"


def test_labels_with_the_same_tokens_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from mtlcore_plugins.formats import classification

    monkeypatch.setattr(classification, "encode_plain", lambda *_: [7])
    with pytest.raises(UserError, match="'a' and 'b' are the same tokens"):
        example(Classification(labels=["a", "b"]), "a")
