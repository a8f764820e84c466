"""The example plugin, pip-installed into an environment of its own, is found and can be used."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.recipes import write_tiny_recipe

EXAMPLE = Path(__file__).parents[1] / "examples" / "mtlcore-loss-share"

TRY = """
from types import SimpleNamespace
import torch
from mtlcore.plugins import PluginManager
from mtlcore.recipe import ComponentSpec
from mtlcore.testing import StandInGradients, stand_in_run

spec = ComponentSpec.model_validate({"name": "loss_share", "power": 2})
manager = PluginManager.load()
weighting = manager.create("weighting", spec, "weighting")
manager.register(weighting)
weights = manager.hook.mtlcore_weigh_tasks(
    run=stand_in_run({"a": 3, "b": 3}),
    losses=torch.tensor([1.0, 3.0], dtype=torch.float64),
    gradients=StandInGradients(torch.eye(2)),
)
torch.testing.assert_close(weights, torch.tensor([0.1, 0.9], dtype=torch.float64))
assert {row["distribution"] for row in manager.active()} == {"mtlcore-loss-share"}
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The interpreter of a fresh environment with the example; it sees our packages by a .pth."""
    folder = tmp_path_factory.mktemp("third_party")
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
    answer = subprocess.run([python, "-c", asked], check=True, capture_output=True, text=True)
    ours = sysconfig.get_path("purelib")
    # addsitedir also reads the .pth files there, such as that of an editable mtlcore.
    pth = Path(answer.stdout.strip()) / "ours.pth"
    pth.write_text(f"import site; site.addsitedir({ours!r})\n")
    source = shutil.copytree(EXAMPLE, folder / "source")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    install = ["install", "-q", "--no-deps", "--no-index", "--no-build-isolation", str(source)]
    subprocess.run([*pip, *install], check=True)
    return python


def call(python, folder, *arguments):
    environ = {**os.environ, "MTLCORE_CACHE": str(folder)}
    environ.pop("MTLCORE_LOAD_PLUGINS", None)
    done = subprocess.run(
        [python, *arguments], capture_output=True, text=True, env=environ, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_installed_plugin_is_listed(python, tmp_path):
    for _ in range(2):  # made, then read from the cache
        rows = json.loads(call(python, tmp_path, "-m", "mtlcore.cli.plugins", "list", "--json"))
        [row] = [row for row in rows if row["name"] == "loss_share"]
        assert (row["distribution"], row["version"]) == ("mtlcore-loss-share", "0.1.0")
        assert row["options"]["properties"]["power"]["default"] == 1.0


def test_an_installed_plugin_is_made_by_name_and_answers_its_hook(python, tmp_path):
    call(python, tmp_path, "-c", TRY)


def test_a_recipe_names_it_and_its_run_records_it(python, tiny_model, tmp_path):
    recipe = write_tiny_recipe(tmp_path, tiny_model)
    change = ["weighting={name: loss_share, power: 2}", "training.max_steps=2"]
    call(python, tmp_path, "-m", "mtlcore.cli", "train", str(recipe), *change)
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert "mtlcore-loss-share" in {plugin["distribution"] for plugin in environment["plugins"]}
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    squares = {task: weighted(task, loss) ** 2 for task, loss in line["losses"].items()}
    for task, square in squares.items():
        assert line["weights"][task] == pytest.approx(square / sum(squares.values()), rel=1e-4)


def weighted(task, loss):
    """The loss as a weighting sees it: times the task's `loss_weight` in the recipe."""
    return loss * (2.0 if task == "spelling" else 1.0)


def test_the_tests_of_the_example_pass(python, tmp_path):
    tests = str(EXAMPLE / "tests")
    call(python, tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests)
