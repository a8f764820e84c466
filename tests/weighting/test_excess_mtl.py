"""ExcessMTL against TorchJD's and LibMTL's algorithm, and its state of the size of J."""

import pytest
import torch

from mtlcore.errors import UserError
from mtlcore_plugins.weighting.excess_mtl import ExcessMTL
from tests.weighting.helpers import (
    assert_close,
    create,
    jacobian,
    tasks,
    weigh,
    weights_of_run,
)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("spread", [1, 3, 30])
def test_weights_equal_torchjd_that_waits_for_one_step(count, spread):
    aggregation = pytest.importorskip("torchjd.aggregation")
    oracle = aggregation.ExcessMTLWeighting(robust_step_size=0.5, n_warmup_steps=1)
    weighting, run = ExcessMTL(step_size=0.5), tasks(count)
    for seed in range(6):
        rows = 1e6 * jacobian(count, spread, seed)  # so large that its 1e-7 is nothing
        assert_close(weigh(weighting, rows, run=run), oracle(rows), 1e-10)


@pytest.mark.parametrize("count", [2, 8])
def test_weights_follow_the_algorithm_of_libmtl_but_for_their_sum(count):
    weighting, run = ExcessMTL(), tasks(count)
    weights = torch.ones(count, dtype=torch.float64)
    squares = torch.zeros(count, 40, dtype=torch.float64)
    for seed in range(6):
        rows = jacobian(count, 3, seed)
        squares += rows**2
        excess = torch.stack([g / h.sqrt() @ g for g, h in zip(rows, squares, strict=True)])
        if seed == 0:
            first = excess
        else:
            weights = weights * (0.01 * excess / first).exp()
            weights = weights / weights.sum() * count
        assert_close(weigh(weighting, rows, run=run), weights / count, 1e-12)


def test_a_task_whose_gradient_does_not_vanish_gains():
    weighting, run, rows = ExcessMTL(), tasks(2), jacobian(2, 1)
    for step in range(30):
        weights = weigh(weighting, rows * torch.tensor([[1.0], [0.5**step]]), run=run)
    assert weights[0] > 0.51 > 0.49 > weights[1]
    assert weights.sum() == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_do_not_depend_on_the_scale_of_the_gradients(scale, dtype):
    plain, scaled, run = ExcessMTL(step_size=1.0), ExcessMTL(step_size=1.0), tasks(4)
    for seed in range(5):
        rows = jacobian(4, 3, seed).to(dtype)
        expected = weigh(plain, rows, run=run)
        found = weigh(scaled, scale * rows, run=run)
    assert_close(found, expected, 1e-5 if dtype == torch.float32 else 1e-10)
    assert expected.std() > 0.01


def test_permuted_tasks_have_permuted_weights():
    plain, permuted, run = ExcessMTL(), ExcessMTL(), tasks(5)
    new = torch.tensor([3, 0, 4, 1, 2])
    for seed in range(4):
        rows = jacobian(5, 3, seed)
        expected = weigh(plain, rows, run=run)
        found = weigh(permuted, rows[new], run=run)
    assert_close(found, expected[new], 1e-12)


def test_an_absent_task_keeps_its_state_and_a_late_one_starts_with_its_first_gradient():
    weighting, run = ExcessMTL(step_size=1.0), tasks(3)
    for seed in range(3):
        weights = weigh(weighting, jacobian(2, 3, seed), present=[0, 2], run=run)
        assert weights.sum() == pytest.approx(2 / 3, rel=1e-12)
    assert weighting.state["first"].isnan().tolist() == [False, True, False]
    assert not weighting.state["h"][1].any()
    rows = jacobian(3, 3, 3)
    found = weigh(weighting, rows, run=run)
    assert found[1] == pytest.approx(1 / 3, rel=1e-12)  # its first step moves the others only
    assert weighting.state["first"][1] == pytest.approx(rows[1].abs().sum().item(), rel=1e-12)


def test_zero_gradients_have_no_excess_risk():
    weighting, run, rows = ExcessMTL(), tasks(2), jacobian(2, 3)
    assert weigh(weighting, 0 * rows, run=run).tolist() == pytest.approx([0.5, 0.5], rel=1e-15)
    assert weighting.state["first"].isnan().all()
    weigh(weighting, rows, run=run)
    weights = weigh(weighting, rows * torch.tensor([[1.0], [0.0]]), run=run)
    assert weights[0] > weights[1] > 0


def test_bfloat16_gradients_are_summed_in_float32():
    weighting, run = ExcessMTL(), tasks(2)
    rows = torch.ones(2, 3, dtype=torch.bfloat16)
    for _ in range(400):
        weigh(weighting, rows, run=run)
    torch.testing.assert_close(weighting.state["h"], torch.full((2, 3), 20.0), rtol=1e-4, atol=0)


def test_a_resumed_weighting_goes_on_alike():
    first, second, run = ExcessMTL(), ExcessMTL(), tasks(3)
    weigh(first, jacobian(3, 3), run=run)
    second.load_state_dict(first.state_dict())
    for seed in range(3):
        rows = jacobian(3, 3, seed)
        assert torch.equal(weigh(first, rows, run=run), weigh(second, rows, run=run))


def test_a_step_of_zero_is_refused():
    with pytest.raises(UserError, match=r"weighting\.step_size must be greater than 0, found 0"):
        create(ExcessMTL, step_size=0)


def test_a_run_trains_with_it(tiny_model, tmp_path):
    _, weights = weights_of_run(tiny_model, tmp_path, "{name: excess_mtl, step_size: 1.0}")
    assert weights[0]["spelling"] == pytest.approx(1 / 3)
    assert len(set(weights[-1].values())) == 3
    assert sum(weights[-1].values()) == pytest.approx(1)
