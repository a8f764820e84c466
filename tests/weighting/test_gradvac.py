"""GradVac against TorchJD's over several steps, and its properties."""

import numpy as np
import pytest
import torch

from mtlcore.errors import UserError
from mtlcore.ops import gradvac, pcgrad
from mtlcore_plugins.weighting.gradvac import GradVac
from mtlcore_plugins.weighting.pcgrad import PCGrad
from tests.weighting.helpers import (
    EXAMPLE,
    assert_close,
    assert_scopes_are_apart,
    create,
    jacobian,
    keys_of,
    tasks,
    weigh,
    weights_of_run,
)


@pytest.mark.parametrize("count", [2, 3, 8, 16])
@pytest.mark.parametrize("spread", [1, 3, 30])
@pytest.mark.parametrize("beta", [0.01, 0.5])
def test_weights_equal_torchjd_with_the_same_order(count, spread, beta):
    aggregation = pytest.importorskip("torchjd.aggregation")
    other = aggregation.GradVacWeighting(beta=beta, eps=0)
    targets = torch.zeros(count, count, dtype=torch.float64)
    for step in range(4):
        rows = jacobian(count, spread, step)
        torch.manual_seed(step)
        expected = other(rows @ rows.T)
        torch.manual_seed(step)
        draws = [torch.randperm(count - 1) for _ in range(count)]
        order = torch.stack([draw + (draw >= i) for i, draw in enumerate(draws)])
        found, targets = gradvac(rows @ rows.T, targets, keys_of(order), beta)
        assert_close(found, expected, 1e-12)


def test_the_first_step_is_that_of_pcgrad():
    rows = jacobian(8, 30)
    keys = torch.rand(8, 7, dtype=torch.float64)
    found, _ = gradvac(rows @ rows.T, torch.zeros(8, 8).double(), keys, 0.5)
    assert_close(found, pcgrad(rows @ rows.T, keys), 1e-12)
    update = EXAMPLE.T @ weigh(GradVac, EXAMPLE)
    assert update.tolist() == pytest.approx([0.5848, 3.8012, 3.8012], abs=1e-4)


def test_a_gradient_is_turned_to_the_cosine_of_its_target():
    rows = jacobian(2, 3)
    weighting, run = GradVac(beta=0.0), tasks(2)
    weighting.targets = torch.tensor([[0.0, 0.7], [-1.0, 0.0]], dtype=torch.float64)
    weights = weigh(weighting, rows, run=run)
    turned = rows.T @ (weights - torch.tensor([0.0, 1.0]).double())  # without g_2, as it is
    assert torch.cosine_similarity(turned, rows[1], dim=0).item() == pytest.approx(0.7, rel=1e-9)


def test_targets_follow_the_cosines_that_are_seen():
    rows = torch.rand(3, 7, dtype=torch.float64)  # no conflict: nothing is turned at first
    weighting, run = GradVac(beta=0.25), tasks(3)
    assert weigh(weighting, rows, run=run).tolist() == [1.0] * 3
    cosines = torch.cosine_similarity(rows[:, None], rows, dim=2)
    expected = 0.25 * cosines.fill_diagonal_(0)
    torch.testing.assert_close(weighting.targets, expected, rtol=1e-12, atol=0)


def test_absent_tasks_keep_their_targets():
    weighting, run = GradVac(beta=0.5), tasks(4)
    weigh(weighting, jacobian(4, 3), run=run)
    before = weighting.targets.clone()
    weigh(weighting, jacobian(2, 3, seed=1), present=[1, 3], run=run)
    changed = (weighting.targets != before).nonzero().tolist()
    assert changed == [[1, 3], [3, 1]]


def test_no_task_has_no_weight():
    weighting, run = GradVac(), tasks(3)
    rows = torch.zeros(0, 7, dtype=torch.float64)
    assert weigh(weighting, rows, present=[], run=run).shape == (0,)


def test_each_scope_has_targets_of_its_own():
    weighting = GradVac(beta=0.5, scope="layer")
    weights = weigh(weighting, jacobian(3, 3, size=5))
    assert weights.shape == (5, 3)
    assert weighting.targets.shape == (5, 3, 3)
    assert_scopes_are_apart(GradVac)


def test_a_zero_gradient_leaves_its_targets():
    rows = jacobian(3, 3)
    rows[1] = 0
    weighting, run = GradVac(beta=0.5), tasks(3)
    weights = weigh(weighting, rows, run=run)
    assert weights[1] == 1
    assert (weighting.targets[1] == 0).all()
    assert (weighting.targets[:, 1] == 0).all()
    assert weighting.targets[0, 2] != 0


def test_opposed_gradients_stand_still():
    rows = torch.tensor([[1.0, 2.0], [-3.0, -6.0]], dtype=torch.float64)
    assert (rows.T @ weigh(GradVac, rows)).norm() <= 1e-12


def test_duplicates_keep_weights_bounded_in_the_long_run():
    rows = jacobian(2, 3)
    rows[1] = 2 * rows[0]
    weighting, run = GradVac(beta=1.0), tasks(2)
    for run.step in range(3):
        weigh(weighting, rows, run=run)
    assert weighting.targets[0, 1].item() == pytest.approx(1, rel=1e-12)
    weights = weigh(weighting, jacobian(2, 3), run=run)
    assert torch.isfinite(weights).all()
    assert weights.max() < 1e4


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e30])
def test_weights_do_not_depend_on_the_scale_of_the_gradients(scale):
    rows, run = jacobian(8, 30), tasks(8)
    scaled, plain = GradVac(beta=0.5), GradVac(beta=0.5)
    for run.step in range(3):
        found = weigh(scaled, rows * scale, run=run)
        assert_close(found, weigh(plain, rows, run=run), 1e-9)


def test_permuted_tasks_have_permuted_weights():
    rows, new = jacobian(7, 3), torch.tensor([3, 0, 6, 1, 5, 2, 4])
    draw = np.random.default_rng(0)
    others = [[j for j in range(7) if j != i] for i in range(7)]
    order = torch.from_numpy(np.stack([draw.permutation(row) for row in others]))
    targets = 0.3 * torch.rand(7, 7, dtype=torch.float64)
    weights, after = gradvac(rows @ rows.T, targets, keys_of(order), 0.5)
    gramian, targets = (rows @ rows.T)[new][:, new], targets[new][:, new]
    found, now = gradvac(gramian, targets, keys_of(new.argsort()[order[new]]), 0.5)
    assert_close(found, weights[new], 1e-10)
    assert_close(now, after[new][:, new], 1e-10)


def test_the_order_depends_on_seed_and_step():
    rows = jacobian(8, 30)
    first, again, other = (weigh(GradVac, rows, run=tasks(8, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, weigh(PCGrad, rows, run=tasks(8, seed=1)))  # a stream of its own


def test_a_wrong_beta_is_refused():
    with pytest.raises(UserError, match=r"weighting\.beta"):
        create(GradVac, beta=1.5)


@pytest.mark.parametrize("scope", ["model", "layer"])
def test_a_run_trains_with_it(scope, tiny_model, tmp_path):
    run, weights = weights_of_run(tiny_model, tmp_path, f"{{name: gradvac, scope: {scope}}}")
    assert run.weighting.targets.ndim == (2 if scope == "model" else 3)
    assert any(weight > 1 + 1e-6 for line in weights for weight in line.values())
