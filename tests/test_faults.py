"""A run that is ended at any moment goes on to the same bits."""

from __future__ import annotations

import random
import shutil
import signal
from pathlib import Path

import pytest

from mtlcore.checkpoint_store import checkpoints
from tests.faults import differences, end_after, seconds_of_a_run
from tests.recipes import training_part, write_tiny_recipe

STOPPED = 75


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run that nobody disturbed, and how long one takes."""
    for name in ("first", "whole"):  # the first also starts the server that the others fork from
        folder = tmp_path_factory.mktemp(name)
        seconds = seconds_of_a_run(recipe_in(folder, tiny_model))
    return folder / "run", seconds


def recipe_in(folder: Path, model: Path) -> Path:
    """Dropout, own weights, replay, an auditor, a regularizer with state, two stages, best weights
    in the end."""
    training = training_part(
        folder,
        max_steps="null",
        eval_steps=2,
        eval_max_rows=6,
        save_steps=1,
        save_total_limit=3,
        metric_for_best_model="eval_loss",
        load_best_model_at_end="true",
        gradient_accumulation_steps=2,
    )
    return write_tiny_recipe(
        folder,
        model,
        training=training,
        weighting="uncertainty",
        replay="{name: reservoir, rows: 8}",
        stages="[{name: first, tasks: [sentiment, spelling], max_steps: 5}, "
        "{name: second, tasks: [definitions], max_steps: 4}]",
        auditing="[{name: counterfactual, every_n_steps: 3}]",
    )


def end_at_random(
    number: signal.Signals, count: int, whole: tuple[Path, float], model: Path, folder: Path
) -> list[int]:
    """End a run at so many moments, go on each time, and compare; the exit codes of the ends."""
    reference, seconds = whole
    recipe = recipe_in(folder, model)
    draw = random.Random(0)
    codes: list[int] = []
    while len(codes) < count:
        moment = draw.uniform(0, seconds)
        code = end_after(recipe, moment, number)
        seconds_of_a_run(recipe)
        assert differences(folder / "run", reference) == [], f"{number.name} after {moment:.3f} s"
        shutil.rmtree(folder / "run")
        if code != 0:  # else it was at its end already
            codes.append(code)
    return codes


@pytest.mark.parametrize("count", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_goes_on_to_the_same_bits(
    count: int, whole: tuple[Path, float], tiny_model: Path, tmp_path: Path
) -> None:
    codes = end_at_random(signal.SIGKILL, count, whole, tiny_model, tmp_path)
    assert set(codes) == {-signal.SIGKILL}


@pytest.mark.parametrize("count", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_a_run_that_is_stopped_goes_on_to_the_same_bits(
    count: int, whole: tuple[Path, float], tiny_model: Path, tmp_path: Path
) -> None:
    codes = end_at_random(signal.SIGTERM, count, whole, tiny_model, tmp_path)
    assert STOPPED in codes
    assert set(codes) <= {STOPPED, -signal.SIGTERM}  # the latter before the training began


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_each_of_many_kills_leaves_what_the_next_start_goes_on_from(
    number: signal.Signals, whole: tuple[Path, float], tiny_model: Path, tmp_path: Path
) -> None:
    """One run in small pieces, some of them ended by a second signal or by SIGKILL."""
    reference, seconds = whole
    recipe = recipe_in(tmp_path, tiny_model)
    for piece in range(6):
        end_after(recipe, seconds * 0.6, signal.SIGKILL if piece % 2 else number)
    seconds_of_a_run(recipe)
    assert differences(tmp_path / "run", reference) == []
    assert checkpoints(tmp_path / "run")
