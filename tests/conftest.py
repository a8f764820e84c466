"""Shared by all tests: no network; one tiny trained run that tests may read but not change."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

from mtlcore.testing import pytest_plugin

hypothesis.settings.register_profile("same cases every time", derandomize=True, deadline=None)
hypothesis.settings.load_profile("same cases every time")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tiny models: a second thread gains nothing, and its barriers cost tenfold on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Take mtlcore's own fixtures, where the installation has not brought them already."""
    if not config.pluginmanager.is_registered(pytest_plugin):
        config.pluginmanager.register(pytest_plugin, "mtlcore")


@pytest.fixture(scope="session")
def tiny_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of three tasks."""
    import mtlcore
    from tests.recipes import write_tiny_recipe

    folder = tmp_path_factory.mktemp("run")
    recipe = write_tiny_recipe(folder, tiny_model)
    return mtlcore.train(recipe, ["training.eval_steps=3", "training.eval_max_rows=4"]).folder


@pytest.fixture(scope="session")
def finished_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run whose weighting has a state, beside its recipe; to be copied."""
    import mtlcore
    from tests.recipes import write_tiny_recipe

    recipe = write_tiny_recipe(
        tmp_path_factory.mktemp("finished"), tiny_model, weighting="uncertainty"
    )
    return mtlcore.train(recipe).folder
