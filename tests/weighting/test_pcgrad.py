"""PCGrad in coefficients against TorchJD's, and its properties."""

import time

import numpy as np
import pytest
import torch

from mtlcore.ops import pcgrad
from mtlcore.testing import StandInGradients
from mtlcore_plugins.weighting.pcgrad import PCGrad
from tests.weighting.helpers import (
    EXAMPLE,
    assert_scopes_are_apart,
    jacobian,
    keys_of,
    tasks,
    weigh,
    weights_of_run,
)


def torchjd_order(count, seed):
    """The order that TorchJD's loop would draw: a permutation per task, the task itself skipped."""
    torch.manual_seed(seed)
    orders = [torch.randperm(count).tolist() for _ in range(count)]
    return torch.tensor([[j for j in order if j != i] for i, order in enumerate(orders)])


@pytest.mark.parametrize("count", [2, 3, 8, 16])
@pytest.mark.parametrize("spread", [1, 3, 30])
@pytest.mark.parametrize("seed", range(3))
def test_weights_equal_torchjd_with_the_same_order(count, spread, seed):
    aggregation = pytest.importorskip("torchjd.aggregation")
    rows = jacobian(count, spread, seed)
    order = torchjd_order(count, seed)
    torch.manual_seed(seed)
    expected = aggregation.PCGradWeighting()(rows @ rows.T)
    assert (pcgrad(rows @ rows.T, keys_of(order)) - expected).norm() <= 1e-12 * expected.norm()


def test_the_example_of_torchjd_is_met():
    update = EXAMPLE.T @ weigh(PCGrad, EXAMPLE)
    assert update.tolist() == pytest.approx([0.5848, 3.8012, 3.8012], abs=1e-4)


def test_without_conflicts_the_update_is_the_sum():
    rows = torch.rand(5, 7, dtype=torch.float64)
    assert weigh(PCGrad, rows).tolist() == [1.0] * 5


def test_one_task_keeps_its_gradient():
    assert weigh(PCGrad, torch.randn(1, 4, dtype=torch.float64)).tolist() == [1.0]


def test_two_projected_tasks_do_not_conflict_with_each_other():
    rows = jacobian(2, 3)
    assert (rows @ rows.T)[0, 1] < 0
    assert (rows @ (rows.T @ weigh(PCGrad, rows)) >= -1e-12).all()


def test_a_zero_gradient_has_the_weight_1():
    assert weigh(PCGrad, torch.zeros(4, 3, dtype=torch.float64)).tolist() == [1.0] * 4


def test_permuted_tasks_have_permuted_weights():
    rows = jacobian(7, 3)
    new = torch.tensor([3, 0, 6, 1, 5, 2, 4])  # task k of the new numbering was new[k]
    draw = np.random.default_rng(0)
    others = [[j for j in range(7) if j != i] for i in range(7)]
    order = torch.from_numpy(np.stack([draw.permutation(row) for row in others]))
    gramian, number = rows @ rows.T, new.argsort()
    found = pcgrad(gramian[new][:, new], keys_of(number[order[new]]))
    torch.testing.assert_close(found, pcgrad(gramian, keys_of(order))[new], rtol=1e-12, atol=0)


def test_scopes_are_weighed_each_by_itself():
    rows = jacobian(3, 3, size=5)
    assert weigh(PCGrad, rows, scope="layer").shape == (5, 3)
    assert_scopes_are_apart(PCGrad)


def test_the_order_depends_on_seed_and_step():
    rows = jacobian(8, 30)
    first, again, other = (weigh(PCGrad, rows, run=tasks(8, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_every_order_of_the_others_is_drawn():
    run = tasks(3)
    rows, seen = jacobian(3, 30, seed=4), set()
    for run.step in range(200):
        weights = PCGrad().mtlcore_weigh_tasks(run, StandInGradients(rows))
        seen.add(tuple(weights.numpy().round(9).tolist()))
    possible = set()
    for bits in range(8):
        keys = torch.tensor([[1, 2 * (bits >> task & 1)] for task in range(3)]).double()
        weights = pcgrad(rows @ rows.T, keys)
        possible.add(tuple(weights.numpy().round(9).tolist()))
    assert seen == possible
    assert len(possible) > 1


def test_eight_tasks_take_well_under_a_millisecond():
    run = tasks(8)
    gradients, weighting = StandInGradients(jacobian(8, 3)), PCGrad()
    times = []
    for _ in range(200):
        start = time.perf_counter()
        weighting.mtlcore_weigh_tasks(run, gradients)
        times.append(time.perf_counter() - start)
    assert min(times) < 1e-3  # 0.09 ms measured; wide, for busy machines


def test_a_run_trains_with_it(tiny_model, tmp_path):
    run, weights = weights_of_run(tiny_model, tmp_path, "pcgrad")
    assert run.weighting.name == "pcgrad"
    assert all(weight >= 1 - 1e-12 for line in weights for weight in line.values())
    assert any(weight > 1 + 1e-6 for line in weights for weight in line.values())
