"""The labels that a run was trained with are a part of it: its files may change afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import mtlcore
from mtlcore.errors import UserError
from mtlcore.run import Run
from tests.recipes import write_tiny_recipe

TASKS = """
  head:
    train: sentiment.train.jsonl
    eval: sentiment.dev.jsonl
    format: classification
    head: classification
    metrics: [accuracy]
  words:
    train: sentiment.train.jsonl
    eval: sentiment.dev.jsonl
    format: classification
    metrics: [accuracy]
  own:
    train: sentiment.train.jsonl
    eval: sentiment.dev.jsonl
    format: reading
"""
READING = """
from mtlcore_plugins.formats.classification import Classification


class Reading(Classification):
    'Reads the train rows, and keeps nothing of them.'

    name = "reading"

    def state_dict(self):
        return {}
"""
ROWS = [{"text": "a good film"}, {"text": "a bad film"}]


def write_recipe(folder: Path, model: Path, **parts: str) -> Path:
    plugin = folder / "reading.py"
    plugin.write_text(READING, encoding="utf-8")
    return write_tiny_recipe(folder, model, tasks=TASKS, plugins=f"[{plugin}]", **parts)


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose labels come from its train rows; tests bring back what they change."""
    return mtlcore.train(write_recipe(tmp_path_factory.mktemp("recorded"), tiny_model))


@pytest.fixture
def folder(trained: Run) -> Iterator[Path]:
    """The run's folder; the files of rows beside it are as they were afterwards."""
    texts = {path: path.read_bytes() for path in trained.folder.parent.glob("*.jsonl")}
    yield trained.folder
    for path, text in texts.items():
        path.write_bytes(text)


def swap_order(path: Path) -> None:
    """The labels in alphabetical order are then the positive one and the negative one."""
    text = path.read_text(encoding="utf-8")
    assert '"positive"' in text
    path.write_text(text.replace('"positive"', '"good"'), encoding="utf-8")


def keep_one_label(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(line for line in lines if '"positive"' in line), encoding="utf-8")


def add_label(path: Path) -> None:
    row = {**json.loads(path.read_text(encoding="utf-8").splitlines()[0]), "label": "aaa"}
    path.write_text(path.read_text(encoding="utf-8") + json.dumps(row) + "\n", encoding="utf-8")


@pytest.mark.parametrize("task", ["head", "words"])
@pytest.mark.parametrize("change", [swap_order, keep_one_label, add_label, Path.unlink])
def test_answers_do_not_depend_on_what_becomes_of_the_train_file(
    change: Callable[[Path], None], task: str, folder: Path
) -> None:
    before = mtlcore.load(folder).predict_rows(task, ROWS)
    change(folder.parent / "sentiment.train.jsonl")
    after = mtlcore.load(folder).predict_rows(task, ROWS)
    assert [list(answer.scores) for answer in after] == [["negative", "positive"]] * 2
    assert after == before


def test_a_run_in_memory_answers_as_it_was_trained_too(trained: Run, folder: Path) -> None:
    before = trained.predict_rows("words", ROWS)
    swap_order(folder.parent / "sentiment.train.jsonl")
    assert trained.predict_rows("words", ROWS) == before


def test_an_exported_head_has_the_options_that_it_was_trained_with(
    folder: Path, tmp_path: Path
) -> None:
    for path in folder.parent.glob("*.jsonl"):
        path.unlink()
    out = mtlcore.load(folder).export(tmp_path / "out", task="head")
    assert json.loads((out / "head.json").read_text())["options"] == ["negative", "positive"]


@pytest.mark.parametrize("task", ["head", "words"])
@pytest.mark.parametrize("split", ["train", "dev"])
def test_a_label_that_was_not_trained_is_an_error_of_its_row(
    split: str, task: str, folder: Path
) -> None:
    swap_order(folder.parent / f"sentiment.{split}.jsonl")
    with pytest.raises(
        UserError,
        match=r"sentiment.*jsonl:\d+: label 'good' is not in the set that the run was trained "
        "with: 'negative', 'positive'",
    ):
        mtlcore.load(folder).evaluate("eval", [task])


def test_a_format_that_keeps_nothing_needs_the_rows_that_it_was_trained_on(folder: Path) -> None:
    train = folder.parent / "sentiment.train.jsonl"
    assert len(mtlcore.load(folder).predict_rows("own", ROWS)) == 2
    swap_order(train)
    with pytest.raises(
        UserError, match=r"(?s)tasks.own.train.*: the train rows of 'own' are not those.*state_dict"
    ):
        mtlcore.load(folder).predict_rows("own", ROWS)


def test_a_run_that_starts_from_another_keeps_the_labels_of_its_heads(
    trained: Run, tiny_model: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, tiny_model, start=f"{{run: {trained.folder}}}")
    for split in ("train", "dev"):
        swap_order(tmp_path / f"sentiment.{split}.jsonl")
    with pytest.raises(
        UserError,
        match=r"tasks.head.format.*: the head of 'head' was trained to choose between negative, "
        "positive; its rows have the options good, negative",
    ):
        mtlcore.train(recipe)
