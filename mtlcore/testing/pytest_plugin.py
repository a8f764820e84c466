"""Fixtures for the tests of plugins; pytest finds them once mtlcore is installed.

Importing this file costs nothing: what a fixture needs is imported when a test asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from mtlcore.plugins import PluginManager
    from mtlcore.testing.command_line import CommandLine


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random two-layer Llama with its tokenizer; tests must not change it."""
    from mtlcore.demo.tiny import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def tiny_recipe(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_recipe("weighting=pcgrad", ...)` writes a recipe of three tasks with their data.

    The overrides are those of the command line. Each call has a folder of its own, in which the
    run is written too (`run`); the result is the path of its recipe.yaml.
    """
    from mtlcore.testing.recipes import override_recipe, write_tiny_recipe

    def write(*overrides: str) -> Path:
        recipe = write_tiny_recipe(tmp_path_factory.mktemp("recipe"), tiny_model)
        if overrides:
            override_recipe(recipe, overrides)
        return recipe

    return write


@pytest.fixture
def plugin_manager() -> Callable[..., PluginManager]:
    """`plugin_manager(plugin, ...)` is a manager of these plugins alone."""
    from mtlcore.testing.stand_ins import plugin_manager

    return plugin_manager


@pytest.fixture
def run_cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """`run_cli("train", recipe, ...)` runs a command here: exit code, stdout, stderr."""
    from mtlcore.testing.command_line import CommandLine

    return CommandLine(capfd, monkeypatch)
