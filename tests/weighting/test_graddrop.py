"""GradDrop against TorchJD's with the same draws, and the signs that it keeps."""

import pytest
import torch

from mtlcore.errors import UserError
from mtlcore.seeds import seed_of
from mtlcore_plugins.weighting.graddrop import GradDrop
from tests.recipes import final_adapters
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
@pytest.mark.parametrize("leak", [0.0, 0.3])
def test_updates_equal_torchjd_with_the_same_draws(count, spread, leak):
    aggregation = pytest.importorskip("torchjd.aggregation")
    rows, run = jacobian(count, spread), tasks(count, seed=5)
    torch.manual_seed(seed_of(run.seed, run.step, "graddrop"))
    expected = aggregation.GradDrop(leak=torch.full((count,), leak, dtype=torch.float64))(rows)
    assert_close(weigh(GradDrop, rows, run=run, leak=leak), expected, 1e-12)


def test_an_element_keeps_the_gradients_of_one_sign():
    rows = jacobian(6, 3)
    update = weigh(GradDrop, rows)
    positive, negative = rows.clamp(min=0).sum(0), rows.clamp(max=0).sum(0)
    is_positive = update > 0
    torch.testing.assert_close(update, torch.where(is_positive, positive, negative))
    assert 0 < is_positive.sum() < len(update)


def test_a_sign_is_kept_as_often_as_its_share_of_the_gradients():
    run, rows = tasks(2), torch.tensor([[3.0], [-1.0]], dtype=torch.float64).expand(2, 20_000)
    kept = weigh(GradDrop, rows, run=run) > 0
    assert kept.double().mean() == pytest.approx(0.75, abs=0.015)  # 5 standard deviations


def test_without_conflicts_and_for_one_task_the_update_is_the_sum():
    rows = torch.rand(5, 7, dtype=torch.float64)
    assert_close(weigh(GradDrop, rows), rows.sum(0), 1e-15)
    alone = jacobian(1, 3)
    assert torch.equal(weigh(GradDrop, alone), alone[0])


def test_a_leak_of_one_is_the_sum():
    rows = jacobian(5, 3)
    assert_close(weigh(GradDrop, rows, leak=1.0), rows.sum(0), 1e-14)


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_update_scales_with_the_gradients(scale, dtype):
    rows = jacobian(4, 3).to(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    found = weigh(GradDrop, rows * scale) / scale
    assert found.dtype == dtype
    assert_close(found, weigh(GradDrop, rows), tolerance)


def test_permuted_tasks_have_the_same_update():
    rows = jacobian(5, 3)
    assert_close(weigh(GradDrop, rows.flip(0)), weigh(GradDrop, rows), 1e-12)


def test_zero_gradients_change_nothing():
    rows = jacobian(3, 3)
    rows[:, 4] = 0
    padded = torch.cat([rows, torch.zeros(1, 40, dtype=torch.float64)])
    update = weigh(GradDrop, rows)
    assert torch.equal(weigh(GradDrop, padded), update)
    assert update[4] == 0
    assert not weigh(GradDrop, 0 * rows).any()


def test_draws_depend_on_seed_and_step():
    rows, run = jacobian(4, 3), tasks(4)
    first = weigh(GradDrop, rows, run=run)
    assert torch.equal(weigh(GradDrop, rows, run=run), first)
    assert not torch.equal(weigh(GradDrop, rows, run=tasks(4, seed=1)), first)
    run.step = 1
    assert not torch.equal(weigh(GradDrop, rows, run=run), first)


@pytest.mark.parametrize("leak", [-0.1, 1.1])
def test_a_leak_out_of_range_is_refused(leak):
    with pytest.raises(
        UserError, match=rf"weighting\.leak must be .* than or equal to [01], found {leak}"
    ):
        create(GradDrop, leak=leak)


def test_runs_differ_by_what_is_dropped_and_all_that_leaks_is_the_sum(tiny_model, tmp_path):
    ones = "{name: fixed, weights: {sentiment: 1, spelling: 1, definitions: 1}}"
    choices = {"sum": ones, "leaks": "{name: graddrop, leak: 1.0}", "drops": "graddrop"}
    found = {}
    for name, weighting in choices.items():
        (tmp_path / name).mkdir()
        run, _ = weights_of_run(tiny_model, tmp_path / name, weighting)
        found[name] = final_adapters(run.folder)
    for name, expected in found["sum"].items():
        torch.testing.assert_close(found["leaks"][name], expected, rtol=1e-3, atol=1e-5)
    assert any(not torch.allclose(found["drops"][n], w, atol=1e-3) for n, w in found["sum"].items())
