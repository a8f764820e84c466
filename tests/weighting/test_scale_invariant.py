"""The sum of the log losses: its gradient, its invariance, losses of zero, loss weights."""

import pytest
import torch

from mtlcore_plugins.weighting.scale_invariant import ScaleInvariant
from tests.weighting.helpers import (
    random_losses,
    tasks,
    trained,
    weigh_by,
    weighted_losses,
)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_weights_are_the_gradient_of_the_sum_of_the_log_losses(count, scale):
    losses = random_losses(count, scale, count)
    leaf = torch.tensor(losses, dtype=torch.float64, requires_grad=True)
    leaf.log().sum().backward()
    weights = weigh_by(ScaleInvariant(), tasks(count), losses)
    torch.testing.assert_close(weights, leaf.grad, rtol=1e-12, atol=0)


def test_the_scale_of_a_loss_cancels():
    one = weigh_by(ScaleInvariant(), tasks(2), [2.0, 3.0])
    other = weigh_by(ScaleInvariant(), tasks(2), [2e10, 3.0])
    assert (other * torch.tensor([1e10, 1.0])).tolist() == pytest.approx(one.tolist())


def test_a_loss_of_zero_has_the_weight_zero_and_the_others_theirs():
    assert weigh_by(ScaleInvariant(), tasks(3), [0.0, 4.0, 0.5]).tolist() == [0.0, 0.25, 2.0]
    assert weigh_by(ScaleInvariant(), tasks(2), [0.0, 0.0]).tolist() == [0.0, 0.0]
    assert torch.isfinite(weigh_by(ScaleInvariant(), tasks(2), [5e-324, 1.0])).all()


def test_an_absent_task_changes_nothing():
    assert weigh_by(ScaleInvariant(), tasks(3), [4.0, 0.5], present=[0, 2]).tolist() == [
        0.25,
        2.0,
    ]


def test_a_run_weighs_by_the_losses_of_its_steps(tiny_model, tmp_path):
    for line in trained(tmp_path, tiny_model, "scale_invariant"):
        expected = {name: 1 / loss for name, loss in weighted_losses(line).items()}
        assert line["weights"] == pytest.approx(expected, rel=1e-5)
