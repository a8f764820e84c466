"""UPGrad against TorchJD's, and its properties."""

import time

import pytest
import torch

from mtlcore.ops import cone_minimum
from mtlcore.testing import StandInGradients
from mtlcore_plugins.weighting.upgrad import UPGrad
from tests.weighting.helpers import (
    EXAMPLE,
    jacobian,
    tasks,
    torchjd_projection,
    weigh,
    weights_of_run,
)


def torchjd_weights(rows, reg_eps):
    from torchjd.aggregation import UPGradWeighting

    return torchjd_projection(UPGradWeighting, rows, reg_eps)


@pytest.mark.parametrize("count", [1, 2, 7, 16])
@pytest.mark.parametrize("spread", [1, 3, 30])
def test_updates_equal_torchjd_without_its_regularization(count, spread):
    rows = jacobian(count, spread)
    expected = rows.T @ torchjd_weights(rows, 1e-12)
    # 1.3e-8 measured at 16 tasks: what its reg_eps changes
    assert (rows.T @ weigh(UPGrad, rows) - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("count", [2, 8])
def test_weights_equal_torchjd_with_the_same_regularization(count):
    rows = jacobian(count, 30)
    expected = torchjd_weights(rows, 1e-4)
    torch.testing.assert_close(weigh(UPGrad, rows, reg_eps=1e-4), expected, rtol=1e-9, atol=0)


def test_the_example_of_torchjd_is_met_with_its_regularization():
    rows = EXAMPLE
    update = rows.T @ weigh(UPGrad, rows, reg_eps=1e-4)
    assert update.tolist() == pytest.approx([0.2929, 1.9004, 1.9004], abs=1e-4)
    # By hand: v_1 = (1, 22/38) and v_2 = (22/18, 1), which leave each other's gradient at 0.
    exact = rows.T @ torch.tensor([(1 + 22 / 18) / 2, (22 / 38 + 1) / 2], dtype=torch.float64)
    assert (rows.T @ weigh(UPGrad, rows)).tolist() == pytest.approx(exact.tolist(), rel=1e-12)


@pytest.mark.parametrize("count", [1, 2, 7, 16])
@pytest.mark.parametrize("spread", [1, 30, 1e4])
def test_the_update_harms_no_task(count, spread):
    rows = jacobian(count, spread)
    update = rows.T @ weigh(UPGrad, rows)
    assert (rows @ update / rows.norm(dim=1) / update.norm() >= -1e-10).all()


def test_without_conflicts_the_update_is_the_mean():
    rows = torch.rand(5, 7, dtype=torch.float64)
    assert weigh(UPGrad, rows).tolist() == pytest.approx([0.2] * 5, rel=1e-15)


def test_tasks_that_are_present_keep_the_share_they_have_of_the_run():
    rows = torch.rand(2, 7, dtype=torch.float64)
    assert weigh(UPGrad, rows, present=[0, 3], run=tasks(4)).tolist() == [0.25, 0.25]


def test_one_task_keeps_its_gradient():
    assert weigh(UPGrad, torch.randn(1, 4, dtype=torch.float64)).tolist() == [1.0]


def test_zero_gradients_change_nothing_for_the_others():
    rows = jacobian(3, 3)
    padded = torch.cat([rows[:1], torch.zeros(1, 40, dtype=torch.float64), rows[1:]])
    found, expected = weigh(UPGrad, padded), weigh(UPGrad, rows)
    torch.testing.assert_close(found[[0, 2, 3]] * 4, expected * 3, rtol=1e-10, atol=0)
    assert found[1] == 0.25
    assert weigh(UPGrad, torch.zeros(4, 3, dtype=torch.float64)).tolist() == [0.25] * 4


def test_a_task_twice_gives_the_update_that_counts_it_twice():
    rows = jacobian(4, 3)
    twice = torch.cat([rows, rows[:1]])
    coefficients = cone_minimum(rows @ rows.T, torch.eye(4, dtype=torch.float64))
    expected = rows.T @ (coefficients.sum(0) + coefficients[0]) / 5
    torch.testing.assert_close(twice.T @ weigh(UPGrad, twice), expected, rtol=1e-9, atol=1e-12)


def test_two_opposite_tasks_stand_still():
    rows = torch.tensor([[1.0, 2.0], [-3.0, -6.0]], dtype=torch.float64)
    assert (rows.T @ weigh(UPGrad, rows)).norm() <= 1e-12


def test_a_task_far_smaller_than_the_others_is_protected_too():
    rows = jacobian(4, 3)
    rows[2] *= 1e-9
    update = rows.T @ weigh(UPGrad, rows)
    assert (rows @ update / rows.norm(dim=1) / update.norm() >= -1e-10).all()


def test_the_rounding_of_float32_gradients_leaves_weights_bounded():
    rows = jacobian(3, 1)
    rows[1] = -rows[0]
    gramian = rows @ rows.T
    gramian[0, 1] = gramian[1, 0] = gramian[0, 1] * (1 + 1e-7)  # no longer semidefinite
    assert torch.linalg.eigvalsh(gramian)[0] < 0
    coefficients = cone_minimum(gramian, torch.eye(3, dtype=torch.float64))
    assert torch.isfinite(coefficients).all()
    assert coefficients.max() < 10
    assert coefficients.min() > -1e-12


def test_eight_tasks_take_well_under_a_millisecond():
    run = tasks(8)
    gradients, weighting = StandInGradients(jacobian(8, 3)), UPGrad()
    times = []
    for _ in range(200):
        start = time.perf_counter()
        weighting.mtlcore_weigh_tasks(run, gradients)
        times.append(time.perf_counter() - start)
    assert min(times) < 2e-3  # 0.4 ms measured; wide, for busy machines


@pytest.mark.parametrize("scope", ["model", "layer"])
def test_a_run_trains_with_it(scope, tiny_model, tmp_path):
    _, weights = weights_of_run(tiny_model, tmp_path, f"{{name: upgrad, scope: {scope}}}")
    assert all(weight >= 1 / 3 - 1e-12 for line in weights for weight in line.values())
    assert any(weight > 1 / 3 + 1e-6 for line in weights for weight in line.values())
