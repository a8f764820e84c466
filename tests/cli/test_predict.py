"""`mtlcore predict`: answers to rows that are in no recipe."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import mtlcore
from mtlcore.errors import UserError
from mtlcore.run import Run
from mtlcore.testing.command_line import CommandLine
from tests.helpers import write_jsonl
from tests.recipes import TASKS, write_tiny_recipe

CHOICES = [
    {"prompt": f"Is {i} odd?", "options": ["yes", "no"], "label": 1 - i % 2} for i in range(6)
]
HEADED = (
    TASKS.replace(
        "    metrics: [accuracy", "    head: classification\n    metrics: [accuracy"
    ).replace("{completion: gloss}", "{completion: gloss}\n    overlong: error")
    + """
  parity:
    train: parity.jsonl
    format: {name: multiple_choice, calibration: "Say:"}
    split: {eval: 0, test: 0}
  words:
    train: sentiment.train.jsonl
    eval: sentiment.dev.jsonl
    test: sentiment.test.jsonl
    format: {name: classification, template: "Review: {{ text }}\\nSentiment:"}
    metrics: [accuracy]
  plain:
    train: sentiment.train.jsonl
    format: text
    split: {eval: 0, test: 0}
"""
)


@pytest.fixture(scope="module")
def headed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a head, labels by likelihood, free text and answers of each row's own."""
    folder = tmp_path_factory.mktemp("headed")
    write_jsonl(folder / "parity.jsonl", CHOICES)
    return mtlcore.train(write_tiny_recipe(folder, tiny_model, tasks=HEADED)).folder


@pytest.fixture(scope="module")
def loaded(headed: Path) -> Run:
    return mtlcore.load(headed)


def unlabelled(run: Run, task: str, *labels: str) -> list[dict[str, Any]]:
    """The test rows of a task as its file has them, less their answers."""
    path = run.recipe.tasks[task].test or run.recipe.tasks[task].train
    lines = Path(path.path).read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in labels} for line in lines]


@pytest.mark.parametrize(
    ("task", "labels"),
    [("sentiment", ["label"]), ("words", ["label"]), ("spelling", ["corrected"])],
)
def test_new_rows_are_answered_as_the_same_rows_with_their_answers(
    task: str, labels: list[str], loaded: Run
) -> None:
    """With a head, by the likelihood of labels, and as text."""
    found = loaded.predict_rows(task, unlabelled(loaded, task, *labels))
    expected = loaded.predict("test", [task])[task]
    assert [answer.output for answer in found] == [p.output for p in expected]
    for answer, prediction in zip(found, expected, strict=True):
        assert answer.row == prediction.row
        assert list(answer.scores) == list(prediction.options)
        assert list(answer.scores.values()) == pytest.approx(prediction.scores, rel=1e-5)
        shares = torch.tensor(prediction.scores, dtype=torch.float64).softmax(-1).tolist()
        assert list(answer.probabilities.values()) == pytest.approx(shares, rel=1e-5)


def test_a_row_chooses_between_answers_of_its_own(loaded: Run) -> None:
    rows = [{"prompt": "Is 3 odd?", "options": ["a", "b", "c"]}]
    (answer,) = loaded.predict_rows("parity", rows)
    assert answer.output in answer.probabilities.keys() == {"a", "b", "c"}
    assert sum(answer.probabilities.values()) == pytest.approx(1)
    best = max(answer.probabilities, key=lambda option: answer.probabilities[option])
    assert answer.output == best


def test_predict_writes_a_line_for_every_row_of_a_file(
    cli: CommandLine, headed: Path, loaded: Run, tmp_path: Path
) -> None:
    rows = unlabelled(loaded, "sentiment", "label")[:3]
    jsonl = write_jsonl(tmp_path / "rows.jsonl", rows)
    table = tmp_path / "rows.csv"
    cells = ['"' + row["text"].replace('"', '""') + '"' for row in rows]
    table.write_text("\n".join(["text", *cells]) + "\n", encoding="utf-8")
    code, out, _ = cli("predict", headed, "--task", "sentiment", jsonl)
    assert code == 0
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["row"] for line in lines] == [0, 1, 2]
    assert lines[0].keys() == {"task", "row", "output", "probabilities", "scores"}
    assert lines[0]["probabilities"].keys() == {"negative", "positive"}
    place = tmp_path / "made" / "answers.jsonl"
    code, said, _ = cli("predict", headed, "--task", "sentiment", table, "--out", place)
    assert (code, said) == (0, f"{place}\n")
    assert place.read_text(encoding="utf-8") == out


