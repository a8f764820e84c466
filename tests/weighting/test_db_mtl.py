"""DB-MTL: log losses with gradients of one length."""

import pytest
import torch

from mtlcore.errors import UserError
from mtlcore_plugins.weighting.db_mtl import DBMTL
from tests.weighting.helpers import (
    assert_close,
    create,
    jacobian,
    weigh,
    weights_of_run,
)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("spread", [1, 3, 30])
def test_the_update_is_that_of_the_gradients_of_the_log_losses(count, spread):
    parameter = torch.zeros(40, dtype=torch.float64, requires_grad=True)
    rows, offsets = jacobian(count, spread), torch.linspace(0.5, 4, count)
    losses = rows @ parameter + offsets
    logs = [torch.autograd.grad(loss.log(), parameter, retain_graph=True)[0] for loss in losses]
    longest = max(gradient.norm() for gradient in logs)
    expected = sum(gradient / gradient.norm() * longest for gradient in logs)
    assert_close(rows.T @ weigh(DBMTL, rows, losses.detach()), expected, 1e-12)


@pytest.mark.parametrize("scale", [1e-6, 1e6, 1e30])
def test_the_update_does_not_depend_on_the_scale_of_a_loss_above_the_smallest(scale):
    rows, losses = jacobian(4, 3), torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    factors = torch.tensor([1.0, scale, 1.0, 1.0], dtype=torch.float64)
    scaled = rows * factors[:, None]
    update = scaled.T @ weigh(DBMTL, scaled, losses * factors)
    assert_close(update, rows.T @ weigh(DBMTL, rows, losses), 1e-12)


def test_a_zero_gradient_has_no_weight_and_changes_nothing_for_the_others():
    rows = jacobian(3, 3)
    padded = torch.cat([rows[:1], torch.zeros(1, 40, dtype=torch.float64), rows[1:]])
    found = weigh(DBMTL, padded, [1.0, 0.0, 2.0, 3.0])
    assert found[1] == 0
    assert_close(found[[0, 2, 3]], weigh(DBMTL, rows, [1.0, 2.0, 3.0]), 1e-15)
    assert weigh(DBMTL, 0 * rows, [0.0, 0.0, 0.0]).tolist() == [0.0] * 3


def test_a_loss_of_zero_counts_as_the_smallest():
    rows = torch.eye(2, dtype=torch.float64)
    assert weigh(DBMTL, rows, [0.0, 1.0]).tolist() == pytest.approx([1e8, 1e8])
    assert weigh(DBMTL, rows, [1e-8, 1.0]).tolist() == pytest.approx([1e8, 1e8])


def test_an_unknown_scope_is_refused():
    with pytest.raises(UserError, match=r"weighting\.scope must be 'model', 'layer' or 'factor'"):
        create(DBMTL, scope="head")


def test_a_run_trains_with_it(tiny_model, tmp_path):
    _, weights = weights_of_run(tiny_model, tmp_path, "db_mtl")
    assert all(min(line.values()) > 0 and len(set(line.values())) == 3 for line in weights)
