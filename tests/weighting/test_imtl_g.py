"""IMTL-G against TorchJD's and LibMTL's closed form, and its equal projections."""

import pytest
import torch

from mtlcore.errors import UserError
from mtlcore_plugins.weighting.imtl_g import IMTLG
from tests.weighting.helpers import (
    EXAMPLE,
    assert_close,
    create,
    jacobian,
    tasks,
    weigh,
    weights_of_run,
)


def projections(rows, update):
    return rows @ update / rows.norm(dim=1)


@pytest.mark.parametrize("count", [2, 3, 8, 16])
@pytest.mark.parametrize("spread", [1, 3, 30])
@pytest.mark.parametrize("seed", range(3))
def test_weights_equal_torchjd(count, spread, seed):
    aggregation = pytest.importorskip("torchjd.aggregation")
    rows = jacobian(count, spread, seed)
    assert_close(weigh(IMTLG, rows), aggregation.IMTLGWeighting()(rows @ rows.T), 1e-10)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_weights_equal_the_closed_form_of_the_paper(count):
    rows = jacobian(count, 3)
    units = rows / rows.norm(dim=1, keepdim=True)
    differences, of_units = rows[0] - rows[1:], units[0] - units[1:]
    # <g_1 - sum_k w_k (g_1 - g_k), u_1 - u_k> = 0 for every k > 1
    rest = torch.linalg.solve(of_units @ differences.T, of_units @ rows[0])
    assert_close(weigh(IMTLG, rows), torch.cat([1 - rest.sum()[None], rest]), 1e-10)


def test_the_example_of_torchjd_is_met():
    update = EXAMPLE.T @ weigh(IMTLG, EXAMPLE)
    assert update.tolist() == pytest.approx([0.0767, 1.0, 1.0], abs=1e-4)


@pytest.mark.parametrize("spread", [1, 30, 1e8])
def test_projections_on_all_gradients_are_equal(spread):
    rows = jacobian(5, spread)
    weights = weigh(IMTLG, rows)
    found = projections(rows, rows.T @ weights)
    assert_close(found, found.mean().expand(5), 1e-7)  # 6e-9 measured at 1e8: the sum rounds
    assert weights.sum() == pytest.approx(1, rel=1e-12)


def test_one_task_keeps_its_gradient():
    assert weigh(IMTLG, jacobian(1, 3)).tolist() == pytest.approx([1.0], rel=1e-15)


def test_a_zero_gradient_has_no_weight_and_changes_nothing_for_the_others():
    rows = jacobian(3, 3)
    padded = torch.cat([rows[:1], torch.zeros(1, 40, dtype=torch.float64), rows[1:]])
    found = weigh(IMTLG, padded)
    assert found[1] == 0
    assert_close(found[[0, 2, 3]], weigh(IMTLG, rows), 1e-12)
    assert weigh(IMTLG, 0 * rows).tolist() == [0.0] * 3


def test_a_task_twice_shares_its_weight():
    rows = jacobian(4, 3)
    twice = torch.cat([rows, rows[:1]])
    found, alone = weigh(IMTLG, twice), weigh(IMTLG, rows)
    assert_close(twice.T @ found, rows.T @ alone, 1e-9)
    assert found[0] == pytest.approx(found[4].item(), rel=1e-9)


def test_opposed_gradients_stand_still():
    rows = torch.tensor([[1.0, 2.0], [-3.0, -6.0]], dtype=torch.float64)
    assert weigh(IMTLG, rows).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("rounding", [torch.float32, torch.float64])
def test_opposed_gradients_leave_the_direction_that_is_nearest_to_fair(rounding):
    rows = jacobian(3, 3).to(rounding).double()
    rows = torch.cat([rows, -(0.7 * rows[:1]).to(rounding).double()])
    units = rows / rows.norm(dim=1, keepdim=True)
    nearest = torch.linalg.pinv(units, rtol=1e-6).sum(1)
    update = rows.T @ weigh(IMTLG, rows)
    assert torch.cosine_similarity(update, nearest, dim=0) == pytest.approx(1, rel=1e-6)
    assert update.norm() > 0.1


def test_tasks_that_are_present_keep_the_share_they_have_of_the_run():
    rows = jacobian(2, 3)
    found = weigh(IMTLG, rows, present=[0, 3], run=tasks(4))
    assert_close(found, weigh(IMTLG, rows) / 2, 1e-15)


def test_an_unknown_scope_is_refused():
    with pytest.raises(UserError, match=r"weighting\.scope must be 'model', 'layer' or 'factor'"):
        create(IMTLG, scope="head")


def test_a_run_trains_with_it(tiny_model, tmp_path):
    _, weights = weights_of_run(tiny_model, tmp_path, "{name: imtl_g, scope: factor}")
    assert all(len(set(line.values())) == 3 for line in weights)
