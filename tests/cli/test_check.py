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
    for line, task in ((3, "one"), (4, "two")):
        assert f"recipe.yaml:{line}, tasks.{task}.train: 1 of 4 rows are bad" in out
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


# -- components --------------------------------------------------------------------------------

UNFIT = """
model: {{name_or_path: {model}}}
tasks:
  people:
    train: people.jsonl
    eval: people.jsonl
    format: classification
    rows: {{name: group_balanced, column: group}}
  words:
    train: people.jsonl
    eval: people.jsonl
    format: {{name: prompt_completion, template: "{{{{ text }}}}"}}
    columns: {{completion: label}}
    rows: {{name: curriculum, difficulty: text}}
    metrics: [accuracy]
sharing: {{shared: 0, own: 2}}
weighting: {weighting}
overall: {{name: mean, weights: {{peple: 2.0}}}}
replay: {{name: reservoir, rows: 1}}
regularization:
  - {{name: coral, strength: 1.0, tasks: [wrods, people]}}
monitoring: [conflicts, affinity]
auditing:
  - {{name: group_metrics, column: group, tasks: [people]}}
  - {{name: counterfactual, tasks: [word]}}
training: {{output_dir: {folder}/run, max_steps: 2}}
"""
REFUSALS = [
    (8, "tasks.people.rows: column 'group' has groups of fewer than 10 rows"),
    (14, "tasks.words.rows: column 'text' must hold numbers"),
    (15, "tasks.words.metrics: accuracy compares class labels"),
    (18, "overall.weights: the recipe has no task 'peple'"),
    (19, "replay.rows: a memory of 1 rows cannot hold a row of each of 2 tasks"),
    (21, "regularization[0].tasks: the recipe has no task 'wrods'"),
    (22, "monitoring[0]: conflicts looks at weights that several tasks share"),
    (22, "monitoring[1]: affinity compares gradients of weights"),
    (24, "auditing[0].column: task 'people': 1 of 3 groups of 'group' have fewer than 10"),
    (25, "auditing[1].tasks: the recipe has no task 'word'"),
]
WEIGHTINGS = {
    "gradient_similarity": ": gradient_similarity gates auxiliary tasks by the main ones, "
    "and the recipe has no auxiliary task",
    "{name: fixed, weights: {people: 1.0, word: 1.0}}": ".weights: the recipe has no task 'word'",
}


def unfit(folder: Path, model: Path, weighting: str) -> Path:
    """A recipe whose components cannot work with its tasks, though all rows are right."""
    rows = [
        {"text": f"{group} {2**i} said it", "label": ["good", "bad"][i % 2], "group": group}
        for group, count in (("a", 12), ("b", 12), ("c", 3))
        for i in range(count)
    ]
    write_jsonl(folder / "people.jsonl", rows)
    path = folder / "recipe.yaml"
    path.write_text(UNFIT.format(model=model, folder=folder, weighting=weighting))
    return path


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("verb", ["check", "train"])
def test_all_that_components_refuse_is_told_at_once_and_nothing_is_written(
    verb: str, weighting: str, cli: CommandLine, tmp_path: Path, tiny_model: Path
) -> None:
    recipe = unfit(tmp_path, tiny_model, weighting)
    before = contents(tmp_path)
    code, out, err = cli(verb, recipe)
    assert code == 2
    assert contents(tmp_path) == before
    said = out if verb == "check" else err
    for line, message in REFUSALS:
        assert f"error: {recipe}:{line}, {message}" in said
    assert f"error: {recipe}:17, weighting{WEIGHTINGS[weighting]}" in said
    assert f"{len(REFUSALS) + 1} " + ("errors" if verb == "check" else "problems") in said


def test_unknown_components_and_options_are_told_beside_bad_rows_of_a_task(
    cli: CommandLine, tmp_path: Path, tiny_model: Path
) -> None:
    recipe = unfit(tmp_path, tiny_model, "{name: pcgrad, scop: model}")
    text = recipe.read_text().replace("name: reservoir", "name: reservoi")
    recipe.write_text(text.replace("    train: people.jsonl\n", "    train: bad.jsonl\n", 1))
    write_jsonl(tmp_path / "bad.jsonl", [*ROWS, {"text": "", "label": "good"}])
    code, out, _ = cli("check", recipe)
    assert code == 2
    assert f"error: {recipe}:5, tasks.people.train: 1 of 4 rows are bad" in out
    assert f"error: {recipe}:17, weighting.scop: weighting.scop is not an option of 'pcgrad'" in out
    assert f"error: {recipe}:19, replay: replay 'reservoi' is not known" in out
    assert "fewer than 10" not in out, "what hangs on the rows that could not be read"
    told = [REFUSALS[place] for place in (1, 2, 3, 5, 6, 7, 9)]
    for line, message in told:
        assert f"error: {recipe}:{line}, {message}" in out
    assert f"{len(told) + 3} errors" in out


def test_a_head_that_cannot_be_is_told_once(
    cli: CommandLine, tmp_path: Path, tiny_model: Path
) -> None:
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    rows = "train: rows.jsonl, eval: rows.jsonl, test: rows.jsonl"
    task = f"{{{rows}, format: text, head: classification}}"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {{name_or_path: {tiny_model}}}\ntasks:\n  one: {task}\n")
    code, out, _ = cli("check", recipe)
    assert code == 2
    assert out.count("has a head, but its format gives no options to choose from") == 1
    assert "1 error," in out


def test_a_class_of_one_row_is_a_warning_of_class_balanced(
    cli: CommandLine, tmp_path: Path, tiny_model: Path
) -> None:
    rows = [{"text": f"room {2**i}", "label": "good" if i else "bad"} for i in range(10)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    code, out, _ = cli("check", write_recipe(tmp_path, tiny_model, ", rows: class_balanced"))
    assert code == 0
    assert (
        "recipe.yaml:3, tasks.one.rows: task 'one' has a single row of 'bad': class_balanced draws "
        "it once in 2 rows, 5.0 times as often as its share of the rows"
    ) in out
