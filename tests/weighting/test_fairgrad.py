"""FairGrad by its equation, against TorchJD's, and its properties."""

import pytest
import torch

from mtlcore.errors import UserError
from mtlcore_plugins.weighting.fairgrad import FairGrad
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
@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_weights_equal_torchjd(count, spread, alpha):
    aggregation = pytest.importorskip("torchjd.aggregation")
    rows = jacobian(count, spread)
    expected = aggregation.FairGradWeighting(alpha=alpha)(rows @ rows.T)
    # 1.8e-7 measured at two nearly opposed tasks, where SciPy ends before the equation is met
    assert_close(weigh(FairGrad, rows, alpha=alpha), expected, 1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("spread", [1, 3, 30, 1e4])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 10.0])
def test_weights_meet_the_equation(count, spread, alpha):
    rows = jacobian(count, spread)
    weights = weigh(FairGrad, rows, alpha=alpha)
    gains = rows @ (rows.T @ weights)
    assert (gains * weights ** (1 / alpha) - 1).abs().max() < 1e-9
    assert (gains > 0).all()


def test_the_example_of_torchjd_is_met():
    update = EXAMPLE.T @ weigh(FairGrad, EXAMPLE)
    assert update.tolist() == pytest.approx([0.0313, 0.7908, 0.7908], abs=1e-4)


def test_a_larger_alpha_evens_out_the_gains():
    rows = jacobian(5, 30)
    spreads = []
    for alpha in (0.5, 1.0, 2.0, 5.0):
        gains = rows @ (rows.T @ weigh(FairGrad, rows, alpha=alpha))
        spreads.append((gains.max() / gains.min()).item())
    assert spreads == sorted(spreads, reverse=True)


def test_a_zero_gradient_has_the_weight_0():
    rows = jacobian(3, 3)
    padded = torch.cat([rows[:1], 0 * rows[:1], rows[1:]])
    found = weigh(FairGrad, padded)
    assert found[1] == 0
    assert_close(found[[0, 2, 3]], weigh(FairGrad, rows), 1e-12)
    assert weigh(FairGrad, 0 * rows).tolist() == [0] * 3


@pytest.mark.parametrize("alpha", [0, 1e-4, -1, 11])
def test_a_wrong_alpha_is_refused(alpha):
    with pytest.raises(UserError, match=r"weighting\.alpha"):
        create(FairGrad, alpha=alpha)


@pytest.mark.parametrize("scope", ["model", "layer"])
def test_a_run_trains_with_it(scope, tiny_model, tmp_path):
    _, weights = weights_of_run(tiny_model, tmp_path, f"{{name: fairgrad, scope: {scope}}}")
    assert all(weight > 0 for line in weights for weight in line.values())
    assert all(len({round(weight, 6) for weight in line.values()}) == 3 for line in weights)
