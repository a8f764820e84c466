"""Cleaning: texts in normal form, duplicates and leaked rows dropped, every row accounted for."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtlcore.data.cleaning import clean_text, clean_value, normalized
from mtlcore.data.tasks import Counts, Task
from mtlcore.errors import UserError
from mtlcore.recipe import CleaningRecipe
from tests.helpers import load, write_jsonl

FORMS = ["NFC", "NFKC"]
TEXTS = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from("\u0301 \u00a0\u2003é\n")
)


def load_one(train: Path, cleaning: dict[str, Any], **options: Any) -> Task:
    task = {"train": str(train), "format": "prompt_completion", "cleaning": cleaning, **options}
    return load({"a": task})[0]


def row(prompt: str, completion: str = "yes", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, **more}


def accounted(counts: Counts) -> int:
    return (
        counts.used + counts.dropped_overlong + counts.skipped + counts.duplicates + counts.leaked
    )


# -- texts ----------------------------------------------------------------------------------------


@given(text=TEXTS, form=st.sampled_from(["keep", *FORMS]), whitespace=st.booleans())
def test_cleaning_twice_is_cleaning_once(text: str, form: Any, whitespace: bool) -> None:
    cleaning = CleaningRecipe(unicode=form, whitespace=whitespace)
    once = clean_text(text, cleaning)
    assert clean_text(once, cleaning) == once


@given(text=TEXTS, form=st.sampled_from(FORMS))
def test_texts_of_equal_meaning_become_equal(text: str, form: Any) -> None:
    cleaning = CleaningRecipe(unicode=form)
    apart, joined = unicodedata.normalize("NFD", text), unicodedata.normalize("NFC", text)
    assert clean_text(apart, cleaning) == clean_text(joined, cleaning)
    assert normalized(apart) == normalized(joined)


def test_without_cleaning_no_text_is_touched(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [row(" cafe\u0301  au\tlait "), row("x")])
    task = load_one(path, {}, split={"eval": 0.0})
    assert task.train[0].prompt == " cafe\u0301  au\tlait "
    assert task.train.report.cleaned == 0


def test_texts_inside_lists_and_objects_are_cleaned_too() -> None:
    cleaning = CleaningRecipe(unicode="NFC", whitespace=True)
    value = {"a": [{"content": " e\u0301 \n x"}], " b ": 3, "c": None}
    assert clean_value(value, cleaning) == {"a": [{"content": "\u00e9 x"}], " b ": 3, "c": None}


def test_normal_forms_reach_the_examples_and_are_counted(tmp_path: Path) -> None:
    rows = [row("cafe\u0301"), row("caf\u00e9"), row("ﬁne  day")]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    task = load_one(path, {"unicode": "NFKC", "whitespace": True}, split={"eval": 0.0})
    assert [example.prompt for example in task.train] == ["café", "café", "fine day"]
    assert [example.row for example in task.train] == [0, 1, 2]
    assert task.train.report.cleaned == 2
    assert "2 normalised" in task.describe()


def test_labels_that_differ_in_space_and_form_become_one(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "label": "e\u0301 a" if i % 2 else "\u00e9  a"} for i in range(4)]
    path = write_jsonl(tmp_path / "a.jsonl", [*rows, {"text": "t", "label": "b"}])
    task = load_one(path, {"unicode": "NFC", "whitespace": True}, format="classification")
    assert task.train[0].options == ("b", "é a")


# -- duplicates -----------------------------------------------------------------------------------


def test_later_duplicates_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = [row("a", id=1), row("b"), row("a", id=2), row("a", "no"), row("a", id=3), row("c")]
    path = write_jsonl(tmp_path / "a.jsonl", [*rows, row("")])
    task = load_one(path, {"duplicates": "drop"}, split={"eval": 0.0}, on_bad_row="skip")
    counts = task.train.report
    assert [example.row for example in task.train] == [0, 1, 3, 5]
    assert (counts.rows, counts.used, counts.duplicates, counts.skipped) == (7, 4, 2, 1)
    assert "2 duplicates dropped" in task.describe()
    kept = load_one(path, {}, split={"eval": 0.0}, on_bad_row="skip").train
    assert len(kept) == 6
    assert kept.fingerprint != task.train.fingerprint


def test_duplicates_are_found_after_the_texts_are_cleaned(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [row("a  b"), row(" a b"), row("c")])
    for whitespace, wanted in ((False, 0), (True, 1)):
        cleaning = {"duplicates": "drop", "whitespace": whitespace}
        assert load_one(path, cleaning, split={"eval": 0.0}).train.report.duplicates == wanted


def test_no_text_is_held_out_and_trained_on_when_duplicates_are_dropped(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [row(f"p{i % 50}") for i in range(100)])
    task = load_one(path, {"duplicates": "drop"}, split={"eval": 0.2, "test": 0.1})
    prompts = {name: [e.prompt for e in split] for name, split in task.splits().items()}
    assert {name: len(found) for name, found in prompts.items()} == {
        "train": 35,
        "eval": 10,
        "test": 5,
    }
    assert len(set().union(*prompts.values())) == 50
    assert task.train.report.duplicates == 50
    assert sum(accounted(split.report) for split in task.splits().values()) == 100


def test_dropping_duplicates_moves_no_other_row_to_another_side(tmp_path: Path) -> None:
    rows = [row(f"p{i}") for i in range(50)]
    once = load_one(write_jsonl(tmp_path / "a.jsonl", rows), {}).eval
    again = write_jsonl(tmp_path / "b.jsonl", [*rows, *rows[:3]])
    cleaned = load_one(again, {"duplicates": "drop"}).eval
    assert once is not None
    assert cleaned is not None
    assert [example.row for example in cleaned] == [example.row for example in once]


def test_choices_that_differ_are_no_duplicates(tmp_path: Path) -> None:
    rows = [
        {"prompt": "2 + 2?", "options": ["4", wrong], "label": 0} for wrong in ("5", "6", "5", "7")
    ]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    task = load_one(path, {"duplicates": "drop"}, format="multiple_choice", split={"eval": 0.0})
    assert (len(task.train), task.train.report.duplicates) == (3, 1)


# -- leakage --------------------------------------------------------------------------------------


def test_train_rows_that_stand_in_eval_or_test_are_dropped(tmp_path: Path) -> None:
    rows = [row("One", "no"), row("two"), row("three"), row("  ONE "), row("four")]
    train = write_jsonl(tmp_path / "a.jsonl", rows)
    dev = write_jsonl(tmp_path / "dev.jsonl", [row("one"), row("five")])
    test = write_jsonl(tmp_path / "test.jsonl", [row("four")])
    files = {"eval": str(dev), "test": str(test)}
    task = load_one(train, {"leakage": "drop"}, **files)
    counts = task.train.report
    assert [example.row for example in task.train] == [1, 2]
    assert (counts.rows, counts.used, counts.leaked) == (5, 2, 3)
    assert "3 dropped as they stand in eval or test" in task.describe()
    assert {name: len(split) for name, split in task.splits().items()} == {
        "train": 2,
        "eval": 2,
        "test": 1,
    }


def test_leaked_rows_are_dropped_from_a_file_that_was_divided(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [row(f"p{i % 40}", str(i)) for i in range(80)])
    task = load_one(path, {"leakage": "drop"}, split={"eval": 0.2})
    assert task.eval is not None
    scored = {e.prompt for e in task.eval}
    assert scored.isdisjoint(e.prompt for e in task.train)
    assert task.train.report.leaked > 0
    assert sum(accounted(split.report) for split in task.splits().values()) == 80


def test_train_rows_do_not_depend_on_the_splits_asked_for(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "a.jsonl", [row("one"), row("two")])
    dev = write_jsonl(tmp_path / "dev.jsonl", [row("one")])
    task = {
        "train": str(train),
        "eval": str(dev),
        "format": "prompt_completion",
        "cleaning": {"leakage": "drop"},
    }
    only = load({"a": task}, splits=["train"])[0]
    assert [example.row for example in only.train] == [1]
    assert only.eval is None


def test_max_rows_is_drawn_from_what_stays(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "a.jsonl", [row(f"p{i}") for i in range(20)])
    dev = write_jsonl(tmp_path / "dev.jsonl", [row(f"p{i}") for i in range(10)])
    task = load_one(train, {"leakage": "drop"}, eval=str(dev), max_rows=10)
    counts = task.train.report
    assert (counts.used, counts.leaked, counts.not_drawn) == (10, 10, 0)
    assert task.eval is not None
    assert len(task.eval) == 10


def test_a_task_whose_rows_are_all_leaked_is_an_error_that_says_so(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [row("one"), row("two")])
    with pytest.raises(UserError, match=r"2 were dropped because they stand in eval or test"):
        load_one(path, {"leakage": "drop"}, eval=str(path))


def test_a_text_without_a_prompt_is_compared_as_a_whole(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "a.jsonl", [{"text": "one"}, {"text": "two"}])
    dev = write_jsonl(tmp_path / "dev.jsonl", [{"text": "Two"}])
    task = load_one(train, {"leakage": "drop"}, eval=str(dev), format="text")
    assert [example.target for example in task.train] == ["one"]


def test_a_bad_row_is_never_taken_for_a_duplicate_or_leaked(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [row(""), row(""), row("a"), row("b")])
    cleaning = {"duplicates": "drop", "leakage": "drop"}
    task = load_one(path, cleaning, on_bad_row="skip", split={"eval": 0.0})
    counts = task.train.report
    assert (counts.rows, counts.used, counts.skipped) == (4, 2, 2)
