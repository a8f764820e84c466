"""Nash-MTL by its equation (the solvers of other codes leave it open), and its properties."""

import pytest
import torch

from mtlcore.errors import UserError
from mtlcore_plugins.weighting.nash_mtl import NashMTL
from tests.weighting.helpers import (
    EXAMPLE,
    assert_close,
    create,
    jacobian,
    weigh,
    weights_of_run,
)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("spread", [1, 3, 30])
@pytest.mark.parametrize("seed", range(3))
def test_every_task_gets_the_same_share(count, spread, seed):
    """|G a o a - 1| < 1e-10, a = w / sqrt|G|."""
    rows = jacobian(count, spread, seed)
    gramian = rows @ rows.T
    a = weigh(NashMTL, rows, max_norm=0) / gramian.norm().sqrt()
    assert ((gramian @ a) * a - 1).abs().max() < 1e-10
    assert (a > 0).all()
    assert (rows.T @ a).norm().item() == pytest.approx(count**0.5, rel=1e-10)


def test_the_example_by_hand():
    """Of two gradients: a_1 a_2 = 1 / (|g_1| |g_2| (1 + cos)), a_1 |g_1| = a_2 |g_2|."""
    norms = EXAMPLE.norm(dim=1)
    cosine = EXAMPLE[0] @ EXAMPLE[1] / norms.prod()
    expected = 1 / norms / (1 + cosine).sqrt()
    found = weigh(NashMTL, EXAMPLE, max_norm=0) / (EXAMPLE @ EXAMPLE.T).norm().sqrt()
    assert_close(found, expected, 1e-12)


def test_no_rescaling_of_a_task_changes_its_part_of_the_direction():
    rows, factors = jacobian(5, 3), torch.tensor([1e-6, 1.0, 1e6, 3.0, 1e-3]).double()
    scaled = rows * factors[:, None]
    assert_close(
        scaled.T @ weigh(NashMTL, scaled), rows.T @ weigh(NashMTL, rows), 1e-9
    )  # both are as long as max_norm


@pytest.mark.parametrize(("scale", "length"), [(1.0, 0.3), (1e-3, None), (1e6, 0.3)])
def test_the_update_is_no_longer_than_max_norm(scale, length):
    rows = scale * jacobian(5, 3)
    update = rows.T @ weigh(NashMTL, rows, max_norm=0.3)
    free = rows.T @ weigh(NashMTL, rows, max_norm=0)
    wanted = free.norm().item() if length is None else length
    assert update.norm().item() == pytest.approx(wanted, rel=1e-9)
    assert_close(free * (wanted / free.norm()), update, 1e-9)
    assert free.norm().item() == pytest.approx((5 * (rows @ rows.T).norm().item()) ** 0.5, rel=1e-9)


def test_the_cap_is_on_the_update_of_all_scopes():
    rows = torch.rand(3, 5, dtype=torch.float64)
    weights = weigh(NashMTL, rows, scope="layer", max_norm=0.1)  # [5, 3], of the columns
    assert (rows.T * weights).sum(dim=1).norm().item() == pytest.approx(0.1, rel=1e-9)


def test_a_zero_gradient_has_the_weight_0():
    rows = jacobian(3, 3)
    padded = torch.cat([rows[:1], 0 * rows[:1], rows[1:]])
    found = weigh(NashMTL, padded)
    assert found[1] == 0
    assert_close(found[[0, 2, 3]], weigh(NashMTL, rows), 1e-12)
    assert weigh(NashMTL, 0 * rows).tolist() == [0] * 3


def test_opposed_gradients_stand_still():
    rows = torch.tensor([[1.0, 2.0], [-3.0, -6.0]], dtype=torch.float64)
    weights = weigh(NashMTL, rows)
    assert 1e3 < weights.max() < 1e6
    assert (rows.T @ weights).norm() <= 1e-8


def test_a_wrong_max_norm_is_refused():
    with pytest.raises(UserError, match=r"weighting\.max_norm"):
        create(NashMTL, max_norm=-1)


@pytest.mark.parametrize("scope", ["model", "layer"])
def test_a_run_trains_with_it(scope, tiny_model, tmp_path):
    _, weights = weights_of_run(tiny_model, tmp_path, f"{{name: nash_mtl, scope: {scope}}}")
    assert all(weight > 0 for line in weights for weight in line.values())
    assert all(len({round(weight, 6) for weight in line.values()}) == 3 for line in weights)
