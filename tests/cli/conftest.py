"""Shared by the tests of the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.command_line import CommandLine


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(capfd, monkeypatch)


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A trained run that the test may change."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))
