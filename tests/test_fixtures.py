"""The fixtures for plugin authors, and that pytest may load them at no cost."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mtlcore.components import Sampler
from mtlcore.errors import UserError
from mtlcore.testing.command_line import CommandLine

LIGHT = """
import sys
import mtlcore.testing.pytest_plugin
heavy = {"torch", "transformers", "pydantic", "numpy", "datasets"} & set(sys.modules)
assert not heavy, heavy
"""


def test_the_pytest_plugin_imports_nothing_that_costs() -> None:
    subprocess.run([sys.executable, "-c", LIGHT], check=True)


def test_a_tiny_recipe_is_trained_from_the_command_line(
    tiny_recipe: Callable[..., Path], run_cli: CommandLine
) -> None:
    recipe = tiny_recipe("training.max_steps=1", "weighting=equal", "sampling=equal")
    code, _, errors = run_cli("train", recipe)
    assert code == 0, errors
    [line] = (recipe.parent / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["rows"] == {"sentiment": 2, "spelling": 2, "definitions": 2}


def test_every_tiny_recipe_has_a_folder_of_its_own(tiny_recipe: Callable[..., Path]) -> None:
    assert tiny_recipe().parent != tiny_recipe().parent


def test_run_cli_tells_what_was_refused(
    tiny_recipe: Callable[..., Path], run_cli: CommandLine
) -> None:
    code, _, errors = run_cli("train", tiny_recipe(), "weighting=pcgard")
    assert code == UserError.exit_code
    assert "did you mean 'pcgrad'?" in errors


def test_the_plugin_manager_has_the_given_plugins_alone(
    plugin_manager: Callable[..., Any],
) -> None:
    class Own(Sampler):
        """A sampler of this test."""

        name = "own"

    assert list(plugin_manager(Own).components()) == [("sampling", "own")]
