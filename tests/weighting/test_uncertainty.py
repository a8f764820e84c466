"""Uncertainty weighting against TorchJD's, and what it does with absent tasks and state."""

import pytest
import torch

from mtlcore_plugins.weighting.uncertainty import Uncertainty
from tests.weighting.helpers import random_losses, slopes, tasks, weigh_by


@pytest.mark.parametrize("count", [1, 2, 7])
def test_weights_and_states_equal_those_of_adam_on_torchjd(count):
    oracle = pytest.importorskip("torchjd.scalarization").UW(count).double()
    optimizer = torch.optim.Adam(oracle.parameters(), lr=0.1)
    weighting, run = Uncertainty(learning_rate=0.1), tasks(count)
    for step in range(20):
        losses = random_losses(count, 1.0, step)
        optimizer.zero_grad()
        expected = slopes(oracle, losses)
        torch.testing.assert_close(weigh_by(weighting, run, losses), expected, rtol=1e-10, atol=0)
        optimizer.step()
        torch.testing.assert_close(weighting.state[0], oracle.log_var.detach(), rtol=1e-10, atol=0)


def test_the_variance_comes_to_rest_at_the_loss():
    weighting, run = Uncertainty(learning_rate=0.1), tasks(3)
    for _ in range(2000):
        weights = weigh_by(weighting, run, [0.1, 1.0, 20.0])
    assert weights.tolist() == pytest.approx([5.0, 0.5, 0.025], rel=1e-3)


def test_an_absent_task_keeps_its_state():
    weighting, run = Uncertainty(), tasks(3)
    weigh_by(weighting, run, [1.0, 2.0, 3.0])
    before = weighting.state.clone()
    assert weigh_by(weighting, run, [9.0, 9.0], present=[0, 2]).shape == (2,)
    assert torch.equal(weighting.state[:, 1], before[:, 1])
    assert (weighting.state[:, [0, 2]] != before[:, [0, 2]]).all()


def test_a_resumed_weighting_goes_on_alike():
    first, run = Uncertainty(), tasks(2)
    weigh_by(first, run, [3.0, 1.0])
    second = Uncertainty()
    second.load_state_dict(first.state_dict())
    for _ in range(3):
        assert torch.equal(weigh_by(first, run, [2.0, 5.0]), weigh_by(second, run, [2.0, 5.0]))


def test_state_before_the_first_step_can_be_saved_and_loaded():
    weighting = Uncertainty()
    weighting.load_state_dict(weighting.state_dict())
    assert weigh_by(weighting, tasks(2), [1.0, 1.0]).tolist() == [0.5, 0.5]


def test_a_loss_of_zero_and_a_huge_one_give_finite_weights():
    weighting, run = Uncertainty(), tasks(2)
    for _ in range(200):
        weights = weigh_by(weighting, run, [0.0, 1e6])
    assert torch.isfinite(weights).all()
    assert (weights > 0).all()
