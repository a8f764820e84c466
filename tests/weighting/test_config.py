"""ConFIG from the Gramian against TorchJD's on the gradients, and its equal cosines."""

import pytest
import torch

from mtlcore.errors import UserError
from mtlcore_plugins.weighting.config import ConFIG
from tests.weighting.helpers import (
    EXAMPLE,
    assert_close,
    create,
    jacobian,
    weigh,
    weights_of_run,
)


@pytest.mark.parametrize("count", [2, 3, 8, 16])
@pytest.mark.parametrize("spread", [1, 3, 30])
@pytest.mark.parametrize("seed", range(3))
def test_updates_equal_torchjd(count, spread, seed):
    aggregation = pytest.importorskip("torchjd.aggregation")
    rows = jacobian(count, spread, seed)
    assert_close(rows.T @ weigh(ConFIG, rows), aggregation.ConFIG()(rows), 1e-12)


def test_the_example_of_torchjd_is_met():
    update = EXAMPLE.T @ weigh(ConFIG, EXAMPLE)
    assert update.tolist() == pytest.approx([0.1588, 2.0706, 2.0706], abs=1e-4)


@pytest.mark.parametrize("spread", [1, 30, 1e8])
def test_cosines_to_all_gradients_are_equal_and_positive(spread):
    rows = jacobian(5, spread)
    update = rows.T @ weigh(ConFIG, rows)
    cosines = torch.cosine_similarity(rows, update[None])
    assert_close(cosines, cosines.mean().expand(5), 1e-10)
    assert cosines.min() > 0


def test_the_update_is_as_long_as_the_projections_on_it():
    rows = jacobian(5, 3)
    update = rows.T @ weigh(ConFIG, rows)
    assert update.norm() == pytest.approx((rows @ update).sum().item() / update.norm().item())


def test_equal_gradients_are_added_up():
    assert weigh(ConFIG, jacobian(1, 3)).tolist() == pytest.approx([1.0], rel=1e-14)
    rows = jacobian(1, 3).expand(4, -1)
    assert weigh(ConFIG, rows).tolist() == pytest.approx([1.0] * 4, rel=1e-12)


def test_a_zero_gradient_has_no_weight_and_changes_nothing_for_the_others():
    rows = jacobian(3, 3)
    padded = torch.cat([rows[:1], torch.zeros(1, 40, dtype=torch.float64), rows[1:]])
    found = weigh(ConFIG, padded)
    assert found[1] == 0
    assert_close(found[[0, 2, 3]], weigh(ConFIG, rows), 1e-12)
    assert weigh(ConFIG, 0 * rows).tolist() == [0.0] * 3


def test_opposed_gradients_stand_still():
    rows = torch.tensor([[1.0, 2.0], [-3.0, -6.0]], dtype=torch.float64)
    assert weigh(ConFIG, rows).tolist() == [0.0, 0.0]


def test_an_unknown_scope_is_refused():
    with pytest.raises(UserError, match=r"weighting\.scope must be 'model', 'layer' or 'factor'"):
        create(ConFIG, scope="head")


def test_a_run_trains_with_it(tiny_model, tmp_path):
    _, weights = weights_of_run(tiny_model, tmp_path, "{name: config, scope: layer}")
    assert all(len(set(line.values())) == 3 for line in weights)
