"""`max_share`: a task keeps to its share of a step's rows, and others take the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mtlcore
from mtlcore.components import within
from mtlcore.errors import UserError
from mtlcore.stages import plan_stages
from mtlcore.testing import stand_in_run
from mtlcore_plugins.sampling.equal import Equal
from mtlcore_plugins.sampling.proportional import Proportional
from tests.recipes import TASKS, training_part, write_tiny_recipe

SHARES = st.lists(st.floats(0, 1, exclude_min=True), min_size=1, max_size=6)


def test_what_is_over_goes_to_the_others_as_they_share() -> None:
    assert within([0.8, 0.15, 0.05], [0.2, 1, 1]) == pytest.approx([0.2, 0.6, 0.2])
    assert within([0.8, 0.15, 0.05], [0.2, 0.5, 1]) == pytest.approx([0.2, 0.5, 0.3])
    assert within([0.5, 0.3, 0.2], [1, 0.3, 1]) == [0.5, 0.3, 0.2], "the same bits"


def test_where_nobody_can_have_the_rest_they_go_by_their_limits() -> None:
    assert within([1.0, 0.0], [0.1, 1]) == [1.0, 0.0]
    assert within([0.9, 0.1], [0.2, 0.3]) == pytest.approx([0.4, 0.6])


@given(shares=SHARES, limits=st.lists(st.floats(0.01, 1), min_size=6, max_size=6))
def test_shares_sum_to_one_and_keep_their_limits_where_they_can(
    shares: list[float], limits: list[float]
) -> None:
    limits = limits[: len(shares)]
    found = within([share / sum(shares) for share in shares], limits)
    assert sum(found) == pytest.approx(1)
    assert min(found) >= 0
    if sum(limits) >= 1 + 1e-9:
        assert all(share <= limit + 1e-9 for share, limit in zip(found, limits, strict=True))


def test_every_sampler_keeps_to_it() -> None:
    run = stand_in_run({"main": 20, "corpus": 980}, rows_per_step=20)
    run.tasks[1].recipe.max_share = 0.1
    for sampler in (Proportional(), Equal()):
        assert sampler.expected_shares(run, 0) == pytest.approx([0.9, 0.1])
        assert sampler.mtlcore_plan_step(run, 0) == [18, 2]


def test_epochs_count_main_tasks_where_there_are_any() -> None:
    run = stand_in_run({"main": 90, "corpus": 980}, rows_per_step=10)
    run.sampler, run.active = Equal(), [True, True]
    run.is_active = lambda task: run.active[task.index]
    run.recipe.stages = []
    for name, value in {"max_steps": None, "num_train_epochs": 2.0, "learning_rate": 1e-3}.items():
        setattr(run.recipe.training, name, value)
    assert plan_stages(run)[0].steps == 2 * 980 / 5
    run.tasks[1].recipe.role = "auxiliary"
    assert plan_stages(run)[0].steps == 2 * 90 / 5
    run.tasks[0].recipe.role = "auxiliary"
    assert plan_stages(run)[0].steps == 2 * 980 / 5


def test_a_run_draws_no_more(tiny_model: Path, tmp_path: Path) -> None:
    recipe = write_tiny_recipe(
        tmp_path,
        tiny_model,
        tasks=TASKS.replace("    loss_weight: 2.0", "    max_share: 0.125"),
        training=training_part(tmp_path, max_steps=4, save_steps=4),
    )
    run = mtlcore.train(recipe)
    # 0.75 of 6 rows a step, rounded up or down; by its 24 of 76 rows it would have 7 or 8.
    assert sum(run.rows_drawn) == 24
    assert run.rows_drawn[1] <= 4


@pytest.mark.parametrize("share", ["0", "1.5"])
def test_a_share_out_of_range_is_refused(share: str, tiny_model: Path, tmp_path: Path) -> None:
    tasks = TASKS.replace("    loss_weight: 2.0", f"    max_share: {share}")
    with pytest.raises(UserError, match="max_share"):
        mtlcore.train(write_tiny_recipe(tmp_path, tiny_model, tasks=tasks))
