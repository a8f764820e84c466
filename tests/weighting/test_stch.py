"""Smooth Tchebycheff against TorchJD's, its limits, loss weights as preferences."""

import pytest
import torch

from mtlcore_plugins.weighting.stch import STCH
from tests.weighting.helpers import (
    random_losses,
    slopes,
    tasks,
    trained,
    weigh_by,
    weighted_losses,
)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("mu", [0.01, 0.1, 1.0, 100.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 10.0])
def test_weights_equal_torchjd(count, mu, scale):
    oracle = pytest.importorskip("torchjd.scalarization").STCH(mu)
    losses = random_losses(count, scale, count)
    weights = weigh_by(STCH(mu=mu), tasks(count), losses)
    torch.testing.assert_close(weights, slopes(oracle, losses), rtol=1e-10, atol=1e-300)
    assert float(weights.sum()) == pytest.approx(1 / count)


def test_a_loss_weight_is_the_preference_of_torchjd():
    scalarization = pytest.importorskip("torchjd.scalarization")
    losses, given = random_losses(3, 1.0, 0), torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    expected = slopes(scalarization.STCH(0.5, weights=given / 3), losses)
    weighted = [loss * float(weight) for loss, weight in zip(losses, given, strict=True)]
    found = weigh_by(STCH(mu=0.5), tasks(3), weighted) * given  # as the trainer multiplies
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_a_small_mu_takes_the_worst_task_and_a_large_one_all():
    assert weigh_by(STCH(mu=1e-6), tasks(3), [1.0, 3.0, 2.0]).tolist() == [0.0, 1 / 3, 0.0]
    even = weigh_by(STCH(mu=1e9), tasks(3), [1.0, 3.0, 2.0])
    assert even.tolist() == pytest.approx([1 / 9] * 3)


def test_the_softmax_is_over_the_present_tasks():
    weights = weigh_by(STCH(), tasks(4), [2.0, 2.0], present=[0, 3])
    assert weights.tolist() == [1 / 8, 1 / 8]


def test_huge_losses_and_losses_of_zero_are_finite():
    assert weigh_by(STCH(mu=1e-3), tasks(2), [1e300, 0.0]).tolist() == [0.5, 0.0]
    assert weigh_by(STCH(), tasks(2), [0.0, 0.0]).tolist() == [0.25, 0.25]


def test_permuted_tasks_have_permuted_weights():
    losses, new = random_losses(5, 1.0, 0), [3, 0, 4, 2, 1]
    expected = weigh_by(STCH(), tasks(5), losses)[new]
    found = weigh_by(STCH(), tasks(5), [losses[k] for k in new])
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)


def test_a_run_gives_large_losses_more_weight(tiny_model, tmp_path):
    for line in trained(tmp_path, tiny_model, "{name: stch, mu: 0.1}"):
        weights = line["weights"]
        losses = weighted_losses(line)
        assert sum(weights.values()) == pytest.approx(1 / 3)
        assert max(weights, key=weights.get) == max(losses, key=losses.get)
