"""DWA against TorchJD's, its windows, and what it does with absent tasks and state."""

import math

import pytest
import torch

import mtlcore
from mtlcore_plugins.weighting.dwa import DWA
from tests.recipes import metrics, training_part, write_tiny_recipe
from tests.weighting.helpers import random_losses, slopes, tasks, weigh_by


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("window", [1, 4])
def test_weights_equal_torchjd_over_many_windows(count, window):
    oracle = pytest.importorskip("torchjd.scalarization").DWA(temperature=0.5)
    weighting, run = DWA(tau=0.5, window=window), tasks(count)
    for step in range(6 * window):
        losses = random_losses(count, 1.0, step)
        expected = slopes(oracle, losses)
        torch.testing.assert_close(weigh_by(weighting, run, losses), expected, rtol=1e-12, atol=0)
        if step % window == window - 1:
            oracle.step()


def test_weights_follow_the_formula_from_the_third_window_on():
    weighting, run = DWA(window=2), tasks(2)
    for losses in ([4.0, 2.0], [2.0, 2.0], [1.0, 2.0], [2.0, 2.0]):  # means 3, 2 and 1.5, 2
        assert weigh_by(weighting, run, losses).tolist() == [1.0, 1.0]
    falling, still = math.exp(0.5 / 2), math.exp(1 / 2)
    expected = [2 * falling / (falling + still), 2 * still / (falling + still)]
    assert weigh_by(weighting, run, [1.0, 1.0]).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-10, 1e10])
def test_weights_do_not_depend_on_the_scale_of_a_loss(scale):
    plain, scaled, run = DWA(window=1), DWA(window=1), tasks(2)
    for losses in ([4.0, 2.0], [3.0, 1.0], [2.0, 2.0]):
        weights = weigh_by(plain, run, losses)
        again = weigh_by(scaled, run, [losses[0] * scale, losses[1]])
        torch.testing.assert_close(again, weights, rtol=1e-12, atol=0)


def test_a_task_absent_from_a_window_keeps_its_ratio():
    weighting, run = DWA(window=1), tasks(3)
    weigh_by(weighting, run, [4.0, 4.0, 4.0])
    weigh_by(weighting, run, [2.0, 1.0, 4.0])
    weigh_by(weighting, run, [2.0, 1.0], present=[0, 2])
    weighting._close_window(weighting.state)
    assert weighting.state[0].tolist() == [1.0, 0.25, 0.25]
    assert weighting.state[1].tolist() == [2.0, 1.0, 1.0]


def test_a_weight_does_not_depend_on_who_else_is_present():
    weighting, run = DWA(window=1), tasks(3)
    weigh_by(weighting, run, [4.0, 4.0, 4.0])
    weigh_by(weighting, run, [2.0, 1.0, 4.0])
    other = DWA(window=1)
    other.load_state_dict(weighting.state_dict())
    everyone = weigh_by(weighting, run, [1.0, 1.0, 1.0])
    assert weigh_by(other, run, [1.0, 1.0], present=[0, 2]).tolist() == everyone[[0, 2]].tolist()


def test_losses_of_zero_give_finite_weights():
    weighting, run = DWA(window=1), tasks(2)
    for losses in ([0.0, 1.0], [1.0, 0.0], [0.0, 1e6], [1e6, 0.0]):
        weights = weigh_by(weighting, run, losses)
        assert torch.isfinite(weights).all()
        assert weights.sum() == pytest.approx(2)


def test_a_weighting_resumed_in_the_middle_of_a_window_goes_on_alike():
    first, run = DWA(window=3), tasks(2)
    for losses in ([3.0, 1.0], [2.0, 1.0], [2.0, 0.5], [1.0, 2.0]):
        weigh_by(first, run, losses)
    second = DWA(window=3)
    second.load_state_dict(first.state_dict())
    for losses in ([2.0, 5.0], [1.0, 4.0], [0.5, 3.0], [0.2, 4.0]):
        assert torch.equal(weigh_by(first, run, losses), weigh_by(second, run, losses))


def test_state_before_the_first_step_can_be_saved_and_loaded():
    weighting = DWA()
    weighting.load_state_dict(weighting.state_dict())
    assert weigh_by(weighting, tasks(2), [1.0, 1.0]).tolist() == [1.0, 1.0]


def test_a_run_weighs_its_tasks_and_one_that_is_too_short_says_so(tiny_model, tmp_path):
    recipe = write_tiny_recipe(
        tmp_path,
        tiny_model,
        weighting="{name: dwa, window: 2}",
        training=training_part(tmp_path, max_steps=5, save_steps=5),
    )
    run = mtlcore.train(recipe)
    weights = [line["weights"] for line in metrics(run.folder)]
    assert set(weights[3].values()) == {1.0}
    assert len(set(weights[4].values())) == 3
    assert not any("two windows" in note for note in run.notes)
    short = mtlcore.train(recipe, [f"training.output_dir={tmp_path / 'b'}", "training.max_steps=4"])
    assert any("4 steps are not more than two windows of 2" in note for note in short.notes)
