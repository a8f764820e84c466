"""CoBa: the authors' formulas on a made history, its looks at eval rows, stages."""

import numpy as np
import pytest
import torch

import mtlcore
from mtlcore.errors import UserError
from mtlcore.testing import StandInGradients
from mtlcore_plugins.weighting.coba import CoBa, coba_weights, slopes
from tests.recipes import metrics, training_part, write_tiny_recipe
from tests.weighting.helpers import create, tasks


def weigh(weighting, run, present=None):
    gradients = StandInGradients(torch.eye(len(present or run.tasks)), present)
    return weighting.mtlcore_weigh_tasks(run, gradients)


def history(count, looks, seed):
    """Losses [looks, count] that fall at different rates, some rising again, with noise."""
    draw = np.random.default_rng(seed)
    time = np.arange(looks)[:, None] / looks
    falls = np.exp(-draw.uniform(0, 3, count) * time) + draw.uniform(0, 1, count) * time**2
    return draw.uniform(0.5, 4, count) * (falls + 0.05 * draw.standard_normal((looks, count)))


def softmax(values):
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def expected_weights(losses, window, first_looks, tau):
    """The paper's formulas, look by look, lines fitted by numpy."""
    relative = losses / losses[0]
    count = losses.shape[1]
    of_tasks, of_worst = [], []
    for end in range(first_looks, len(losses) + 1):
        seen = relative[max(0, end - window) : end]
        of_tasks.append([np.polyfit(range(len(seen)), seen[:, t], 1)[0] for t in range(count)])
        of_worst.append(np.polyfit(range(len(seen)), seen.max(1), 1)[0])
    past, worst = np.array(of_tasks)[-window:], np.array(of_worst)
    now = past[-1]
    rcs = softmax(count * now / abs(now).sum())
    acs = softmax(-len(past) * now / abs(past).sum(0))
    df = len(worst) * softmax(-tau * len(worst) * worst / abs(worst).sum())[-1]
    weights = softmax(count * (df * rcs + (1 - df) * acs))
    if (weights < 1 / (10 * count)).any():
        weights = 0.9 * weights + 1 / (10 * count)
    return weights


@pytest.mark.parametrize("count", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("looks", [5, 12, 30])
def test_weights_equal_the_formulas(count, scale, looks):
    losses = scale * history(count, looks, seed=count + looks)
    weighting, run = CoBa(window=10, first_looks=5, tau=2.0), tasks(count)
    weighting.mtlcore_stage_start(run)
    for row in losses:
        weighting.see(torch.tensor(row))
    weights = weigh(weighting, run)
    expected = expected_weights(losses, 10, 5, 2.0)
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-9)
    assert weights.sum() == pytest.approx(1)


