"""`mtlcore check` on a recipe that is wrong in many ways: each is told once, with file and line."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command_line import CommandLine, contents
from tests.helpers import write_jsonl

ROWS = [
    {"text": f"{where} {what}", "label": label, "group": "a"}
    for where in ("the soup", "a table", "this garden")
    for what, label in (("was fine", "good"), ("was cold", "bad"))
]

BROKEN = """\
model: {{name_or_path: {model}}}
tasks:
  lost:
    train: rowz.jsonl
    format: classification
  columns:
    train: rows.jsonl
    format: classification
    columns: {{text: txt}}
  labels:
    train: odd.jsonl
    format: {{name: classification, labels: [good, bad]}}
    split: {{eval: 0}}
    metrics: [accuracy, acuracy]
  json:
    train: cut.jsonl
    format: classification
    split: {{eval: 0}}
    loss_weight: -1
  half:
    train: rows.jsonl
wieghting: pcgrad
lora: {{r: 4, target_modules: [q_prj, v_proj, gat_proj]}}
sharing: {{shared: 4, groups: {{pair: {{tasks: [lost, half], r: 2}}}}}}
stages:
  - {{name: first, tasks: [lost, columns, half], max_steps: 3}}
  - {{name: second, tasks: [labels, json, jsn], max_steps: 3}}
sampling: {{name: temperature, temprature: 2.0}}
regularization: [{{name: mine, strength: 1}}]
monitoring: [conflict]
training:
  learning_rate: fast
  eval_steps: 0
  early_stopping_patience: 2
  metric_for_best_model: eval_labels_f1
  report_to: [tensorbord, comet_ml]
  output_dir: {folder}/run
plugins: {{load: [nowhere.py], disable: [pcgrd]}}
"""
TOLD = [
    (1, "model.name_or_path: {folder}/model/model.safetensors is cut short"),
    (4, "tasks.lost.train: no such file: rowz.jsonl"),
    (9, "tasks.columns.columns: task 'columns': {folder}/rows.jsonl has no column 'txt'"),
    (11, "tasks.labels.train: 1 of 7 rows are bad:"),
    (14, "tasks.labels.metrics[1]: evaluation 'acuracy' is not known"),
    (16, "tasks.json.train: 1 of 7 rows are bad:"),
    (19, "tasks.json.loss_weight: should be greater than 0, found -1"),
    (20, "tasks.half.format: `format` is missing"),
    (22, "wieghting: unknown key `wieghting`"),
    (23, "lora.target_modules: the model has no linear layer 'q_prj'"),
    (23, "lora.target_modules: the model has no linear layer 'gat_proj'"),
    (27, "stages[1].tasks[2]: no task 'jsn'"),
    (28, "sampling.temprature: sampling.temprature is not an option of 'temperature'"),
    (30, "monitoring[0]: monitoring 'conflict' is not known"),
    (32, "training.learning_rate: should be a number, found 'fast'"),
    (33, "training.eval_steps: should be greater than 0, found 0"),
    (35, "training.metric_for_best_model: no task and metric give 'eval_labels_f1'"),
    (36, "training.report_to: the tracker 'tensorbord' is unknown"),
    (36, "training.report_to: the tracker 'comet_ml' is not installed"),
    (38, "plugins.load[0]: no such file: nowhere.py"),
]


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path) -> Path:
    """Data of all kinds, and a model of the test's own."""
    shutil.copytree(tiny_model, tmp_path / "model")
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    write_jsonl(tmp_path / "odd.jsonl", [*ROWS, {"text": "odd", "label": "god"}])
    cut = (tmp_path / "rows.jsonl").read_text() + '{"text": "cu\n'
    (tmp_path / "cut.jsonl").write_text(cut)
    return tmp_path


def errors_in(out: str) -> list[str]:
    """The errors' first lines."""
    return [line for line in out.splitlines() if line.startswith("error: ")]


def test_twenty_faults_of_recipe_plugins_model_and_rows_are_told_at_once(
    cli: CommandLine, folder: Path
) -> None:
    weights = folder / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    recipe = folder / "recipe.yaml"
    recipe.write_text(BROKEN.format(model=folder / "model", folder=folder))
    before = contents(folder)
    code, out, _ = cli("check", recipe)
    assert code == 2
    assert contents(folder) == before
    found = errors_in(out)
    for (line, message), error in zip(TOLD, found, strict=False):
        assert error.startswith(f"error: {recipe}:{line}, {message.format(folder=folder)}")
    assert len(found) == len(TOLD), "\n".join(found)
    assert f"{folder}/odd.jsonl:7: label 'god' is not in the set" in out
    assert f"{folder}/cut.jsonl:7: broken JSON" in out
    assert f"warning: {recipe}:38, plugins.disable[0]: no plugin is called 'pcgrd'" in out
    assert out.count("did you mean 'weighting'?") == 1


