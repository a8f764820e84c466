"""Random weights: their distribution, their draws against TorchJD's, and what they depend on."""

import pytest
import torch

from mtlcore.testing import StandInGradients
from mtlcore_plugins.weighting.rlw import RLW
from tests.weighting.helpers import slopes, tasks, trained


def drawn(run, present=None):
    size = len(run.tasks if present is None else present)
    return RLW().mtlcore_weigh_tasks(run, StandInGradients(torch.eye(size), present))


@pytest.mark.parametrize("count", [1, 2, 3, 8, 16])
def test_weights_equal_torchjd_from_the_same_draws(count):
    oracle, run = pytest.importorskip("torchjd.scalarization").Random(), tasks(count)
    torch.manual_seed(run.generator(run.step, "rlw").initial_seed())
    expected = slopes(oracle, [1.0] * count)
    torch.testing.assert_close(drawn(run), expected, rtol=1e-12, atol=0)


def test_weights_sum_to_one_and_each_has_its_share_on_average():
    run, seen = tasks(4), []
    for run.step in range(2000):
        seen.append(drawn(run))
    weights = torch.stack(seen)  # [2000, 4]
    assert weights.sum(1).tolist() == pytest.approx([1.0] * 2000)
    # The standard deviation of one weight is 0.18, of such a mean 0.004.
    assert weights.mean(0).tolist() == pytest.approx([0.25] * 4, abs=0.02)
    logs = weights.log() - weights.log().mean(1, keepdim=True)
    assert float(logs.var()) == pytest.approx(0.75, abs=0.05)  # of z less its mean of 4


def test_weights_depend_on_seed_and_step_alone():
    run = tasks(5)
    assert torch.equal(drawn(run), drawn(tasks(5)))
    assert not torch.equal(drawn(run), drawn(tasks(5, seed=1)))
    before, run.step = drawn(run), 1
    assert not torch.equal(drawn(run), before)


def test_a_weight_does_not_depend_on_who_else_is_present():
    run = tasks(5)
    assert torch.equal(drawn(run, present=[1, 4]), drawn(run)[[1, 4]])


def test_a_run_has_other_weights_in_every_step(tiny_model, tmp_path):
    lines = trained(tmp_path, tiny_model, "rlw")
    assert [sum(line["weights"].values()) for line in lines] == pytest.approx([1.0] * len(lines))
    assert len({line["weights"]["sentiment"] for line in lines}) == len(lines) > 1
