"""The geometric mean of the losses against TorchJD's, losses of zero, absent tasks."""

import pytest
import torch

from mtlcore_plugins.weighting.geometric import Geometric
from mtlcore_plugins.weighting.scale_invariant import ScaleInvariant
from tests.weighting.helpers import (
    random_losses,
    slopes,
    tasks,
    trained,
    weigh_by,
    weighted_losses,
)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_weights_equal_torchjd(count, scale):
    oracle = pytest.importorskip("torchjd.scalarization").GeometricMean()
    losses = random_losses(count, scale, count)
    weights = weigh_by(Geometric(), tasks(count), losses)
    torch.testing.assert_close(weights, slopes(oracle, losses), rtol=1e-12, atol=0)


def test_the_direction_is_that_of_scale_invariant_at_the_length_of_a_mean():
    losses, run = random_losses(5, 1.0, 0), tasks(5)
    ratio = weigh_by(Geometric(), run, losses) / weigh_by(ScaleInvariant(), run, losses)
    torch.testing.assert_close(ratio, ratio[:1].expand(5), rtol=1e-12, atol=0)
    assert weigh_by(Geometric(), run, [3.0] * 5).tolist() == pytest.approx([0.2] * 5, rel=1e-12)


def test_a_loss_of_zero_is_left_out():
    assert weigh_by(Geometric(), tasks(3), [0.0, 4.0, 1.0]).tolist() == pytest.approx(
        [0, 1 / 6, 2 / 3]
    )
    assert weigh_by(Geometric(), tasks(2), [0.0, 0.0]).tolist() == [0.0, 0.0]
    assert torch.isfinite(weigh_by(Geometric(), tasks(2), [1e-30, 1e30])).all()


def test_the_mean_is_over_the_present_tasks_and_the_share_that_of_the_run():
    weights = weigh_by(Geometric(), tasks(4), [4.0, 1.0], present=[1, 3])
    assert weights.tolist() == pytest.approx([1 / 8, 1 / 2])


def test_a_run_gives_small_losses_more_weight(tiny_model, tmp_path):
    for line in trained(tmp_path, tiny_model, "geometric"):
        losses = weighted_losses(line)
        weights = line["weights"]
        assert sorted(weights, key=weights.get) == sorted(losses, key=losses.get, reverse=True)
        products = [weights[name] * losses[name] for name in losses]
        assert products == pytest.approx([products[0]] * 3, rel=1e-5)