GOOD = """\
model: {{name_or_path: {folder}/model}}
tasks:
  one: {{train: rows.jsonl, format: classification, split: {{eval: 0}}}}
  two: {{train: rows.jsonl, format: classification, split: {{eval: 0}}}}
"""


@pytest.fixture
def check(cli: CommandLine, folder: Path) -> Callable[..., list[str]]:
    """Check a recipe that is made of GOOD; its errors without `error: file:`."""

    def run(old: str = "", new: str = "", *, more: str = "") -> list[str]:
        text = GOOD.format(folder=folder)
        assert old in text
        recipe = folder / "recipe.yaml"
        recipe.write_text((text.replace(old, new, 1) if old else text) + more)
        code, out, _ = cli("check", recipe)
        found = errors_in(out)
        assert code == (2 if found else 0)
        assert out.rstrip().splitlines()[-1].startswith(f"{len(found)} error")
        return [error.removeprefix(f"error: {recipe}:") for error in found]

    return run


def only(errors: list[str]) -> str:
    (found,) = errors
    return found


def test_the_recipe_that_is_broken_below_is_right(check: Callable[..., list[str]]) -> None:
    assert check() == []


def test_a_misspelt_required_key_is_not_missing_too(check: Callable[..., list[str]]) -> None:
    assert only(check("name_or_path", "nme_or_path")).startswith("1, model.nme_or_path: unknown")
    assert only(check("tasks:", "taks:")).startswith("2, taks: unknown key")
    assert only(check("format", "fromat")).startswith("3, tasks.one.fromat: unknown key")
    missing = only(check("format: classification", "format: text, colums: {text: label}"))
    assert missing.startswith("3, tasks.one.colums: unknown key")
    assert only(check("train: rows.jsonl", "train: {pth: rows.jsonl}")).startswith(
        "3, tasks.one.train.pth: unknown key"
    )


def test_rows_are_looked_at_whatever_is_wrong_with_the_model(
    check: Callable[..., list[str]], folder: Path
) -> None:
    write_jsonl(folder / "rows.jsonl", [*ROWS, {"text": "", "label": "good"}])
    rows = [f"{line}, tasks.{name}.train: 1 of 7" for line, name in ((3, "one"), (4, "two"))]

    def model_and_rows(path: str, says: str) -> None:
        found = check(f"{folder}/model", path)
        assert len(found) == 3
        for error, start in zip(found, (f"1, model.name_or_path: {says}", *rows), strict=True):
            assert error.startswith(start)

    model_and_rows("./nowhere", "no such file")
    model_and_rows("nobody/nothing", "cannot load the tokenizer of 'nobody/nothing'")
    (folder / "empty").mkdir()
    model_and_rows(f"{folder}/empty", f"{folder}/empty holds no model: config.json is missing")
    (folder / "model" / "model.safetensors").rename(folder / "elsewhere")
    model_and_rows(f"{folder}/model", f"{folder}/model holds no weights: model.safetensors")
    (folder / "elsewhere").rename(folder / "model" / "model.safetensors")
    (folder / "model" / "tokenizer.json").unlink()
    (folder / "model" / "tokenizer_config.json").unlink()
    model_and_rows(f"{folder}/model", "cannot load the tokenizer of")
    (folder / "model" / "config.json").write_text("{")
    model_and_rows(f"{folder}/model", "cannot load the model")


def test_a_base_recipe_that_is_not_there_makes_nothing_missing(
    check: Callable[..., list[str]],
) -> None:
    found = only(check("model: ", "extends: base.yaml\n#"))
    assert found.startswith("1, extends: no such file")


def test_what_a_plugin_that_cannot_be_loaded_may_have_is_not_told(
    check: Callable[..., list[str]], folder: Path
) -> None:
    (folder / "mine.py").write_text("raise ImportError('numpty')\n")
    plugins = "plugins: [mine.py]\nweighting: gram_schmidt\nmonitoring: [conflicts, affinty]\n"
    broken, unknown = check(more=plugins)
    assert broken.startswith("5, plugins.load[0]: plugin ")
    assert "ImportError: numpty" in broken
    assert unknown.startswith("7, monitoring[1]: monitoring 'affinty' is not known")


