"""Focal task weights: the paper's formula, its limits, the running mean, extreme losses."""

import math

import pytest
import torch

from mtlcore.errors import UserError
from mtlcore_plugins.weighting.focal import Focal
from tests.weighting.helpers import (
    create,
    random_losses,
    tasks,
    trained,
    weigh_by,
    weighted_losses,
)


def expected(well, gamma):
    return [-((1 - k) ** gamma) * math.log(k) for k in well]


@pytest.mark.parametrize("count", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.9])
def test_weights_are_the_focal_loss_of_the_running_mean(count, gamma, smoothing):
    weighting, run, well = Focal(gamma=gamma, smoothing=smoothing), tasks(count), None
    for step in range(10):
        losses = random_losses(count, 1.0, step)
        now = [math.exp(-loss) for loss in losses]
        if well is None:
            well = now
        well = [smoothing * k + (1 - smoothing) * n for k, n in zip(well, now, strict=True)]
        found = weigh_by(weighting, run, losses).tolist()
        assert found == pytest.approx(expected(well, gamma), rel=1e-12)


def test_without_focus_and_memory_the_weight_is_the_loss():
    losses = random_losses(5, 1.0, 0)
    found = weigh_by(Focal(gamma=0.0, smoothing=0.0), tasks(5), losses)
    assert found.tolist() == pytest.approx(losses, rel=1e-12)


def test_a_larger_gamma_leaves_less_to_the_tasks_that_are_done():
    shares = []
    for gamma in (0.0, 1.0, 2.0, 5.0):
        easy, hard = weigh_by(Focal(gamma=gamma), tasks(2), [0.1, 3.0]).tolist()
        shares.append(easy / hard)
    assert shares == sorted(shares, reverse=True)


def test_tiny_losses_keep_their_digits_and_huge_ones_have_an_end():
    found = weigh_by(Focal(), tasks(4), [0.0, 1e-30, 23.0, 1e30]).tolist()
    assert found[0] == 0
    assert found[1] == pytest.approx(1e-90)
    assert found[2] == pytest.approx(23.0, rel=1e-6)
    assert found[3] == pytest.approx(10 * math.log(10), rel=1e-6)


def test_an_absent_task_keeps_its_mean_and_a_new_one_starts_with_its_loss():
    weighting, run = Focal(smoothing=0.5), tasks(3)
    weigh_by(weighting, run, [1.0, 2.0], present=[0, 1])
    weighed = weigh_by(weighting, run, [3.0, 4.0], present=[0, 2])
    well = [(math.exp(-1.0) + math.exp(-3.0)) / 2, math.exp(-4.0)]
    assert weighed.tolist() == pytest.approx(expected(well, 2.0))
    assert weighting.state[0, 1] == -math.expm1(-2.0)


def test_permuted_tasks_have_permuted_weights():
    one, other, run, new = Focal(), Focal(), tasks(5), [3, 0, 4, 2, 1]
    for step in range(3):
        losses = random_losses(5, 1.0, step)
        found = weigh_by(other, run, [losses[k] for k in new])
        assert torch.equal(found, weigh_by(one, run, losses)[new])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"gamma": -1}, "gamma must be greater than or equal to 0"), ({"smoothing": 1}, "smoothing")],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        create(Focal, **options)


def test_a_run_gives_hard_tasks_more_weight(tiny_model, tmp_path):
    for line in trained(tmp_path, tiny_model, "{name: focal, smoothing: 0}"):
        losses = weighted_losses(line)
        well = [math.exp(-loss) for loss in losses.values()]
        assert list(line["weights"].values()) == pytest.approx(expected(well, 2.0), rel=1e-5)
