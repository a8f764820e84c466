"""IMTL-L against TorchJD's, its point of rest, and what it does with absent tasks."""

import pytest
import torch

from mtlcore_plugins.weighting.imtl_l import IMTLL
from mtlcore_plugins.weighting.uncertainty import Uncertainty
from tests.weighting.helpers import random_losses, slopes, tasks, trained, weigh_by


@pytest.mark.parametrize("count", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_weights_and_scales_equal_those_of_adam_on_torchjd(count, scale):
    oracle = pytest.importorskip("torchjd.scalarization").IMTLL(count).double()
    optimizer = torch.optim.Adam(oracle.parameters(), lr=0.1)
    weighting, run = IMTLL(learning_rate=0.1), tasks(count)
    for step in range(20):
        losses = random_losses(count, scale, step)
        optimizer.zero_grad()
        expected = slopes(oracle, losses)
        torch.testing.assert_close(weigh_by(weighting, run, losses), expected, rtol=1e-10, atol=0)
        optimizer.step()
        torch.testing.assert_close(
            weighting.state[0], oracle.log_scale.detach(), rtol=1e-10, atol=0
        )


def test_the_scaled_losses_come_to_rest_at_one():
    weighting, run = IMTLL(learning_rate=0.1), tasks(3)
    for _ in range(2000):
        weights = weigh_by(weighting, run, [0.1, 1.0, 20.0])
    assert weights.tolist() == pytest.approx([10.0, 1.0, 0.05], rel=1e-3)


def test_it_is_twice_uncertainty_step_by_step():
    one, other, run = IMTLL(), Uncertainty(), tasks(4)
    for step in range(50):
        losses = random_losses(4, 1.0, step)
        # Adam's eps of 1e-8 counts twice as much for slopes of half the size: 1e-9 measured
        torch.testing.assert_close(
            weigh_by(one, run, losses), 2 * weigh_by(other, run, losses), rtol=1e-7, atol=0
        )


def test_an_absent_task_keeps_its_state():
    weighting, run = IMTLL(), tasks(3)
    weigh_by(weighting, run, [1.5, 2.0, 3.0])
    before = weighting.state.clone()
    assert weigh_by(weighting, run, [9.0, 9.0], present=[0, 2]).shape == (2,)
    assert torch.equal(weighting.state[:, 1], before[:, 1])
    assert (weighting.state[:, [0, 2]] != before[:, [0, 2]]).all()


@pytest.mark.parametrize("cls", [IMTLL, Uncertainty])
def test_weights_stay_finite_however_long_a_loss_is_zero_or_huge(cls):
    weighting, run = cls(learning_rate=10.0), tasks(2)
    for _ in range(200):
        weights = weigh_by(weighting, run, [0.0, 1e30])
        assert torch.isfinite(weights).all()
    assert 1e-31 < float(weights[1]) < float(weights[0]) < 1e31


def test_permuted_tasks_have_permuted_weights():
    one, other, run, new = IMTLL(), IMTLL(), tasks(5), [3, 0, 4, 2, 1]
    for step in range(3):
        losses = random_losses(5, 1.0, step)
        expected = weigh_by(one, run, losses)[new]
        assert torch.equal(weigh_by(other, run, [losses[k] for k in new]), expected)


def test_a_run_raises_the_weights_of_small_losses(tiny_model, tmp_path):
    lines = trained(tmp_path, tiny_model, "{name: imtl_l, learning_rate: 0.5}")
    assert set(lines[0]["weights"].values()) == {1.0}
    assert len(set(lines[-1]["weights"].values())) == 3
