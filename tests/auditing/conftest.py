"""Shared by the tests of auditors: runs trained on rows with a planted bias."""

from __future__ import annotations

from pathlib import Path

import pytest

import mtlcore
from mtlcore.run import Run
from tests.auditing.planted import planted_recipe


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the planted rows and runs."""
    return tmp_path_factory.mktemp("planted")


@pytest.fixture(scope="session")
def biased(planted: Path) -> Run:
    """A finished run on the biased rows."""
    return mtlcore.train(planted_recipe(planted, mend=False))


@pytest.fixture(scope="session")
def mended(planted: Path) -> Run:
    """The same on rows that stand there once more with their words swapped."""
    return mtlcore.train(planted_recipe(planted, mend=True))
