"""Self-pacing: which tasks count when, both rules, stages with hard tasks alone, state."""

import pytest
import torch

from mtlcore.errors import UserError
from mtlcore_plugins.weighting.self_paced import SelfPaced
from tests.weighting.helpers import create, random_losses, tasks, trained, weigh_by

LOSSES = [8.0, 1.0, 2.0, 4.0]


def paced(steps, losses=LOSSES, **options):
    """The weights of each step, times T; the losses stay as they are."""
    weighting, run, found = SelfPaced(**options), tasks(len(losses)), []
    for run.step in range(steps):
        found.append((weigh_by(weighting, run, losses) * len(losses)).tolist())
    return found


def test_the_easiest_half_counts_at_first_and_then_task_after_task():
    # c = 2 * 1.5^(1 + step): 3, 4.5, 6.75, 10.1
    found = paced(4, growth=1.5, window=1)
    assert found == [[0, 1, 1, 0], [0, 1, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1]]
    assert paced(4, growth=1.5, window=2) == [[0, 1, 1, 0]] * 2 + [[0, 1, 1, 1]] * 2


@pytest.mark.parametrize(("start", "expected"), [(0.01, 1), (0.25, 1), (0.5, 2), (0.75, 3), (1, 4)])
def test_start_is_the_share_of_the_tasks_that_counts_at_first(start, expected):
    [first] = paced(1, start=start)
    assert sum(first) == expected


@pytest.mark.parametrize("rule", ["hard", "linear"])
@pytest.mark.parametrize("count", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_weights_minimise_the_self_paced_objective(rule, count, scale):
    losses = random_losses(count, scale, count)
    [found] = paced(1, losses, rule=rule)
    c = 1.3 * sorted(losses)[(count + 1) // 2 - 1]
    grid = torch.linspace(0, 1, 10001, dtype=torch.float64)
    for weight, loss in zip(found, losses, strict=True):
        price = -grid if rule == "hard" else grid**2 / 2 - grid
        best = grid[(grid * (loss / c) + price).argmin()]
        assert weight == pytest.approx(float(best), abs=1e-4)


def test_linear_weights_grow_towards_one():
    found = torch.tensor(paced(30, rule="linear", window=1))
    assert (found.diff(dim=0) >= 0).all()
    assert (found[0] > 0).tolist() == [False, True, True, False]
    assert (found[-1] > 0.9).all()


def test_a_task_comes_in_once_its_own_loss_has_fallen():
    weighting, run = SelfPaced(smoothing=0.5), tasks(2)
    counts = [bool(weigh_by(weighting, run, [1.0, hard])[1]) for hard in (3.0, 1.0, 1.0, 1.0)]
    assert counts == [False, False, False, True]  # means 3, 2, 1.5, 1.25 against c = 1.3


def test_an_absent_task_keeps_its_mean():
    weighting, run = SelfPaced(), tasks(3)
    weigh_by(weighting, run, [1.0, 2.0, 9.0])
    weigh_by(weighting, run, [5.0, 5.0], present=[0, 2])
    assert weighting.state[0].tolist() == pytest.approx([1.4, 2.0, 8.6])
    assert weigh_by(weighting, run, [9.0], present=[2]).tolist() == [0.0]


def test_where_only_hard_tasks_are_trained_the_easiest_of_them_counts():
    weighting, run = SelfPaced(), tasks(3)
    weigh_by(weighting, run, [1.0], present=[0])
    run.is_active = lambda task: task.index > 0  # another stage
    assert weigh_by(weighting, run, [9.0, 90.0], present=[1, 2]).tolist() == [1 / 3, 0.0]


@pytest.mark.parametrize("rule", ["hard", "linear"])
def test_losses_of_zero_count_and_keep_no_other_task_out(rule):
    assert paced(1, [0.0, 0.0], rule=rule) == [[1, 1]]
    assert all(weight > 0 for weight in paced(1, [0.0, 1.0], rule=rule)[0])
    weighting, run = SelfPaced(rule=rule), tasks(2)
    weigh_by(weighting, run, [0.0, 0.0])
    assert (weigh_by(weighting, run, [0.0, 5.0]) > 0).all()


def test_after_very_many_steps_every_task_counts():
    weighting, run = SelfPaced(window=1), tasks(2)
    weigh_by(weighting, run, [1.0, 1e30])
    run.step = 10**9
    assert weigh_by(weighting, run, [1.0, 1e30]).tolist() == [0.5, 0.5]


def test_a_resumed_weighting_goes_on_alike():
    first, run = SelfPaced(rule="linear", window=1), tasks(2)
    weigh_by(first, run, [1.0, 2.0])
    second = SelfPaced(rule="linear", window=1)
    second.load_state_dict(first.state_dict())
    for run.step in (1, 2):
        assert torch.equal(weigh_by(first, run, [3.0, 2.0]), weigh_by(second, run, [3.0, 2.0]))


@pytest.mark.parametrize(
    "options", [{"growth": 1.0}, {"start": 0}, {"smoothing": 1}, {"rule": "soft"}, {"window": 0}]
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(UserError, match=rf"weighting\.{next(iter(options))} must be"):
        create(SelfPaced, **options)


def test_a_run_lets_its_tasks_in_one_after_the_other(tiny_model, tmp_path):
    pace = "{name: self_paced, start: 0.1, growth: 1.2, window: 2}"
    lines = trained(tmp_path, tiny_model, pace, max_steps=8)
    counts = [sum(weight > 0 for weight in line["weights"].values()) for line in lines]
    assert counts[0] < counts[-1] == 3
    assert set(lines[-1]["weights"].values()) == {1 / 3}