def test_predict_reads_json_lines_from_stdin(
    cli: CommandLine, headed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = b'{"text": "he runed away"}\n'
    for args in ([], ["-"]):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(line)))
        code, out, _ = cli("predict", headed, "--task", "spelling", *args)
        assert code == 0
        found = json.loads(out)
        assert found["probabilities"] == found["scores"] == {}
        assert isinstance(found["output"], str)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    code, _, err = cli("predict", headed, "--task", "spelling")
    assert code == 2
    assert err.startswith("error: stdin: there is no row\n")


def test_no_row_is_skipped_in_silence(cli: CommandLine, headed: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"txt": "a"}\n{"text": "fine"}\n["no row"]\n', encoding="utf-8")
    code, out, err = cli("predict", headed, "--task", "words", path)
    assert (code, out) == (2, "")
    assert f"{path}:1: template: 'text' is undefined; did you mean 'txt'?" in err
    assert f"{path}:3: a JSON object is expected" in err
    code, _, err = cli("predict", headed, "--task", "parity", path)
    assert f"{path}:1: column 'options' is missing" in err
    code, _, err = cli("predict", headed, "--task", "parity", tmp_path / "row.jsonl")
    assert code == 2
    assert "did you mean" in err
    code, _, err = cli("predict", headed, "--task", "wrods", path)
    assert "did you mean 'words'?" in err


def test_rows_that_are_too_long_are_cut_or_refused_as_in_the_recipe(headed: Path) -> None:
    long = [{"text": "very " * 200 + "good"}]
    run = mtlcore.load(headed)
    assert run.recipe.tasks["words"].overlong == "truncate"
    assert run.predict_rows("words", long)[0].output in ("negative", "positive")
    assert any("the prompts of 1 row were cut" in note for note in run.notes)
    with pytest.raises(UserError, match=r"rows, row 0: \d+ tokens, training.max_length is 96"):
        run.predict_rows("definitions", [{"word": "very " * 200}])


def test_a_format_without_a_prompt_answers_nothing(loaded: Run) -> None:
    with pytest.raises(UserError, match="'text' gives no prompt to answer"):
        loaded.predict_rows("plain", [{"text": "a b c"}])


FORMAT = '''
from mtlcore.components import Format
from mtlcore.data.example import IGNORED, Example
from mtlcore.data.fields import text_of

class Shout(Format):
    """Says the column `answer` after the column `ask`."""

    name = "shout"
    columns = {"ask": "a word", "answer": "another"}

    def example(self, row, *, task, index, tokenizer):
        ids = tuple(tokenizer(text_of(row, "ask")).input_ids)
        answer = tuple(tokenizer(text_of(row, "answer")).input_ids)
        labels = (IGNORED,) * len(ids) + answer
        return Example(task, index, row["ask"], row["answer"], ids + answer, labels, len(ids))
'''


def test_a_format_that_has_no_question_needs_rows_with_an_answer(
    tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "shout.py").write_text(FORMAT, encoding="utf-8")
    rows = [{"ask": f"word {i}", "answer": f"WORD {i}"} for i in range(8)]
    write_jsonl(tmp_path / "words.jsonl", rows)
    recipe = write_tiny_recipe(
        tmp_path,
        tiny_model,
        tasks="{loud: {train: words.jsonl, format: shout, generation: {max_new_tokens: 4}}}",
        plugins="[./shout.py]",
    )
    run = mtlcore.train(recipe, ["training.max_steps=1"])
    (answer,) = run.predict_rows("loud", rows[:1])
    expected = run.continue_prompts(
        [run.tokenizer("word 0").input_ids], [0], run.recipe.tasks["loud"].generation
    )
    assert [answer.output] == expected
    with pytest.raises(UserError, match=r"column 'answer' is missing.*'shout' has no `question`"):
        run.predict_rows("loud", [{"ask": "word 1"}])


def test_a_task_that_is_not_there_is_told_before_the_model_is_loaded(
    cli: CommandLine, headed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = tmp_path / "run"
    shutil.copytree(headed, copied)
    recipe = copied / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8")
    path = mtlcore.load(headed).recipe.model.name_or_path
    recipe.write_text(text.replace(str(path), str(tmp_path / "gone")), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"text": "a"}')))
    code, _, err = cli("predict", copied, "--task", "sentimen")
    assert code != 0
    assert "no task 'sentimen'" in err
    assert "did you mean 'sentiment'?" in err


def test_a_folder_in_place_of_a_file_of_rows_is_told_as_one(
    cli: CommandLine, headed: Path, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [{"text": "a"}])
    code, _, err = cli("predict", headed, tmp_path, "--task", "sentiment")
    assert code != 0
    assert "is a folder" in err
    assert "name a file in it: rows.jsonl" in err


def test_rows_that_are_no_objects_are_told_by_their_number(loaded: Run) -> None:
    rows: Any = [{"text": "a"}, "abc"]
    with pytest.raises(UserError, match="row 1 must be an object of columns, found a text"):
        loaded.predict_rows("sentiment", rows)
