"""GradNorm: its step against autograd, where it comes to rest, and what it leaves alone."""

import pytest
import torch

from mtlcore.errors import UserError
from mtlcore_plugins.weighting.gradnorm import GradNorm
from tests.weighting.helpers import (
    assert_close,
    create,
    jacobian,
    tasks,
    weigh,
    weights_of_run,
)


def series(count, steps=20):
    """Losses and norms of so many steps, each [T]."""
    draw = torch.Generator().manual_seed(0)
    for _ in range(steps):
        yield 0.1 + torch.rand(2, count, generator=draw, dtype=torch.float64)


def diagonal(lengths):
    """J whose rows have these lengths."""
    return torch.diag(torch.as_tensor(lengths, dtype=torch.float64))


@pytest.mark.parametrize("count", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_weights_take_a_gradient_step_on_the_papers_loss(count, alpha):
    weighting, run = GradNorm(alpha=alpha, learning_rate=0.1), tasks(count)
    log_weights = torch.zeros(count, dtype=torch.float64, requires_grad=True)
    first = None
    for losses, lengths in series(count):
        first = losses if first is None else first
        found = weigh(weighting, diagonal(lengths), losses, run=run)
        assert_close(found, log_weights.detach().exp(), 1e-10)
        weighted = log_weights.exp() * lengths
        fallen = losses / first
        mean = weighted.mean().detach()
        loss = (weighted - mean * (fallen / fallen.mean()) ** alpha).abs().sum() / mean
        [slope] = torch.autograd.grad(loss, log_weights)
        with torch.no_grad():
            log_weights -= 0.1 * slope * (count > 1)  # alone it is at rest, but for rounding
            log_weights += (count / log_weights.exp().sum()).log()


def at_rest(alpha, spread):
    """w d by their mean, after many steps in which r is 1, 3/2 and 1/2; it ends in small swings."""
    weighting, run, rows = GradNorm(alpha=alpha, learning_rate=0.01), tasks(3), jacobian(3, spread)
    weigh(weighting, rows, [4.0, 2.0, 1.0], run=run)
    for _ in range(2000):
        weights = weigh(weighting, rows, [2.0, 1.5, 0.25], run=run)
    assert weights.sum() == pytest.approx(3, rel=1e-9)
    lengths = weights * rows.norm(dim=1)
    return (lengths / lengths.mean()).tolist()


@pytest.mark.parametrize("spread", [1, 30, 1e4])
@pytest.mark.parametrize(("alpha", "expected"), [(0, [1, 1, 1]), (1, [1, 1.5, 0.5])])
def test_weighted_norms_come_to_rest_at_the_rates_to_the_power_of_alpha(spread, alpha, expected):
    assert at_rest(alpha, spread) == pytest.approx(expected, rel=0.03)


def test_targets_that_sum_to_more_than_there_is_are_met_by_the_longest():
    longest = [1, 1.5**1.5]
    assert at_rest(1.5, 3) == pytest.approx([*longest, 3 - sum(longest)], abs=0.05)


def test_the_first_weights_are_equal():
    assert weigh(GradNorm, jacobian(4, 30), [1.0, 2.0, 3.0, 4.0]).tolist() == [1.0] * 4


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e30])
def test_weights_do_not_depend_on_the_scale_of_gradients_and_of_each_loss(scale):
    plain, scaled, run, rows = GradNorm(), GradNorm(), tasks(3), jacobian(3, 3)
    factors = torch.tensor([1.0, scale, 1.0])
    for losses, _ in series(3):
        expected = weigh(plain, rows, losses, run=run)
        found = weigh(scaled, rows * scale, losses * factors, run=run)
    assert_close(found, expected, 1e-10)
    assert expected.std() > 0.01


def test_permuted_tasks_have_permuted_weights():
    plain, permuted, run = GradNorm(), GradNorm(), tasks(5)
    rows, new = jacobian(5, 3), torch.tensor([3, 0, 4, 1, 2])
    for losses, _ in series(5):
        expected = weigh(plain, rows, losses, run=run)
        found = weigh(permuted, rows[new], losses[new], run=run)
    assert_close(found, expected[new], 1e-10)


def test_absent_tasks_and_zero_gradients_keep_their_weight_and_change_nothing_for_the_others():
    alone, run = GradNorm(), tasks(4)
    with_zero, without = GradNorm(), GradNorm()
    rows = jacobian(3, 3)
    padded = torch.cat([rows[:1], torch.zeros(1, 40, dtype=torch.float64), rows[1:]])
    for losses, _ in series(3):
        expected = weigh(alone, rows, losses, run=tasks(3))
        more = torch.cat([losses[:1], torch.tensor([7.0]), losses[1:]])
        found = weigh(with_zero, padded, more, run=run)
        fewer = weigh(without, rows, losses, present=[0, 2, 3], run=run)
        assert found[1] == pytest.approx(1, rel=1e-12)
        assert_close(found[[0, 2, 3]], expected, 1e-10)
        assert_close(fewer, expected, 1e-10)
    assert without.state["first"].isnan().tolist() == [False, True, False, False]


def test_losses_of_zero_give_finite_weights():
    weighting, run, rows = GradNorm(), tasks(2), jacobian(2, 3)
    for losses in ([0.0, 1.0], [0.0, 0.0], [2.0, 0.0], [0.0, 0.0], [1e6, 1e-6]):
        weights = weigh(weighting, rows, losses, run=run)
        assert torch.isfinite(weights).all()
        assert weights.sum() == pytest.approx(2, rel=1e-12)
    assert weighting.state["first"].tolist() == [2.0, 1.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1}, r"weighting\.alpha must be greater than or equal to 0, found -1"),
        ({"learning_rate": 0}, r"weighting\.learning_rate must be greater than 0, found 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        create(GradNorm, **options)


def test_a_run_trains_with_it(tiny_model, tmp_path):
    _, weights = weights_of_run(tiny_model, tmp_path, "{name: gradnorm, learning_rate: 0.1}")
    assert set(weights[0].values()) == {1.0}
    assert len(set(weights[2].values())) == 3
    assert sum(weights[2].values()) == pytest.approx(3)
