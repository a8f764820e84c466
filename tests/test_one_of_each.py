"""The example with one plugin of each kind, pip-installed: one recipe uses them all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from mtlcore.recipe import Recipe
from mtlcore.schema import KIND_OF_SLOT
from tests.recipes import TASKS, metrics, training_part, write_tiny_recipe

EXAMPLE = Path(__file__).parents[1] / "examples" / "mtlcore-one-of-each"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages with the example in it."""
    folder = tmp_path_factory.mktemp("one_of_each")
    source = shutil.copytree(EXAMPLE, folder / "source")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    flags = ["--no-deps", "--no-index", "--no-build-isolation", "--target", str(folder / "site")]
    subprocess.run([*pip, *flags, str(source)], check=True)
    return folder / "site"


def call(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return python(site, folder, "mtlcore.cli", *arguments)


def python(
    site: Path, folder: Path, module: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    environ = {**os.environ, "PYTHONPATH": path, "MTLCORE_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environ, cwd=folder)


def test_the_examples_have_one_of_each_kind(site: Path, tmp_path: Path) -> None:
    done = call(site, tmp_path, "plugins", "list", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    kinds = {row["kind"] for row in rows if row["distribution"] == "mtlcore-one-of-each"}
    assert kinds | {"weighting"} == set(KIND_OF_SLOT.values())
    assert set(KIND_OF_SLOT) <= set(Recipe.model_fields) | {"format", "metrics", "rows"}


def test_one_recipe_uses_them_all(site: Path, tiny_model: Path, tmp_path: Path) -> None:
    tasks = TASKS.replace("exact_match", "exact_match, length_ratio")
    tasks = tasks.replace('{name: prompt_completion, template: "Define {{ word }}:"}', "key_value")
    tasks = tasks.replace("{completion: gloss}", "{answer: gloss}\n    rows: newest_first")
    recipe = write_tiny_recipe(
        tmp_path,
        tiny_model,
        tasks=tasks,
        stages="[{name: one, tasks: [spelling], max_steps: 2},"
        " {name: two, tasks: [sentiment, definitions], max_steps: 4}]",
        sampling="round_robin",
        regularization="[small_weights]",
        monitoring="[loss_averages]",
        replay="{name: last_rows, rows: 2}",
        overall="median",
        auditing="[{name: empty_answers, every_n_steps: 3, fail_above: 1.0}]",
        training=training_part(tmp_path, max_steps="null", eval_steps=6),
    )
    done = call(site, tmp_path, "train", str(recipe))
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "run"
    lines = metrics(folder)
    steps = [line for line in lines if "rows" in line]
    assert [line["rows"]["spelling"] for line in steps] == [6, 6, 1, 1, 1, 1], "replayed"
    drawn = [(line["rows"]["sentiment"], line["rows"]["definitions"]) for line in steps[2:]]
    assert drawn == [(6, 0), (0, 6), (6, 0), (0, 6)]
    assert all(line["penalties"]["small_weights"] > 0 for line in steps)
    [evaluation] = [line for line in lines if "eval_overall" in line]
    assert "eval_spelling_length_ratio" in evaluation
    audits = [json.loads(line) for line in (folder / "audits.jsonl").read_text().splitlines()]
    assert [audit["step"] for audit in audits] == [3, 6]
    assert {finding["task"] for finding in audits[0]["findings"]} == set(steps[0]["rows"])
    sections = json.loads((folder / "result.json").read_text())["sections"]
    assert "Smoothed losses" in [section["title"] for section in sections]


def test_a_failed_audit_keeps_the_run_and_ends_with_3(
    site: Path, tiny_model: Path, tmp_path: Path
) -> None:
    plugin = (
        "class Always(Auditor):\n    name = 'always'\n\n    def audit(self, run, predictions):\n"
    )
    plugin += "        return [Finding('always', 'spelling', 1.0, 'it is so', True)]\n"
    (tmp_path / "always.py").write_text(
        f"from mtlcore.components import Auditor, Finding\n\n{plugin}"
    )
    recipe = write_tiny_recipe(tmp_path, tiny_model, auditing="[always]", plugins="[./always.py]")
    done = call(site, tmp_path, "train", str(recipe), "training.max_steps=1")
    assert done.returncode == 3, done.stderr
    assert "audit always of spelling: it is so" in done.stderr
    assert (tmp_path / "run" / "result.json").is_file()


def test_its_own_tests_pass_with_the_fixtures_of_mtlcore(site: Path, tmp_path: Path) -> None:
    plugin = "mtlcore.testing.pytest_plugin"
    installed = any(point.value == plugin for point in entry_points(group="pytest11"))
    named = [] if installed else ["-p", plugin]  # of a source tree that is not installed
    tests = str(EXAMPLE / "tests")
    done = python(site, tmp_path, "pytest", "-q", "-p", "no:cacheprovider", *named, tests)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 passed" in done.stdout
