"""Aligned-MTL against TorchJD's, and the orthogonal gradients that it makes."""

import pytest
import torch

from mtlcore.errors import UserError
from mtlcore_plugins.weighting.aligned_mtl import AlignedMTL
from tests.weighting.helpers import (
    EXAMPLE,
    assert_close,
    create,
    jacobian,
    tasks,
    weigh,
    weights_of_run,
)

SCALES = ["min", "median", "rmse"]


@pytest.mark.parametrize("count", [2, 3, 8, 16])
@pytest.mark.parametrize("spread", [1, 3, 30])
@pytest.mark.parametrize("scale", SCALES)
def test_weights_equal_torchjd(count, spread, scale):
    aggregation = pytest.importorskip("torchjd.aggregation")
    rows = jacobian(count, spread)
    expected = aggregation.AlignedMTLWeighting(scale_mode=scale)(rows @ rows.T)
    assert_close(weigh(AlignedMTL, rows, scale=scale), expected, 1e-10)


@pytest.mark.parametrize("scale", SCALES)
def test_dependent_gradients_are_cut_as_in_torchjd(scale):
    aggregation = pytest.importorskip("torchjd.aggregation")
    rows = jacobian(8, 3, size=5)  # rank 5
    gramian = rows @ rows.T
    expected = aggregation.AlignedMTLWeighting(scale_mode=scale)(gramian)
    assert_close(weigh(AlignedMTL, rows, scale=scale), expected, 1e-10)


def test_the_example_of_torchjd_is_met():
    update = EXAMPLE.T @ weigh(AlignedMTL, EXAMPLE)
    assert update.tolist() == pytest.approx([0.2133, 0.9673, 0.9673], abs=1e-4)


@pytest.mark.parametrize("spread", [1, 30])
def test_the_update_is_the_mean_of_the_nearest_orthogonal_gradients(spread):
    rows = jacobian(5, spread)
    left, sizes, right = torch.linalg.svd(rows, full_matrices=False)
    aligned = sizes.min() * left @ right  # the polar factor of J
    assert_close(rows.T @ weigh(AlignedMTL, rows), aligned.mean(0), 1e-10)


def test_orthogonal_gradients_of_one_length_are_averaged():
    rows = 3 * torch.eye(4, 6, dtype=torch.float64)
    assert weigh(AlignedMTL, rows).tolist() == pytest.approx([0.25] * 4, rel=1e-14)
    found = weigh(AlignedMTL, rows, present=[0, 1, 2, 4], run=tasks(8))
    assert found.tolist() == pytest.approx([0.125] * 4, rel=1e-14)


@pytest.mark.parametrize("scale", SCALES)
def test_a_zero_gradient_has_no_weight_and_changes_nothing_for_the_others(scale):
    rows = jacobian(3, 3)
    padded = torch.cat([rows[:1], torch.zeros(1, 40, dtype=torch.float64), rows[1:]])
    found = weigh(AlignedMTL, padded, scale=scale)
    assert found[1] == 0
    assert_close(found[[0, 2, 3]] * 4, weigh(AlignedMTL, rows, scale=scale) * 3, 1e-12)


@pytest.mark.parametrize("scale", SCALES)
def test_zero_gradients_alone_have_equal_weights(scale):
    rows = torch.zeros(4, 3, dtype=torch.float64)
    assert weigh(AlignedMTL, rows, scale=scale).tolist() == [0.25] * 4


def test_a_gradient_far_below_the_largest_is_cut_off():
    rows = torch.diag(torch.tensor([1e9, 1.0], dtype=torch.float64))
    assert weigh(AlignedMTL, rows).tolist() == [0.5, 0.0]


@pytest.mark.parametrize("sign", [1, -1])
def test_one_direction_is_all_that_is_left_of_equal_or_opposed_gradients(sign):
    rows = torch.tensor([[1.0, 2.0], [sign * 1.0, sign * 2.0]], dtype=torch.float64)
    assert weigh(AlignedMTL, rows).tolist() == pytest.approx([(1 + sign) / 4] * 2, abs=1e-15)


@pytest.mark.parametrize("options", [{"scale": "max"}, {"scope": "head"}])
def test_unknown_options_are_refused(options):
    [name] = options
    with pytest.raises(UserError, match=rf"weighting\.{name} must be '\w+', '\w+' or '\w+'"):
        create(AlignedMTL, **options)


def test_a_run_trains_with_it(tiny_model, tmp_path):
    _, weights = weights_of_run(tiny_model, tmp_path, "{name: aligned_mtl, scale: rmse}")
    assert all(len(set(line.values())) == 3 for line in weights)
