"""DualProj against TorchJD's, and its properties."""

import pytest
import scipy.optimize
import torch

from mtlcore.errors import UserError
from mtlcore_plugins.weighting.dualproj import DualProj
from tests.weighting.helpers import (
    EXAMPLE,
    assert_close,
    create,
    jacobian,
    tasks,
    torchjd_projection,
    weigh,
    weights_of_run,
)


def torchjd_weights(rows, reg_eps):
    from torchjd.aggregation import DualProjWeighting

    return torchjd_projection(DualProjWeighting, rows, reg_eps)


@pytest.mark.parametrize("count", [2, 3, 8, 16])
@pytest.mark.parametrize("spread", [1, 3, 30])
def test_updates_equal_torchjd_without_its_regularization(count, spread):
    rows = jacobian(count, spread)
    assert_close(rows.T @ weigh(DualProj, rows), rows.T @ torchjd_weights(rows, 1e-12), 1e-6)


@pytest.mark.parametrize("count", [2, 8])
def test_weights_equal_torchjd_with_the_same_regularization(count):
    rows = jacobian(count, 30)
    assert_close(weigh(DualProj, rows, reg_eps=1e-4), torchjd_weights(rows, 1e-4), 1e-9)


@pytest.mark.parametrize("count", [2, 7, 16])
@pytest.mark.parametrize("spread", [1, 30, 1e4])
def test_the_update_is_the_projection_of_the_mean_gradient(count, spread):
    """Against SciPy's nonnegative least squares on the gradients themselves."""
    rows = jacobian(count, spread)
    mean, norms = rows.mean(0), rows.norm(dim=1)
    x, _ = scipy.optimize.nnls((rows / norms[:, None]).T.numpy(), -mean.numpy())
    expected = mean + rows.T @ (torch.from_numpy(x) / norms)
    update = rows.T @ weigh(DualProj, rows)
    assert (update - expected).norm() <= 1e-9 * mean.norm()
    assert (rows @ update / norms >= -1e-10 * mean.norm()).all()


def test_the_example_of_torchjd_is_met():
    update = EXAMPLE.T @ weigh(DualProj, EXAMPLE, reg_eps=1e-4)
    assert update.tolist() == pytest.approx([0.5563, 1.1109, 1.1109], abs=1e-4)


def test_without_conflicts_the_update_is_the_mean():
    rows = torch.rand(5, 7, dtype=torch.float64)
    assert weigh(DualProj, rows).tolist() == [0.2] * 5
    assert weigh(DualProj, rows, present=[0, 1, 2, 3, 4], run=tasks(10)).tolist() == [0.1] * 5


def test_zero_gradients_change_nothing_for_the_others():
    rows = jacobian(3, 30)
    padded = torch.cat([rows[:1], 0 * rows[:1], rows[1:]])
    found = weigh(DualProj, padded)
    assert found[1] == 0.25
    assert_close(found[[0, 2, 3]] * 4, weigh(DualProj, rows) * 3, 1e-9)
    assert weigh(DualProj, 0 * rows).tolist() == pytest.approx([1 / 3] * 3)


def test_two_opposite_tasks_stand_still():
    rows = torch.tensor([[1.0, 2.0], [-3.0, -6.0]], dtype=torch.float64)
    assert (rows.T @ weigh(DualProj, rows)).norm() <= 1e-12


def test_a_wrong_reg_eps_is_refused():
    with pytest.raises(UserError, match=r"weighting\.reg_eps"):
        create(DualProj, reg_eps=-1)


@pytest.mark.parametrize("scope", ["model", "layer"])
def test_a_run_trains_with_it(scope, tiny_model, tmp_path):
    _, weights = weights_of_run(tiny_model, tmp_path, f"{{name: dualproj, scope: {scope}}}")
    assert all(weight >= 1 / 3 - 1e-12 for line in weights for weight in line.values())