def test_a_plugin_is_not_loaded_where_third_party_code_is_forbidden(
    check: Callable[..., list[str]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTLCORE_NO_PLUGINS", "1")
    (folder / "mine.py").write_text("raise SystemExit('it was run')\n")
    found = only(check(more="plugins: [mine.py]\nweighting: gram_schmidt\n"))
    assert found.startswith("5, plugins.load: the recipe loads ")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("training: {metric_for_best_model: eval_loss, eval_stps: 2, early_stopping_patience: 2}",
         ["5, training.eval_stps: unknown"]),
        ("sharing: {shared: 0}", ["5, sharing: all ranks are 0"]),
        ("sharing: {groups: {g: {tasks: [oen], r: 2}}}", ["5, sharing.groups.g.tasks[0]"]),
        ("sharing: {shared: 2, own_layers: [7]}", ["5, sharing.own_layers: has nothing to act on"]),
        ("sharing: {own: 2, own_layers: [7]}", ["5, sharing.own_layers: the model has no block 7"]),
        ("stages: [{name: a, tasks: [oen, one, two]}]", ["5, stages[0].tasks[0]: no task"]),
        ("stages: [{name: a, tasks: [oen]}, {name: b, tasks: [one, two]}]", ["5, stages[0]"]),
        ("stages: [{name: a, tasks: [oen, two]}]", ["5, stages[0].tasks[0]: no task 'oen'"]),
        ("stages: 3", ["5, stages: should be a list"]),
        ("tasks: {}", ["5, tasks: stands here twice"]),
        ("start: {run: 7}", ["5, start.run: should be text"]),
        ("regularization: [l2_anchor, {strength: 1}]", ["5, regularization[1].name: `name` is"]),
        ("metrics: [accuracy]", ["5, metrics: unknown key"]),
        ("training: [1]", ["5, training: should be a mapping"]),
        ("bottleneck: {own: 4, target_modules: [fc1, fc2]}", ["'fc1'", "'fc2'"]),
        ("plugins: [1]", ["5, plugins: should be text"]),
        ("tasks: 3\nstages: [{name: a, tasks: [one]}]\nmonitoring: [conflicts]",
         ["5, tasks: stands here twice"]),
        ("sampling: {name: temperature, cap: [x]}", ["5, sampling.cap: sampling.cap must be"]),
    ],
)  # fmt: skip
def test_nothing_that_follows_from_a_fault_is_told(
    more: str, told: list[str], check: Callable[..., list[str]]
) -> None:
    found = check(more=more + "\n")
    assert len(found) == len(told), found
    for error, part in zip(found, told, strict=True):
        assert part in error


def test_rows_that_are_all_bad_are_told_once(check: Callable[..., list[str]], folder: Path) -> None:
    write_jsonl(folder / "rows.jsonl", [{"text": "", "label": "good"}])
    given = "format: {name: classification, labels: [good, bad]}"
    one, two = check("format: classification", given)
    assert one.startswith("3, tasks.one.train: 1 of 1 rows are bad")
    assert two.startswith("4, tasks.two.format: "), "which has no row to take its labels from"


def test_tables_that_say_nothing_of_the_errors_are_left_out(cli: CommandLine, folder: Path) -> None:
    recipe = folder / "recipe.yaml"
    recipe.write_text(GOOD.format(folder=folder))
    titles = re.compile(r"^(rows|labels of one|adapters|steps|memory .*) *$", re.MULTILINE)
    _, good, _ = cli("check", recipe)
    assert len(titles.findall(good)) == 5
    code, out, _ = cli("check", recipe, "monitoring=[conflict]")
    assert code == 2
    assert not titles.findall(out)
    assert "note: tables are left out because of the errors; --json has all" in out
    assert "note: steps, memory and disk are not estimated, because of the errors" in out
    write_jsonl(folder / "rows.jsonl", [*ROWS, {"text": "", "label": "good"}])
    assert titles.findall(cli("check", recipe)[1]) == ["rows"], "which counts the bad ones"


def test_train_names_the_command_that_tells_everything(cli: CommandLine, folder: Path) -> None:
    recipe = folder / "recipe.yaml"
    recipe.write_text(BROKEN.format(model=folder / "model", folder=folder))
    code, _, err = cli("train", recipe, "training.seed=one")
    assert code == 2
    command = f"mtlcore check {recipe} training.seed=one"
    *_, fix, count = err.splitlines()
    assert fix.startswith(f"  fix: `{command}` looks at rows and model too")
    assert count.endswith(" problems")
    recipe.write_text("model: [\n")
    assert "mtlcore check" not in cli("train", recipe)[2]


def test_words_of_yaml_only_are_told_when_it_cannot_be_read(cli: CommandLine, folder: Path) -> None:
    recipe = folder / "recipe.yaml"
    recipe.write_text("model: [\n")
    code, out, err = cli("check", recipe)
    assert (code, out) == (2, "")
    assert re.match(rf"error: {re.escape(str(recipe))}:\d+: is no valid YAML", err)


def test_code_that_comes_with_the_model_is_shown_if_the_recipe_allows_it(
    cli: CommandLine, folder: Path
) -> None:
    recipe = folder / "recipe.yaml"
    recipe.write_text(GOOD.format(folder=folder))
    assert "trust_remote_code" not in cli("check", recipe)[1]
    code, out, _ = cli("check", recipe, "model.trust_remote_code=true")
    assert code == 0
    assert "LlamaForCausalLM, with code of its own (trust_remote_code): 156,480 frozen" in out


def test_tasks_that_cannot_be_read_are_not_looked_for(cli: CommandLine, folder: Path) -> None:
    recipe = folder / "recipe.yaml"
    recipe.write_text(GOOD.format(folder=folder).replace("tasks:", "taks:"))
    code, out, _ = cli("check", recipe, "--task", "one")
    assert code == 2
    assert "did you mean 'tasks'?" in out
