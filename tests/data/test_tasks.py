"""Tasks: columns, splits, lengths, bad rows; nothing is lost without being counted."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mtlcore.data.example import IGNORED
from mtlcore.data.tasks import Task
from mtlcore.errors import MtlcoreError, UserError
from tests.helpers import learned_text, load, small_tokenizer, write_jsonl

PAIRS = "prompt_completion"


def pairs(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(count)]


def load_one(train: Path, options: dict[str, Any] | None = None, **training: Any) -> Task:
    task = {"train": str(train), "format": PAIRS, **(options or {})}
    return load({"a": task}, **training)[0]


def numbers(task: Task) -> dict[str, list[int]]:
    return {name: [example.row for example in split] for name, split in task.splits().items()}


def total(task: Task) -> int:
    return sum(len(split) for split in task.splits().values())


# -- columns --------------------------------------------------------------------------------------


def test_a_missing_column_names_task_file_columns_and_the_nearest(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"promt": "x", "completion": "y"}] * 3)
    with pytest.raises(UserError) as caught:
        load_one(path)
    message = str(caught.value)
    for part in (
        "tasks.a.train",
        "'a'",
        str(path),
        "'prompt'",
        "promt, completion",
        "mean 'promt'",
    ):
        assert part in message


def test_columns_maps_the_names_of_the_file(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"q": f"x{i}", "r": "y", "id": i} for i in range(3)])
    task = load_one(path, {"columns": {"prompt": "q", "completion": "r"}})
    example = task.train[0]
    assert (example.prompt, example.target) == (f"x{example.row}", "y")
    assert example.fields["id"] == example.row
    assert example.fields["q"] == example.prompt
    with pytest.raises(UserError, match=r"(?s)tasks\.a\.columns.*no column 'question'"):
        load_one(path, {"columns": {"prompt": "question", "completion": "r"}})


# -- splits ---------------------------------------------------------------------------------------


def test_a_held_out_split_is_a_partition_and_is_said(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", pairs(100))
    task = load_one(path, {"split": {"eval": 0.2, "test": 0.1}})
    found = numbers(task)
    assert {name: len(rows) for name, rows in found.items()} == {
        "train": 70,
        "eval": 20,
        "test": 10,
    }
    assert sorted(row for rows in found.values() for row in rows) == list(range(100))
    assert "train 70, eval 20, test 10" in task.notes[0]
    assert len({split.fingerprint for split in task.splits().values()}) == 3
    assert task.describe() == "a: train 70 rows; eval 20 rows; test 10 rows"


def test_splits_depend_on_the_seed_only(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", pairs(60))
    task = {"train": str(path), "format": PAIRS}
    other = {"train": str(path), "format": PAIRS, "columns": {"prompt": "prompt"}}
    one = load({"a": task, "b": other}, seed=3)
    two = load({"b": other, "a": task}, seed=3)
    assert numbers(one[0]) == numbers(two[1])
    assert one[0].fingerprints() == two[1].fingerprints()
    # Two tasks over one file hold out the same rows: no text is learned by one and scored by both.
    assert numbers(one[0]) == numbers(one[1])
    assert numbers(load({"a": task}, seed=4)[0]) != numbers(one[0])
    by_split = {**task, "split": {"seed": 3}}
    assert numbers(load({"a": by_split}, seed=9)[0]) == numbers(one[0])


def test_rows_held_out_here_and_learned_there_are_said(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", pairs(40))
    one = {"train": str(path), "format": PAIRS, "split": {"seed": 1}}
    two = {"train": str(path), "format": PAIRS, "split": {"seed": 2}}
    task = load({"one": one, "two": two})[0]
    assert any("train rows of task 'two'" in note for note in task.notes)
    same = load({"one": one, "two": one})[0]
    assert not any("train rows of task" in note for note in same.notes)


def test_scoring_the_train_file_is_said(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", pairs(5))
    copy = write_jsonl(tmp_path / "copy.jsonl", pairs(5))
    for source in (path, copy):
        assert (
            "5 of its 5 eval rows are train rows" in load_one(path, {"eval": str(source)}).notes[0]
        )


def test_a_split_far_from_its_share_is_said(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "a.jsonl", [{**row, "g": i % 2} for i, row in enumerate(pairs(40))]
    )
    notes = load_one(path, {"split": {"by": "g"}}).notes
    assert "eval has 20 rows where split.eval asks for 4: the groups of 'g'" in notes[1]


@pytest.mark.parametrize("groups", [3, 7, 40])
def test_split_by_never_divides_a_group(tmp_path: Path, groups: int) -> None:
    rows = [
        {**row, "product": f"p{min(i % (2 * groups), groups - 1)}"}
        for i, row in enumerate(pairs(200))
    ]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    for seed in range(5):
        task = load_one(path, {"split": {"by": "product", "eval": 0.2, "test": 0.1}}, seed=seed)
        sides = [{e.fields["product"] for e in split} for split in task.splits().values()]
        assert all(sides)
        assert sum(len(side) for side in sides) == len(set.union(*sides))
        assert total(task) == 200


def test_strata_keep_their_shares_and_no_value_is_missing_from_train(tmp_path: Path) -> None:
    values = ["x"] * 100 + ["y"] * 50 + ["z"] * 10 + ["once"]
    rows = [{**row, "kind": value} for row, value in zip(pairs(161), values, strict=True)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    for seed in range(5):
        task = load_one(path, {"split": {"stratify": "kind", "eval": 0.1}}, seed=seed)
        assert task.eval is not None
        counts = Counter(e.fields["kind"] for e in task.eval)
        assert counts == {"x": 10, "y": 5, "z": 1}
        assert {e.fields["kind"] for e in task.train} == set(values)


def test_the_label_of_a_classification_is_a_stratum_by_itself(tmp_path: Path) -> None:
    rows = [{"review": f"text {i}", "stars": "good" if i % 4 else "bad"} for i in range(80)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    columns = {"text": "review", "label": "stars"}
    task = load_one(path, {"format": "classification", "columns": columns})
    assert task.eval is not None
    assert Counter(e.target for e in task.eval) == {"good": 6, "bad": 2}
    assert "stratified by 'stars'" in task.notes[0]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_few_rows_still_give_an_eval_row_and_a_train_row(tmp_path: Path, count: int) -> None:
    task = load_one(write_jsonl(tmp_path / "a.jsonl", pairs(count)))
    assert len(task.eval or ()) == 1
    assert len(task.train) == count - 1


def test_a_split_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{**row, "g": 1} for row in pairs(20)])
    with pytest.raises(UserError, match=r"tasks\.a\.split: 1 value of 'g' cannot be divided"):
        load_one(path, {"split": {"by": "g"}})
    with pytest.raises(UserError, match=r"(?s)no column 'gg'.*did you mean 'g'|no column 'gg'"):
        load_one(path, {"split": {"by": "gg"}})
    with pytest.raises(UserError, match="1 row"):
        load_one(write_jsonl(tmp_path / "b.jsonl", pairs(1)))
    assert load_one(path, {"split": {"eval": 0.0}}).eval is None


def test_given_files_are_used_whole_and_the_rest_is_cut_from_train(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "a.jsonl", pairs(50))
    dev = write_jsonl(tmp_path / "dev.jsonl", pairs(7))
    task = load_one(train, {"eval": str(dev), "split": {"test": 0.1}})
    assert {name: len(split) for name, split in task.splits().items()} == {
        "train": 45,
        "eval": 7,
        "test": 5,
    }
    assert load_one(train, {"eval": str(dev)}).test is None


def test_splits_that_are_not_asked_for_are_not_made(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", pairs(50))
    task = {"train": str(path), "format": PAIRS}
    whole = load({"a": task})[0]
    part = load({"a": task}, splits=["eval"])[0]
    assert len(part.train) == 0
    assert numbers(part) == {"eval": numbers(whole)["eval"]}


def test_max_rows_draws_by_the_seed_and_is_counted(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", pairs(100))
    task = load_one(path, {"max_rows": 30})
    assert len(task.train) == 30
    assert task.train.report.not_drawn == 60
    assert len(task.eval or ()) == 10
    assert numbers(task) == numbers(load_one(path, {"max_rows": 30}))
    assert numbers(task) != numbers(load_one(path, {"max_rows": 30}, seed=1))
    assert set(numbers(task)["train"]) <= set(numbers(load_one(path))["train"])
    assert "60 left out by max_rows" in task.describe()


# -- bad rows -------------------------------------------------------------------------------------


BAD_ROWS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": 3, "completion": "y"}, "column 'prompt' must be a text, found the number 3"),
    ({"prompt": None, "completion": "y"}, "column 'prompt' must be a text, found null"),
    ({"prompt": ["x"], "completion": "y"}, "column 'prompt' must be a text, found a list"),
    ({"prompt": "x", "completion": ""}, "the target is empty"),
    ({"prompt": "x", "completion": " \n"}, "the target is empty"),
    ({"prompt": " ", "completion": "y"}, "the prompt is empty"),
    ({"completion": "y"}, "column 'prompt' is missing"),
    ({"prompt": "x", "completion": "\ud800"}, "column 'completion' is not valid Unicode"),
]


@pytest.mark.parametrize(("row", "why"), BAD_ROWS)
def test_a_bad_row_is_an_error_with_its_line(tmp_path: Path, row: dict[str, Any], why: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [*pairs(5), row])
    with pytest.raises(UserError) as caught:
        load_one(path, {"split": {"eval": 0.0}})
    assert f"{path}:6: {why}" in str(caught.value)
    assert "tasks.a.on_bad_row" in str(caught.value)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("revew", "'revew' is undefined; did you mean 'review'? columns: review, reply"),
        ("other", "'other' is undefined; columns: review, reply"),
    ],
)
def test_a_missing_column_lists_those_of_the_file(
    tmp_path: Path, column: str, message: str
) -> None:
    row = {"review": "x", "reply": "y"}
    path = write_jsonl(tmp_path / "a.jsonl", [row] * 9)
    form = {"name": "prompt_completion", "template": f"{{{{ {column} }}}}"}
    with pytest.raises(UserError) as caught:
        load_one(path, {"format": form, "columns": {"completion": "reply"}})
    assert f"{path}:1: template: {message}\n" in str(caught.value)
    write_jsonl(path, [row] * 8 + [{"review": "x"}])
    with pytest.raises(UserError, match=r"'reply' .the completion. is missing; columns: review\n"):
        load_one(path, {"columns": {"completion": "reply", "prompt": "review"}})


@pytest.mark.parametrize("policy", ["skip", "warn"])
def test_skipped_rows_are_counted_with_place_and_reason(tmp_path: Path, policy: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [*pairs(10), *(row for row, _ in BAD_ROWS)])
    with path.open("a") as file:
        file.write("{broken\n")
    task = load_one(path, {"split": {"eval": 0.0}, "on_bad_row": policy})
    report = task.train.report
    assert (report.rows, report.used, report.skipped) == (19, 10, 9)
    assert any(f"{path}:19: broken JSON" in place for place in report.bad)
    assert any(f"{path}:11: column 'prompt' must be a text" in place for place in report.bad)
    assert "9 bad and skipped" in task.describe()
    assert any(f"{path}:11" in note for note in task.notes) == (policy == "warn")


def test_places_are_capped_but_not_the_count(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [*pairs(2), *({"prompt": "", "completion": ""},) * 50])
    report = load_one(path, {"split": {"eval": 0.0}, "on_bad_row": "skip"}).train.report
    assert report.skipped == 50
    assert len(report.bad) == 20


def test_a_broken_line_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", pairs(3))
    path.write_text(path.read_text() + '{"prompt": \n')
    with pytest.raises(UserError, match=r"a\.jsonl:4: broken JSON"):
        load_one(path)


@pytest.mark.parametrize("content", ["", "\n\n", "{broken\n", '{"prompt": 1, "completion": 2}\n'])
def test_a_task_without_a_usable_row_is_an_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match="no usable row"):
        load_one(path, {"on_bad_row": "skip", "split": {"eval": 0.0}})


def test_a_format_that_fails_is_named_with_the_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mtlcore_plugins.formats.text import Text

    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "x"}] * 3)
    monkeypatch.setattr(Text, "example", lambda *_, **__: 1 / 0)
    with pytest.raises(MtlcoreError, match=r"format 'text' failed on .*a\.jsonl:\d: ZeroDivision"):
        load_one(path, {"format": "text"})


def test_an_option_that_no_row_can_use_names_the_task(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", pairs(5))
    spec = {"name": PAIRS, "template": "{{ ''.__class__.__mro__ }}"}
    with pytest.raises(UserError, match=r"tasks\.a\.format\.template: the sandbox refuses"):
        load_one(path, {"format": spec, "on_bad_row": "skip"})
    with pytest.raises(UserError, match=r"tasks\.a\.format: .*template is not a Jinja2 template"):
        load_one(path, {"format": {"name": PAIRS, "template": "{{ x"}})
    same = write_jsonl(tmp_path / "b.jsonl", [{"prompt": "x", "kind": "same"}] * 3)
    spec = {"name": "classification", "template": "{{ prompt }}"}
    with pytest.raises(UserError, match=r"(?s)tasks\.a\.format: .*at least 2 labels .*fix:"):
        load_one(same, {"format": spec, "columns": {"label": "kind"}})


# -- lengths --------------------------------------------------------------------------------------


def long_rows(tmp_path: Path) -> Path:
    long_prompt = {"prompt": "start " + "word " * 100 + "end", "completion": "yes"}
    long_answer = {"prompt": "short", "completion": "word " * 100}
    return write_jsonl(tmp_path / "a.jsonl", [*pairs(3), long_prompt, long_answer])


def test_truncation_cuts_the_prompt_at_its_left_and_never_the_answer(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    task = load_one(long_rows(tmp_path), {"split": {"eval": 0.0}}, max_length=40)
    report = task.train.report
    assert (report.rows, report.used, report.truncated, report.dropped_overlong) == (5, 4, 1, 1)
    cut = task.train[3]
    assert len(cut.input_ids) == 40
    assert cut.input_ids[0] == tokenizer.bos_token_id
    assert learned_text(cut, tokenizer) == " yes</s>"
    assert cut.prompt.endswith("word end")
    assert "start" not in cut.prompt
    assert tokenizer(cut.prompt).input_ids == list(cut.input_ids[: cut.prompt_length])
    assert "1 truncated, 1 dropped as too long" in task.describe()


def test_overlong_rows_can_be_dropped_or_refused(tmp_path: Path) -> None:
    path = long_rows(tmp_path)
    options = {"split": {"eval": 0.0}}
    report = load_one(path, {**options, "overlong": "drop"}, max_length=40).train.report
    assert (report.used, report.truncated, report.dropped_overlong) == (3, 0, 2)
    with pytest.raises(UserError, match=r"a\.jsonl:4: \d+ tokens, training\.max_length is 40"):
        load_one(path, {**options, "overlong": "error"}, max_length=40)
    with pytest.raises(UserError, match=r"5 are longer than training\.max_length"):
        load_one(path, {**options, "overlong": "drop"}, max_length=2)


def test_a_text_without_a_prompt_is_cut_at_its_end(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "first " + "word " * 100}])
    task = load_one(path, {"format": "text", "split": {"eval": 0.0}}, max_length=20)
    example = task.train[0]
    assert len(example.input_ids) == 20
    assert learned_text(example, small_tokenizer()).startswith("first word")
    assert task.train.report.truncated == 1


def test_special_tokens_spelt_in_a_file_are_text(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    rows = [{"prompt": "a</s> <|user|>", "completion": "b</s>c"}] * 2
    task = load_one(write_jsonl(tmp_path / "a.jsonl", rows), {"split": {"eval": 0.0}})
    found = task.train[0]
    special = [i for i in found.input_ids if i in tokenizer.added_tokens_decoder]
    assert special == [tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert learned_text(found, tokenizer) == " b</s>c</s>"
    assert (found.prompt, found.target) == ("a</s> <|user|>", "b</s>c")


def test_the_cut_does_not_depend_on_the_label(tmp_path: Path) -> None:
    words = {"a": "good", "b": "a very long name of a label indeed"}
    rows = [{"text": "word " * 50, "label": label} for label in "ab" * 5]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    spec = {"name": "classification", "labels": words}
    task = load_one(path, {"format": spec, "split": {"eval": 0.0}}, max_length=50)
    assert len({example.prompt for example in task.train}) == 1
    assert task.train.report.truncated == 10
    for example in task.train:
        longest = max(map(len, example.option_ids))
        assert example.prompt_length + longest <= 50


def test_labels_stay_aligned_with_tokens(tmp_path: Path) -> None:
    for example in load_one(long_rows(tmp_path), {"split": {"eval": 0.0}}, max_length=40).train:
        assert example.labels[0] == IGNORED
        for token, label in zip(example.input_ids, example.labels, strict=True):
            assert label in (IGNORED, token)


def test_ten_thousand_short_rows_load_quickly(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", pairs(10_000))
    begin = time.process_time()
    assert total(load_one(path)) == 10_000
    assert time.process_time() - begin < 10
