"""MGDA: the shortest mix by its conditions and against TorchJD's, and its normalisations."""

import pytest
import torch

from mtlcore.errors import UserError
from mtlcore_plugins.weighting.mgda import MGDA
from tests.weighting.helpers import (
    EXAMPLE,
    assert_close,
    create,
    jacobian,
    tasks,
    weigh,
    weights_of_run,
)

NORMALIZATIONS = ("none", "l2", "loss", "loss+")


@pytest.mark.parametrize("count", [2, 3, 8, 16])
@pytest.mark.parametrize("spread", [1, 3, 30])
def test_updates_equal_those_of_torchjd_when_it_goes_on_for_long(count, spread):
    aggregation = pytest.importorskip("torchjd.aggregation")
    rows = jacobian(count, spread)
    other = aggregation.MGDAWeighting(epsilon=1e-9, max_iters=3000)(rows @ rows.T)
    update = rows.T @ weigh(MGDA, rows)
    assert (update - rows.T @ other).norm() <= 1e-4 * update.norm()  # 2.2e-5 measured
    assert update.norm() <= (rows.T @ other).norm() * (1 + 1e-12)  # it is the shortest


@pytest.mark.parametrize("count", [1, 2, 7, 16])
@pytest.mark.parametrize("spread", [1, 30, 1e4])
def test_every_task_gains_as_much_as_the_update_is_long(count, spread):
    """<g_i, u> >= |u|², and equal where the weight is not 0."""
    rows = jacobian(count, spread)
    weights = weigh(MGDA, rows)
    update = rows.T @ weights
    gains, squared = rows @ update, update @ update
    norms = rows.norm(dim=1) * update.norm()
    assert (gains - squared >= -1e-9 * norms).all()
    assert ((gains - squared)[weights > 0].abs() <= 1e-9 * norms[weights > 0]).all()
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1, rel=1e-12)


def test_the_example_of_torchjd_is_met():
    update = EXAMPLE.T @ weigh(MGDA, EXAMPLE)
    assert update.tolist() == pytest.approx([0.0, 1.0, 1.0], abs=1e-12)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_the_mix_is_that_of_the_divided_gradients(normalization):
    rows, losses = jacobian(5, 30), torch.tensor([0.5, 1.0, 2.0, 4.0, 0.1]).double()
    norms = rows.norm(dim=1)
    divisors = {
        "none": torch.ones(5).double(),
        "l2": norms,
        "loss": losses,
        "loss+": losses * norms,
    }[normalization]
    found = weigh(MGDA, rows, losses, normalization=normalization)
    assert_close(found, weigh(MGDA, rows / divisors[:, None]), 1e-9)


def test_normalisations_differ():
    rows, losses = jacobian(5, 30), torch.tensor([0.5, 1.0, 2.0, 4.0, 0.1])
    found = [weigh(MGDA, rows, losses, normalization=name) for name in NORMALIZATIONS]
    for index, one in enumerate(found):
        assert all((one - other).abs().max() > 1e-3 for other in found[:index])


def test_with_l2_the_norms_do_not_matter():
    rows = jacobian(5, 30)
    scaled = rows * torch.tensor([1e-8, 1.0, 1e8, 3.0, 1e4])[:, None].double()
    found = weigh(MGDA, scaled, normalization="l2")
    assert_close(found, weigh(MGDA, rows, normalization="l2"), 1e-9)


def test_a_zero_gradient_does_not_end_all_learning():
    rows = jacobian(3, 3)
    padded = torch.cat([rows[:1], 0 * rows[:1], rows[1:]])
    found = weigh(MGDA, padded)
    assert found[1] == 0
    assert_close(found[[0, 2, 3]], weigh(MGDA, rows), 1e-9)
    assert weigh(MGDA, 0 * padded).tolist() == [0.25] * 4


def test_a_loss_of_0_leaves_its_task_out_where_losses_divide():
    rows = jacobian(3, 3)
    found = weigh(MGDA, rows, [1.0, 0.0, 2.0], normalization="loss")
    expected = weigh(MGDA, rows[[0, 2]], [1.0, 2.0], normalization="loss")
    assert found[1] == 0
    assert_close(found[[0, 2]], expected, 1e-9)
    assert weigh(MGDA, rows, [0.0] * 3, normalization="loss+").tolist() == pytest.approx(
        [1 / 3] * 3
    )


def test_opposed_gradients_stand_still():
    rows = torch.tensor([[1.0, 2.0], [-3.0, -6.0]], dtype=torch.float64)
    assert weigh(MGDA, rows).tolist() == pytest.approx([0.75, 0.25], rel=1e-12)


def test_absent_tasks_leave_their_share():
    weights = weigh(MGDA, jacobian(2, 3), present=[0, 3], run=tasks(4))
    assert weights.sum() == pytest.approx(0.5, rel=1e-12)
    assert weigh(MGDA, jacobian(1, 1)).tolist() == [1.0]


def test_a_wrong_normalization_is_refused():
    with pytest.raises(UserError, match="normalization"):
        create(MGDA, normalization="l3")


@pytest.mark.parametrize("options", ["", ", normalization: loss+, scope: layer"])
def test_a_run_trains_with_it(options, tiny_model, tmp_path):
    _, weights = weights_of_run(tiny_model, tmp_path, f"{{name: mgda{options}}}")
    assert all(sum(line.values()) == pytest.approx(1) for line in weights)
    assert any(abs(weight - 1 / 3) > 1e-3 for line in weights for weight in line.values())
