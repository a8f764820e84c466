"""`check_tasks`: all problems of all tasks, each with its place; nothing is changed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mtlcore.data.check_report import CheckReport, Interval, Lengths
from mtlcore.data.checks import check_tasks
from mtlcore.errors import Problem, UserError
from mtlcore.plugins import PluginManager
from mtlcore.recipe import Recipe
from tests.helpers import small_tokenizer, write_jsonl

REVIEW = (
    "the food was late but warm, and the waiter laughed when we told him that the soup had a fly "
    "in it; we will come again in the summer, when the garden is open and it is {}"
)


def check(
    tasks: dict[str, dict[str, Any]],
    *,
    names: Sequence[str] | None = None,
    columns: Sequence[str] = (),
    parts: dict[str, Any] | None = None,
    **training: Any,
) -> CheckReport:
    recipe = Recipe.model_validate(
        {"model": {"name_or_path": "none"}, "tasks": tasks, "training": training, **(parts or {})}
    )
    plugins = PluginManager.load(environ={})
    return check_tasks(recipe, small_tokenizer(), plugins, tasks=names, columns=columns)


def labelled(texts: Sequence[str], label: str = "good", **more: Any) -> list[dict[str, Any]]:
    return [{"text": text, "label": label, **more} for text in texts]


def reviews(tmp_path: Path, given: list[dict[str, Any]], /, **options: Any) -> dict[str, Any]:
    """A task of classification whose rows are all train rows unless the options say otherwise."""
    base = labelled(["cold soup", "no table for us", "loud"], "bad")
    path = write_jsonl(tmp_path / "reviews.jsonl", [*base, *given])
    return {
        "train": str(path),
        "format": {"name": "classification", "labels": ["good", "bad"]},
        "split": {"eval": 0.0},
        **options,
    }


def said(problems: Sequence[Problem]) -> str:
    return "\n".join(str(problem) for problem in problems)


# -- what is fine ---------------------------------------------------------------------------------


def test_good_rows_are_counted_and_nothing_is_said(tmp_path: Path) -> None:
    rows = labelled([f"text {2**i}" for i in range(7)])
    report = check({"a": reviews(tmp_path, rows)})
    assert report.errors == report.warnings == []
    assert report.exit_code(strict=True) == 0
    found = report.tasks["a"].splits["train"]
    assert (found.rows, found.used, found.bad, found.duplicates) == (10, 10, 0, 0)
    assert report.tasks["a"].labels == {"bad": {"train": 3}, "good": {"train": 7}}
    assert report.tasks["a"].text_columns == ["text"]
    assert found.tokens is not None
    assert 0 < found.tokens.median <= found.tokens.p95 <= found.tokens.max
    tokenizer = small_tokenizer()
    learned = [
        len(tokenizer.encode(f" {w}", add_special_tokens=False)) + 1 for w in ("bad", "good")
    ]
    assert found.labelled_tokens == 3 * learned[0] + 7 * learned[1]


def test_lengths_are_nearest_ranks() -> None:
    assert Lengths.of([]) is None
    assert Lengths.of([7]) == Lengths(7, 7, 7)
    assert Lengths.of(range(1, 101)) == Lengths(50, 95, 100)


def test_a_split_that_a_run_would_make_is_checked_as_such(tmp_path: Path) -> None:
    rows = labelled([f"text {2**i}" for i in range(17)])
    report = check({"a": reviews(tmp_path, rows, split={"eval": 0.2, "test": 0.2})})
    splits = report.tasks["a"].splits
    assert {name: split.used for name, split in splits.items()} == {
        "train": 12,
        "eval": 4,
        "test": 4,
    }
    assert any("was split" in note for note in report.notes)


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["error", "skip", "warn"])
def test_every_bad_row_has_its_place_and_errors_follow_the_policy(
    tmp_path: Path, policy: str
) -> None:
    rows = [
        *labelled(["fine"]),
        *labelled(["", "  "]),
        {"text": "x", "label": "god"},
        {"text": 3, "label": "good"},
        {"label": "good"},
    ]
    report = check({"a": reviews(tmp_path, rows, on_bad_row=policy)})
    found = report.tasks["a"].splits["train"]
    assert (found.rows, found.used, found.bad, found.empty) == (9, 4, 5, 3)
    assert [place.rpartition("reviews.jsonl:")[2][:2] for place in found.bad_places] == [
        f"{line}:" for line in (5, 6, 7, 8, 9)
    ]
    problems = report.errors if policy == "error" else report.warnings
    assert "tasks.a.train: 5 of 9 rows are bad" in said(problems)
    assert "label 'god' is not in the set: 'good', 'bad'; did you mean 'good'?" in said(problems)
    assert report.exit_code() == (2 if policy == "error" else 0)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"{broken\n", b"\xff\n", b"[1]\n"])
def test_a_file_without_a_usable_row_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    report = check({"a": {"train": str(path), "format": "text"}})
    assert f"{path} has no usable row" in said(report.errors)
    assert report.exit_code() == 2


def test_rows_that_are_all_bad_are_an_error_also_when_they_may_be_skipped(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": ""}] * 3)
    task = {"train": str(path), "format": "text", "split": {"eval": 0.0}, "on_bad_row": "skip"}
    report = check({"a": task})
    assert "has no usable row: 3 are bad, the first:" in said(report.errors)
    assert report.tasks["a"].splits["train"].empty == 3


def test_a_line_that_is_not_utf_8_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "fine"}])
    path.write_bytes(path.read_bytes() + b'{"text": "caf\xe9"}\n')
    report = check({"a": {"train": str(path), "format": "text", "split": {"eval": 0.0}}})
    assert f"{path}:2: not UTF-8 (byte 0xe9)" in said(report.errors)
    assert report.tasks["a"].splits["train"].used == 1


def test_all_problems_of_all_tasks_are_in_one_report(tmp_path: Path) -> None:
    wrong = write_jsonl(tmp_path / "wrong.jsonl", [{"txt": "a"}])
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "wide.csv").write_bytes("text\na\n".encode("utf-16"))
    (tmp_path / "x.jsonl").write_text("{\n")
    report = check(
        {
            "one": {"train": str(wrong), "eval": str(tmp_path / "empty.jsonl"), "format": "text"},
            "two": {
                "train": str(tmp_path / "wide.csv"),
                "test": str(tmp_path / "gone.jsonl"),
                "format": {"name": "text"},
            },
            "three": {"train": str(wrong), "format": {"name": "classification", "labels": ["a"]}},
            "four": reviews(tmp_path, labelled(["x"]), eval=str(tmp_path / "x.jsonl")),
        }
    )
    errors = said(report.errors)
    for part in (
        "tasks.one.train: task 'one': " + str(wrong) + " has no column 'text'",
        "did you mean 'txt'",
        "tasks.one.eval: task 'one': " + str(tmp_path / "empty.jsonl") + " has no usable row",
        "tasks.two.train: " + str(tmp_path / "wide.csv") + ":1: the file is UTF-16",
        "tasks.two.test: no such file: " + str(tmp_path / "gone.jsonl"),
        "tasks.three.format: format 'classification': labels: at least 2 labels",
        "tasks.four.eval: task 'four'",
    ):
        assert part in errors, errors
    assert report.tasks["four"].splits["train"].used == 4


@pytest.mark.parametrize(("policy", "used", "cut"), [("truncate", 3, 1), ("drop", 2, 0)])
def test_rows_that_are_too_long_are_counted_by_what_becomes_of_them(
    tmp_path: Path, policy: str, used: int, cut: int
) -> None:
    rows = [
        {"prompt": "short", "completion": "yes"},
        {"prompt": "also short", "completion": "no"},
        {"prompt": "word " * 100, "completion": "yes"},
        {"prompt": "x", "completion": "word " * 100},
    ]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    task = {"train": str(path), "format": "prompt_completion", "split": {"eval": 0.0}}
    report = check({"a": {**task, "overlong": policy}}, max_length=40)
    found = report.tasks["a"].splits["train"]
    assert (found.used, found.overlong, found.truncated) == (used, 2, cut)
    assert found.dropped_overlong == 2 - cut
    assert "2 rows over training.max_length (40 tokens)" in said(report.warnings)
    refused = check({"a": {**task, "overlong": "error"}}, max_length=40)
    assert f"{path}:3\n  {path}:4" in said(refused.errors)
    none = check({"a": {**task, "overlong": policy}}, max_length=3)
    assert "has no usable row: 4 are longer" in said(none.errors)


def test_a_format_that_no_row_can_use_is_said_once(tmp_path: Path) -> None:
    spec = {"name": "prompt_completion", "template": "{{ ''.__class__.__mro__ }}"}
    path = write_jsonl(tmp_path / "a.jsonl", [{"completion": "x"}] * 9)
    report = check({"a": {"train": str(path), "format": spec, "split": {"eval": 0.0}}})
    assert len(report.errors) == 1
    assert "the sandbox refuses" in said(report.errors)


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_an_option_that_no_train_row_fits_is_told_instead_of_the_rows(
    tmp_path: Path, policy: str
) -> None:
    form = {"name": "classification", "labels": ["Good", "Bad"]}
    task = reviews(tmp_path, labelled([f"row {i}" for i in range(9)]), on_bad_row=policy)
    test = write_jsonl(tmp_path / "test.jsonl", labelled(["other"]))
    found = check({"a": {**task, "format": form, "test": str(test)}}).errors
    assert len(found) == 1, said(found)
    error = found[0]
    assert error.where == "tasks.a.format.labels"
    assert f"`labels` fits no row of {task['train']} (12 rows), the first: " in error.message
    assert "reviews.jsonl:1: label 'bad' is not in the set" in error.message
    with (tmp_path / "reviews.jsonl").open("a") as file:
        file.write('{"text": "fits", "label": "Good"}\n')
    found = said(check({"a": {**task, "format": form, "split": {"eval": 0.0}}}).errors)
    assert ("tasks.a.train: 12 of 13 rows are bad" in found) is (policy == "error")


def test_options_that_the_train_rows_fit_are_not_blamed_for_others(tmp_path: Path) -> None:
    test = write_jsonl(tmp_path / "test.jsonl", [{"text": "x", "label": "fine"}] * 2)
    task = reviews(tmp_path, labelled(["soup"]), test=str(test))
    assert "tasks.a.test: 2 of 2 rows are bad" in said(check({"a": task}).errors)


@pytest.mark.parametrize(
    ("labels", "also"),
    [
        ({"labels": ["1", "2"]}, "1 row cannot be divided into train, eval"),
        ({}, "at least 2 labels are needed"),
    ],
    ids=["a file that cannot be divided", "a format that cannot be prepared"],
)
def test_bad_rows_are_told_beside_what_hides_them(
    tmp_path: Path, labels: dict[str, Any], also: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\na,1\nb\nc,3,4\n")
    task = {"train": str(path), "format": {"name": "classification", **labels}}
    report = check({"a": task})
    found = said(report.errors)
    assert f"2 of 3 rows are bad:\n  {path}:3: 1 cell where the header has 2\n  {path}:4" in found
    assert also in found
    assert report.tasks["a"].splits["train"].bad == 2


@pytest.mark.parametrize(("count", "told"), [(9, True), (10, False)])
def test_a_test_split_that_says_little_is_told(tmp_path: Path, count: int, told: bool) -> None:
    test = write_jsonl(tmp_path / "test.jsonl", labelled([f"other {2**i}" for i in range(count)]))
    task = reviews(tmp_path, labelled(["warm soup"]), test=str(test))
    found = said(check({"a": task}).warnings)
    assert ("tasks.a.test: 9 rows to test with: its score says little" in found) is told


# -- repeated, leaked, contradictory --------------------------------------------------------------


def test_duplicates_are_counted_and_also_those_that_cleaning_drops(tmp_path: Path) -> None:
    rows = labelled(["once", "twice", "twice", "Twice", "twice"])
    report = check({"a": reviews(tmp_path, rows)})
    assert report.tasks["a"].splits["train"].duplicates == 2
    assert "2 of 8 rows repeat an earlier one" in said(report.warnings)
    assert report.exit_code() == 0
    assert report.exit_code(strict=True) == 2
    dropped = check({"a": reviews(tmp_path, rows, cleaning={"duplicates": "drop"})})
    found = dropped.tasks["a"].splits["train"]
    assert (found.rows, found.used, found.duplicates_dropped, found.duplicates) == (8, 6, 2, 0)
    assert dropped.warnings == []


def test_scored_rows_that_are_trained_on_are_named_with_both_places(tmp_path: Path) -> None:
    dev = write_jsonl(
        tmp_path / "dev.jsonl", [*labelled(["  SEEN text"]), *labelled(["new"], "bad")]
    )
    task = reviews(tmp_path, labelled(["seen text"]), eval=str(dev))
    report = check({"a": task})
    (leak,) = report.leaks
    assert (leak.task, leak.split, leak.other_task, leak.other_split) == ("a", "eval", "a", "train")
    assert (leak.rows, leak.of) == (1, 2)
    assert leak.places == [(f"{dev}:1", f"{tmp_path / 'reviews.jsonl'}:4")]
    assert "1 of 2 rows stand in train too" in said(report.warnings)
    assert check({"a": {**task, "cleaning": {"leakage": "drop"}}}).leaks == []


def test_nearly_equal_scored_rows_are_said_too(tmp_path: Path) -> None:
    dev = write_jsonl(
        tmp_path / "dev.jsonl", [*labelled([REVIEW.format("hot")]), *labelled(["x"], "bad")]
    )
    task = reviews(tmp_path, labelled([REVIEW.format("dry")]), eval=str(dev))
    report = check({"a": task})
    assert [(leak.rows, leak.near_rows) for leak in report.leaks] == [(0, 1)]
    train = tmp_path / "reviews.jsonl"
    assert f"1 of 2 rows are nearly equal to rows of train:\n  {dev}:1 ~ {train}:4" in said(
        report.warnings
    )
    (warning,) = [w for w in report.warnings if "nearly equal to rows of train" in w.message]
    assert warning.fix == "change or take out one row of each pair (~)"
    assert report.tasks["a"].near_count == 1


def test_only_what_helps_against_a_leak_is_offered(tmp_path: Path) -> None:
    rows = labelled([REVIEW.format(word) for word in ("dry", "hot", "odd", "new", "old", "big")])
    held_out = check({"a": reviews(tmp_path, rows, split={"eval": 0.2, "seed": 1})})
    fixes = [w.fix for w in held_out.warnings if "nearly equal to rows of train" in w.message]
    assert fixes
    assert all("tasks.a.split.by" in fix and "leakage" not in fix for fix in fixes)
    both = [*labelled([REVIEW.format("dry"), REVIEW.format("hot")]), *labelled(["x"], "bad")]
    dev = write_jsonl(tmp_path / "dev.jsonl", both)
    task = reviews(tmp_path, labelled([REVIEW.format("dry")]), eval=str(dev))
    (warning,) = [w for w in check({"a": task}).warnings if "too, 1 more nearly so" in w.message]
    assert warning.fix.startswith("set tasks.a.cleaning.leakage to drop; change or take out")


def test_rows_of_eval_that_stand_in_test_are_said(tmp_path: Path) -> None:
    dev = write_jsonl(tmp_path / "dev.jsonl", [*labelled(["one"]), *labelled(["two"], "bad")])
    task = reviews(tmp_path, labelled(["x"]), eval=str(dev), test=str(dev))
    leaks = check({"a": task}).leaks
    assert [(leak.split, leak.other_split, leak.rows) for leak in leaks] == [("test", "eval", 2)]


def test_leakage_between_tasks_is_found_under_unlike_templates_and_columns(tmp_path: Path) -> None:
    reply = write_jsonl(tmp_path / "reply.jsonl", [{"review": "Hello there", "answer": "thanks"}])
    dev = write_jsonl(
        tmp_path / "dev.jsonl", [*labelled(["hello  there"]), *labelled(["b"], "bad")]
    )
    tasks = {
        "stars": reviews(tmp_path, labelled(["x"]), eval=str(dev)),
        "reply": {
            "train": str(reply),
            "format": {"name": "prompt_completion", "template": "Answer: {{ review }}"},
            "columns": {"completion": "answer"},
            "split": {"eval": 0.0},
        },
    }
    report = check(tasks)
    assert report.tasks["reply"].text_columns == ["review"]
    assert [(k.task, k.split, k.other_task, k.rows) for k in report.leaks] == [
        ("stars", "eval", "reply", 1)
    ]
    assert check(tasks, names=["stars"]).leaks == []


def test_two_tasks_over_one_file_that_hold_out_the_same_rows_do_not_leak(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {2**i}", "completion": f"{i}"} for i in range(30)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    task = {"train": str(path), "format": "prompt_completion", "split": {"eval": 0.2}}
    assert check({"a": task, "b": task}).leaks == []
    assert check({"a": task, "b": {**task, "split": {"eval": 0.2, "seed": 1}}}).leaks


def test_one_text_with_unlike_labels_is_a_pair_with_places(tmp_path: Path) -> None:
    rows = [*labelled(["Same Text", "same  text"]), *labelled(["same text"], "bad")]
    report = check({"a": reviews(tmp_path, rows)})
    check_a = report.tasks["a"]
    assert check_a.conflict_count == 1
    (pair,) = check_a.conflicts
    path = tmp_path / "reviews.jsonl"
    assert pair.rows == (f"{path}:4", f"{path}:6")
    assert pair.answers == ("good", "bad")
    assert pair.similarity == 1
    assert "1 pair of equal or nearly equal texts with unlike labels" in said(report.warnings)


def test_nearly_equal_texts_with_unlike_labels_are_a_pair(tmp_path: Path) -> None:
    rows = [*labelled([REVIEW.format("dry")]), *labelled([REVIEW.format("hot")], "bad")]
    (pair,) = check({"a": reviews(tmp_path, rows)}).tasks["a"].conflicts
    assert 0.8 <= pair.similarity < 1
    assert set(pair.answers) == {"good", "bad"}


def test_another_aspect_of_one_review_is_no_contradiction(tmp_path: Path) -> None:
    spec = {
        "name": "classification",
        "labels": ["good", "bad"],
        "template": "{{ aspect }} (part {{ part }}): {{ text }}",
    }
    rows = [
        {"text": REVIEW.format("dry"), "aspect": aspect, "part": part, "label": label}
        for aspect, part, label in (("food", 1, "good"), ("price", 1, "bad"), ("food", 2, "bad"))
    ]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    report = check({"a": {"train": str(path), "format": spec, "split": {"eval": 0.0}}})
    assert report.tasks["a"].text_columns == ["text", "aspect", "part"]
    assert report.tasks["a"].conflict_count == report.tasks["a"].near_count == 0


def test_free_answers_may_vary_and_are_only_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "greet", "completion": text} for text in ("hello", "good day", "hello")]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    task = {"train": str(path), "format": "prompt_completion", "split": {"eval": 0.0}}
    found = check({"a": task}).tasks["a"]
    assert (found.answers_vary, found.conflict_count, found.labels) == (3, 0, {})


def test_choices_of_their_own_are_no_label_set_and_compared_with_the_same_choices(
    tmp_path: Path,
) -> None:
    rows = [
        {"prompt": "2 + 2?", "options": ["4", "5"], "label": 0},
        {"prompt": "2 + 2?", "options": ["5", "4"], "label": 0},
        {"prompt": "2 + 2?", "options": ["four", "five"], "label": 0},
    ]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    task = {"train": str(path), "format": "multiple_choice", "split": {"eval": 0.0}}
    found = check({"a": task}).tasks["a"]
    assert found.labels == {}
    assert [pair.answers for pair in found.conflicts] == [("4", "5")]


def test_spellings_of_a_label_that_differ_in_case_or_space_are_named(tmp_path: Path) -> None:
    rows = [
        {"text": f"t{i}", "label": label} for i, label in enumerate(["Good", "good", "very  good"])
    ]
    rows += [{"text": f"u{i}", "label": label} for i, label in enumerate([" good ", "Very Good"])]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    task = {"train": str(path), "format": "classification", "split": {"eval": 0.0}}
    report = check({"a": task})
    assert report.tasks["a"].spellings == [
        {"Good": 1, "good": 2},
        {"very  good": 1, "Very Good": 1},
    ]
    assert "'Good' (1 row), 'good' (2 rows)" in said(report.warnings)


def test_a_label_that_is_never_scored_is_said(tmp_path: Path) -> None:
    dev = write_jsonl(tmp_path / "dev.jsonl", labelled(["new"]))
    report = check({"a": reviews(tmp_path, labelled(["x"]), eval=str(dev))})
    assert "tasks.a.eval: no row has the label 'bad'" in said(report.warnings)


# -- groups ---------------------------------------------------------------------------------------


def test_groups_are_counted_by_label_and_task_with_intervals(tmp_path: Path) -> None:
    rows = [
        *labelled([f"w {2**i}" for i in range(20)], gender="w"),
        *labelled([f"m {3**i}" for i in range(20)], "bad", gender=" m "),
        *labelled(["d 1"], gender=1.0),
    ]
    report = check({"a": reviews(tmp_path, rows)}, columns=["gender"])
    (found,) = report.groups
    assert [(group.value, group.total.rows) for group in found.groups] == [
        ("m", 20),
        ("w", 20),
        ("(none)", 3),
        ("1", 1),
    ]
    assert [group.too_few for group in found.groups] == [False, False, True, True]
    men = found.groups[0]
    assert men.total == Interval.of(20, 44)
    assert men.labels["bad"].rows == 20
    assert men.splits == {"train": 20}
    assert "'(none)' (3 rows), '1' (1 row)" in said(report.warnings)


@pytest.mark.parametrize(
    ("rows", "total", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),
    ],
)
def test_the_interval_is_wilsons(rows: int, total: int, low: float, high: float) -> None:
    found = Interval.of(rows, total)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)


def test_a_column_that_no_task_has_is_an_error_with_the_nearest_name(tmp_path: Path) -> None:
    task = reviews(tmp_path, labelled(["x"], gender="w"))
    report = check({"a": task}, columns=["gendr", "gender"])
    assert "--column gendr: no rows of 'a' have a column 'gendr'" in said(report.errors)
    assert "did you mean 'gender'?" in said(report.errors)
    assert [group.column for group in report.groups] == ["gender"]
    task["columns"] = {"label": "label", "other": "text"}
    assert "fix: known: gender, label, text" in said(check({"a": task}, columns=["x"]).errors)


def missing_columns(report: CheckReport) -> list[str]:
    return [problem.where for problem in report.errors if "have a column" in problem.message]


def test_columns_that_components_name_are_counted_and_must_exist(tmp_path: Path) -> None:
    rows = labelled([f"w {2**i}" for i in range(20)], gender="w")
    task = reviews(tmp_path, rows, rows={"name": "any", "column": "gender"})
    other = reviews(tmp_path, rows, rows={"name": "any", "column": "age"})
    auditors = [{"name": "any", "column": "place"}]
    report = check({"a": task, "b": other}, parts={"auditing": auditors})
    assert [(group.task, group.column) for group in report.groups] == [("a", "gender")]
    assert missing_columns(report) == [
        "auditing[0].column",
        "tasks.b.rows.column",
    ]
    # The auditor may be meant for the tasks that are not looked at.
    some = check({"a": task, "b": other}, names=["a"], parts={"auditing": auditors})
    assert missing_columns(some) == []


def test_a_column_of_many_values_is_cut_and_says_how_many(tmp_path: Path) -> None:
    rows = [row for i in range(80) for row in labelled([f"text {2**i}"], id=i)]
    (found,) = check({"a": reviews(tmp_path, rows)}, columns=["id"]).groups
    assert (len(found.groups), found.values) == (50, 81)


# -- the report -----------------------------------------------------------------------------------


def test_the_report_is_json_with_hostile_text_as_it_is(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>[red]\x1b[2J{{ 7 * 7 }}"
    rows = [*labelled([hostile], gender=hostile), *labelled([hostile], "bad")]
    report = check({"a": reviews(tmp_path, rows)}, columns=["gender"])
    found = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert found["ok"] is True
    assert found["groups"][0]["groups"][1]["value"] == hostile
    assert found["groups"][0]["groups"][1]["too_few"] is True
    assert found["tasks"]["a"]["conflicts"][0]["answers"] == ["good", "bad"]
    assert found["warnings"][0].keys() == {"where", "message", "fix"}


def test_an_unknown_task_is_an_error_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'reviews'"):
        check({"reviews": reviews(tmp_path, labelled(["x"]))}, names=["review"])
