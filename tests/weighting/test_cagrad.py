"""CAGrad: its worst-case gain against a search, the paper's bounds, and known values."""

import pytest
import torch

from mtlcore.errors import UserError
from mtlcore_plugins.weighting.cagrad import CAGrad
from tests.weighting.helpers import (
    EXAMPLE,
    assert_close,
    create,
    jacobian,
    tasks,
    weigh,
    weights_of_run,
)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("spread", [1, 3, 30, 1e4])
@pytest.mark.parametrize("c", [0.1, 0.4, 0.9, 2.0])
def test_no_update_near_the_mean_helps_the_last_task_more(count, spread, c):
    """By duality: for |d - g0| <= r and shares v, min_i <g_i, d> <= <Jᵀ v, g0> + r |Jᵀ v|."""
    rows = jacobian(count, spread)
    mean = rows.mean(0)
    radius = c * mean.norm()
    weights = weigh(CAGrad, rows, c=c)
    update = rows.T @ weights
    assert (update - mean).norm().item() == pytest.approx(radius.item(), rel=1e-9)
    shares = (weights - 1 / count) / (weights - 1 / count).sum()
    assert shares.min() >= -1e-12
    mix = rows.T @ shares
    bound = mix @ mean + radius * mix.norm()
    # 2e-15 measured: the gain of the task that gains least is as large as any can be
    gain = (rows @ update).min()
    assert (bound - gain).abs() <= 1e-12 * (mix.norm() * mean.norm() + rows.norm() * update.norm())


def test_the_example_of_torchjd_is_met():
    update = EXAMPLE.T @ weigh(CAGrad, EXAMPLE, c=0.5)
    assert update.tolist() == pytest.approx([0.1835, 1.2041, 1.2041], abs=1e-4)


def test_two_gradients_are_weighed_as_a_search_over_their_shares_does():
    rows = jacobian(2, 3)
    shares = torch.linspace(0, 1, 200_001).double()
    mean, mixes = rows.mean(0), shares[:, None] * rows[0] + (1 - shares)[:, None] * rows[1]
    objective = mixes @ mean + 0.4 * mean.norm() * mixes.norm(dim=1)
    mix = mixes[objective.argmin()]
    expected = mean + 0.4 * mean.norm() * mix / mix.norm()
    assert_close(rows.T @ weigh(CAGrad, rows), expected, 1e-4)


def test_near_a_c_of_0_the_update_is_the_mean():
    rows = jacobian(5, 3)
    assert_close(rows.T @ weigh(CAGrad, rows, c=1e-9), rows.mean(0), 1e-8)


def test_of_two_opposed_tasks_the_worse_is_spared():
    rows = torch.tensor([[1.0, 2.0], [-3.0, -6.0]], dtype=torch.float64)
    assert_close(rows.T @ weigh(CAGrad, rows, c=0.9), 0.1 * rows.mean(0), 1e-12)
    assert weigh(CAGrad, torch.cat([rows[:1], -rows[:1]])).tolist() == [0.5, 0.5]  # g0 = 0


def test_where_no_update_helps_all_none_is_harmed():
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.3, 1.0]], dtype=torch.float64)
    mean = rows.mean(0)
    update = rows.T @ weigh(CAGrad, rows, c=0.9)
    assert (rows @ update >= -1e-12).all()
    assert (update - mean).norm() <= 0.9 * mean.norm()
    assert update.tolist() == pytest.approx([0, 1 / 3], abs=1e-9)  # what is left of g0


def test_zero_gradients_count_in_the_mean_alone():
    rows = jacobian(3, 3)
    padded = torch.cat([rows[:1], 0 * rows[:1], rows[1:]])
    found = weigh(CAGrad, padded)
    assert found[1] == 0.25
    assert_close(found[[0, 2, 3]] * 4, weigh(CAGrad, rows) * 3, 1e-9)
    assert weigh(CAGrad, 0 * rows).tolist() == pytest.approx([1 / 3] * 3)


def test_absent_tasks_leave_their_share_of_the_mean():
    rows = jacobian(2, 3)
    found = weigh(CAGrad, rows, present=[0, 3], run=tasks(4))
    assert_close(found, weigh(CAGrad, rows) / 2, 1e-12)
    assert weigh(CAGrad, rows[:1]).tolist() == pytest.approx([1.4])


@pytest.mark.parametrize("c", [0, -1, "much"])
def test_a_wrong_c_is_refused(c):
    with pytest.raises(UserError, match=r"weighting\.c"):
        create(CAGrad, c=c)


@pytest.mark.parametrize("scope", ["model", "factor"])
def test_a_run_trains_with_it(scope, tiny_model, tmp_path):
    _, weights = weights_of_run(tiny_model, tmp_path, f"{{name: cagrad, c: 0.5, scope: {scope}}}")
    assert all(weight >= 1 / 3 - 1e-12 for line in weights for weight in line.values())
    assert any(weight > 1 / 3 + 1e-3 for line in weights for weight in line.values())
