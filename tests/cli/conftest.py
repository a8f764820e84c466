"""Shared by the tests of the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mtlcore.testing.command_line import CommandLine


@pytest.fixture
def cli(run_cli: CommandLine) -> CommandLine:
    return run_cli


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A trained run that the test may change."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))