def test_weights_are_equal_until_there_are_enough_looks():
    weighting, run = CoBa(window=10, first_looks=4), tasks(3)
    weighting.mtlcore_stage_start(run)
    for row in history(3, 3, seed=0):
        weighting.see(torch.tensor(row))
        assert weigh(weighting, run).tolist() == pytest.approx([1 / 3] * 3)
    weighting.see(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    assert len(set(weigh(weighting, run).tolist())) == 3


def test_a_task_whose_loss_rises_alone_loses_weight_to_one_that_falls():
    past = torch.tensor([[-1.0, -0.5], [-1.0, 0.5]], dtype=torch.float64)
    worst = torch.tensor([-1.0, 0.5], dtype=torch.float64)  # things get worse: ACS counts
    weights = coba_weights(past, worst, tau=5.0)
    assert weights[1] < weights[0]


def test_no_weight_is_below_a_tenth_of_its_share():
    draw = torch.Generator().manual_seed(0)
    for _ in range(50):
        past = torch.randn(8, 20, generator=draw, dtype=torch.float64)
        worst = torch.randn(40, generator=draw, dtype=torch.float64)
        weights = coba_weights(past, worst, tau=5.0)
        assert weights.min() >= 1 / 80 - 1e-12
        assert weights.sum() == pytest.approx(1)


def test_the_slope_is_that_of_the_least_squares_line():
    losses = torch.tensor(history(4, 17, seed=1).T)
    expected = [np.polyfit(range(17), row, 1)[0] for row in losses.numpy()]
    np.testing.assert_allclose(slopes(losses).numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("losses", [[0.0, 0.0], [2.0, 2.0], [0.0, 1e30]])
def test_losses_that_do_not_move_give_equal_weights(losses):
    weighting, run = CoBa(window=4, first_looks=2), tasks(2)
    weighting.mtlcore_stage_start(run)
    for _ in range(6):
        weighting.see(torch.tensor(losses, dtype=torch.float64))
        assert weigh(weighting, run).tolist() == pytest.approx([0.5, 0.5])


def test_a_task_without_a_loss_in_a_look_keeps_its_last_one():
    weighting, run = CoBa(window=4, first_looks=2), tasks(2)
    weighting.mtlcore_stage_start(run)
    for look in ([1.0, torch.nan], [2.0, 4.0], [1.0, torch.nan], [torch.nan, 2.0]):
        weighting.see(torch.tensor(look, dtype=torch.float64))
    assert weighting.losses.tolist() == [[1.0, 0.5, 0.5], [1.0, 1.0, 0.5]]


def test_looks_that_never_have_a_loss_of_every_task_are_told(monkeypatch):
    nothing = torch.tensor([1.0, torch.nan], dtype=torch.float64)
    monkeypatch.setattr(CoBa, "_look", lambda self, run: nothing)
    told = []
    weighting, run = CoBa(window=4, first_looks=2), tasks(2, note=told.append)
    weighting.mtlcore_stage_start(run)
    for _ in range(5):
        weighting.mtlcore_step_end(run)
    [note] = told
    assert "in none of 2 looks all tasks had a finite loss" in note


OPTIONS = "{name: coba, window: 4, first_looks: 2, tau: 1.0}"


def run_with(tiny_model, folder, weighting=OPTIONS, **changes):
    part = training_part(folder, max_steps=6, learning_rate=0.02)
    if "stages" in changes:
        part = part.replace("max_steps: 6, ", "")
    return mtlcore.train(
        write_tiny_recipe(folder, tiny_model, weighting=weighting, training=part, **changes)
    )


def test_a_run_looks_at_eval_rows_and_its_weights_move(tiny_model, tmp_path):
    run = run_with(tiny_model, tmp_path)
    weights = [list(line["weights"].values()) for line in metrics(run.folder)]
    assert weights[0] == weights[1] == pytest.approx([1 / 3] * 3)
    assert all(len({round(weight, 9) for weight in row}) == 3 for row in weights[2:])
    assert all(sum(row) == pytest.approx(1) for row in weights)
    assert run.weighting.losses.shape == (3, 4)


def test_rows_and_interval_say_how_often_and_how_much(tiny_model, tmp_path):
    run = run_with(tiny_model, tmp_path, "{name: coba, window: 4, first_looks: 2, interval: 3}")
    assert run.weighting.losses.shape == (3, 2), "two looks in six steps"


def test_each_stage_begins_anew_with_its_tasks(tiny_model, tmp_path):
    stages = (
        "[{name: one, tasks: [sentiment], max_steps: 3}, "
        "{name: two, tasks: [spelling, definitions], max_steps: 4}]"
    )
    run = run_with(tiny_model, tmp_path, stages=stages)
    lines = metrics(run.folder)
    assert lines[2]["weights"]["sentiment"] == pytest.approx(1)
    for line in lines[3:5]:
        assert line["weights"]["spelling"] == line["weights"]["definitions"] == 0.5
    assert lines[-1]["weights"]["spelling"] != lines[-1]["weights"]["definitions"]


def test_a_run_that_is_too_short_is_told(tiny_model, tmp_path):
    run = run_with(tiny_model, tmp_path, "coba")
    assert any("coba: all weights stay equal: the first 100 steps" in note for note in run.notes)


def test_a_task_without_eval_rows_is_refused(tiny_model, tmp_path):
    recipe = write_tiny_recipe(tmp_path, tiny_model, weighting=OPTIONS)
    text = recipe.read_text().replace("    eval: spelling.dev.jsonl\n", "    split: {eval: 0}\n")
    recipe.write_text(text)
    with pytest.raises(UserError, match="coba looks at eval rows, and task 'spelling' has none"):
        mtlcore.train(recipe)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 1}, "weighting.window must be greater than or equal to 2, found 1"),
        ({"window": 5, "first_looks": 6}, "first_looks (6) must not be above window (5)"),
        ({"tau": 0}, "weighting.tau must be greater than 0, found 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(UserError) as caught:
        create(CoBa, **options)
    assert message in str(caught.value)
