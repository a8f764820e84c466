"""`mtlcore check`: exit codes, what is printed, and that nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.command_line import CommandLine, contents
from tests.helpers import write_jsonl
from tests.recipes import write_tiny_recipe

ROWS = [
    {"text": "the soup was fine", "label": "good", "group": "a"},
    {"text": "the soup was cold", "label": "bad", "group": "b"},
    {"text": "THE SOUP was cold", "label": "good", "group": "b"},
]


@pytest.fixture
def recipe(tmp_path: Path, tiny_model: Path) -> Path:
    """Two tasks over the same three rows, two of which contradict each other."""
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    return write_recipe(tmp_path, tiny_model)


def write_recipe(folder: Path, model: Path, options: str = "") -> Path:
    task = f"{{train: rows.jsonl, format: classification, split: {{eval: 0}}{options}}}"
    path = folder / "recipe.yaml"
    path.write_text(f"model: {{name_or_path: {model}}}\ntasks:\n  one: {task}\n  two: {task}\n")
    return path


def test_good_rows_end_with_0_and_nothing_is_written(
    cli: CommandLine, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_tiny_recipe(tmp_path, tiny_model)
    before = contents(tmp_path)
    monkeypatch.chdir(tmp_path)
    code, out, _ = cli("check", recipe)
    assert code == 0
    assert "0 errors" in out
    assert contents(tmp_path) == before


def test_warnings_end_with_0_and_with_2_if_strict(cli: CommandLine, recipe: Path) -> None:
    code, out, _ = cli("check", recipe)
    assert code == 0
    assert "rows.jsonl:2 'bad', " in out
    assert "0 errors, 2 warnings" in out
    assert cli("check", recipe, "--strict")[0] == 2


def test_errors_of_all_tasks_end_with_2(cli: CommandLine, tmp_path: Path, tiny_model: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [*ROWS, {"text": "", "label": "good"}])
    code, out, _ = cli("check", write_recipe(tmp_path, tiny_model))
    assert code == 2
    for task in ("one", "two"):
        assert f"error: tasks.{task}.train: 1 of 4 rows are bad" in out
    assert out.count("rows.jsonl:4: column 'text' is empty") == 2
    assert cli("check", write_recipe(tmp_path, tiny_model, ", on_bad_row: skip"))[0] == 0


def test_a_missing_column_ends_with_2_and_the_nearest_name(cli: CommandLine, recipe: Path) -> None:
    code, out, _ = cli("check", recipe, "--column", "grop")
    assert code == 2
    assert "did you mean 'group'?" in out


def test_json_is_the_report_and_out_writes_the_same(
    cli: CommandLine, recipe: Path, tmp_path: Path
) -> None:
    file = tmp_path / "check.json"
    code, out, _ = cli(
        "check", recipe, "--json", "--task", "one", "--column", "group", "--out", file
    )
    assert code == 0
    found = json.loads(out)
    assert found == json.loads(file.read_text(encoding="utf-8"))
    assert list(found["tasks"]) == ["one"]
    assert [group["value"] for group in found["groups"][0]["groups"]] == ["b", "a"]


def test_overrides_are_those_of_train(cli: CommandLine, recipe: Path) -> None:
    code, out, _ = cli("check", recipe, "training.max_length=2", "tasks.one.overlong=error")
    assert code == 2
    assert "over training.max_length (2 tokens)" in out


def test_an_unknown_task_is_an_error(cli: CommandLine, recipe: Path) -> None:
    code, _, err = cli("check", recipe, "--task", "oen")
    assert code == 2
    assert "did you mean 'one'?" in err


@pytest.mark.parametrize("width", [80, 120])
def test_lines_of_tables_fit_and_markup_and_control_characters_are_shown_as_text(
    cli: CommandLine,
    tmp_path: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    width: int,
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    rows = [{**row, "label": f"[red]{row['label']}\x1b[2J", "group": "[bold]x"} for row in ROWS]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    code, out, _ = cli("check", write_recipe(tmp_path, tiny_model), "--column", "group")
    assert code == 0
    assert "\x1b" not in out
    assert "[red]good\\x1b[2J" in out
    assert "[bold]x" in out
    tables = out.partition("warning:")[0]
    assert max(map(len, tables.splitlines())) <= width
