"""DoGE: its multiplicative step, as in the paper and as in the authors' code."""

import pytest
import torch

from mtlcore.errors import UserError
from mtlcore_plugins.weighting.doge_weights import DoGEWeights
from tests.weighting.helpers import (
    assert_close,
    create,
    jacobian,
    tasks,
    weigh,
    weights_of_run,
)

RULES = ["paper", "code"]


def scores(rows, rule):
    """W [T], one product of two gradients at a time."""
    found = torch.zeros(len(rows), dtype=torch.float64)
    for i, one in enumerate(rows):
        found[i] = sum(one @ other for j, other in enumerate(rows) if rule == "paper" or j != i)
    if rule == "code":
        mean = sum(row.norm() for row in rows) / len(rows)
        found = (found / mean).clip(0, 5)
    return found


@pytest.mark.parametrize("count", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("spread", [1, 3, 30])
@pytest.mark.parametrize("rule", RULES)
def test_weights_are_multiplied_by_the_exponentials_of_the_scores(count, spread, rule):
    weighting, run = DoGEWeights(step_size=0.05, rule=rule), tasks(count)
    expected = torch.full((count,), 1 / count, dtype=torch.float64)
    for seed in range(5):
        rows = jacobian(count, spread, seed) + 0.1
        expected = expected * (0.05 * scores(rows, rule)).exp()
        expected = expected / expected.sum()
        assert_close(weigh(weighting, rows, run=run), expected, 1e-10)


@pytest.mark.parametrize("rule", RULES)
def test_a_task_that_helps_the_others_gains(rule):
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.2], [-0.5, 0.2]], dtype=torch.float64)
    weights = weigh(DoGEWeights, rows, rule=rule)
    assert weights[:2].min() > 1 / 3 > weights[2]
    assert weights.sum() == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_an_absent_task_keeps_its_weight(rule):
    weighting, run, rows = DoGEWeights(rule=rule), tasks(4), jacobian(4, 3) + 0.2
    before = weigh(weighting, rows, run=run)
    during = weigh(weighting, rows[[0, 2, 3]], present=[0, 2, 3], run=run)
    assert during.sum() == pytest.approx(before[[0, 2, 3]].sum().item(), rel=1e-12)
    assert (during - before[[0, 2, 3]]).abs().max() > 1e-4
    after = weigh(weighting, 0 * rows, run=run)
    assert after[1] == pytest.approx(before[1].item(), rel=1e-12)


def test_by_the_code_two_tasks_never_differ():
    weights = weigh(DoGEWeights, jacobian(2, 30) + 0.5, rule="code")
    assert weights.tolist() == pytest.approx([0.5, 0.5], rel=1e-15)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("rule", RULES)
def test_gradients_of_any_scale_give_weights_that_sum_to_one(scale, rule):
    weighting, run = DoGEWeights(rule=rule), tasks(4)
    for seed in range(3):
        weights = weigh(weighting, scale * jacobian(4, 3, seed), run=run)
        assert weights.sum() == pytest.approx(1, rel=1e-12)
    if scale < 1:
        assert weights.tolist() == pytest.approx([0.25] * 4)
    elif rule == "paper":
        assert weights.max() == 1


@pytest.mark.parametrize("length", [1.0, 1e3, 1e7, 1e10, 1e30])
def test_equal_gradients_keep_equal_weights_for_many_steps(length):
    weighting, run = DoGEWeights(), tasks(3)
    rows = torch.full((3, 1), length, dtype=torch.float64)
    for _ in range(20):
        assert weigh(weighting, rows, run=run).tolist() == pytest.approx([1 / 3] * 3, rel=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_zero_gradients_change_no_weight(rule):
    rows = torch.zeros(4, 3, dtype=torch.float64)
    assert weigh(DoGEWeights, rows, rule=rule).tolist() == pytest.approx([0.25] * 4, rel=1e-15)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_size": 0}, r"weighting\.step_size must be greater than 0, found 0"),
        ({"rule": "mine"}, r"weighting\.rule must be 'paper' or 'code'"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        create(DoGEWeights, **options)


def test_a_run_trains_with_it(tiny_model, tmp_path):
    _, weights = weights_of_run(tiny_model, tmp_path, "{name: doge_weights, step_size: 1.0}")
    assert all(sum(line.values()) == pytest.approx(1) for line in weights)
    assert len(set(weights[-1].values())) == 3
