"""FAMO against TorchJD's, what its update reads, and absent tasks."""

import pytest
import torch

import mtlcore
from mtlcore.errors import UserError
from mtlcore_plugins.weighting.famo import FAMO
from tests.recipes import training_part, write_tiny_recipe
from tests.test_distributed import assert_equal, train_both
from tests.weighting.helpers import create, random_losses, slopes, tasks, trained, weigh_by


def again(losses):
    return lambda: torch.tensor(losses, dtype=torch.float64)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_weights_and_logits_equal_torchjds(count, scale):
    bound = 0.05 * scale
    options = {"lr": 0.1, "weight_decay": 0.02}
    oracle = pytest.importorskip("torchjd.scalarization").FAMO(
        count, torch.full((count,), bound, dtype=torch.float64), **options
    )
    oracle.double()
    weighting = FAMO(learning_rate=0.1, weight_decay=0.02, lower_bound=bound)
    run = tasks(count)
    for step in range(20):
        losses = random_losses(count, scale, step)
        after = random_losses(count, 0.9 * scale, 100 + step)
        expected = slopes(oracle, losses)
        torch.testing.assert_close(weigh_by(weighting, run, losses), expected, rtol=1e-10, atol=0)
        oracle.update(torch.tensor(after, dtype=torch.float64))
        weighting.mtlcore_after_update(run, again(after))
        torch.testing.assert_close(weighting.state[0], oracle._w.detach(), rtol=1e-9, atol=1e-12)


def test_the_task_whose_loss_falls_least_gains_weight():
    weighting, run = FAMO(learning_rate=0.1), tasks(2)
    for _ in range(10):
        weights = weigh_by(weighting, run, [1.0, 1.0])
        weighting.mtlcore_after_update(run, again([0.5, 0.99]))
    assert weights[1] > 1.5 * weights[0]
    assert weights.sum() == pytest.approx(1)


def test_a_loss_weight_cancels_out_but_for_a_common_factor():
    runs = []
    for factors in ([1.0, 1.0, 1.0], [5.0, 1.0, 0.1]):
        weighting, run, found = FAMO(learning_rate=0.1), tasks(3), []
        factor = torch.tensor(factors, dtype=torch.float64)
        for step in range(5):
            losses = torch.tensor(random_losses(3, 1.0, step), dtype=torch.float64) * factor
            in_the_step = weigh_by(weighting, run, losses.tolist()) * factor
            found.append(in_the_step / in_the_step.sum())
            after = torch.tensor(random_losses(3, 0.9, 50 + step), dtype=torch.float64)
            weighting.mtlcore_after_update(run, again((after * factor).tolist()))
        runs.append(torch.stack(found))
    torch.testing.assert_close(*runs, rtol=1e-6, atol=0)  # eps is not scaled


def test_an_absent_task_keeps_its_logit_and_the_others_share_all():
    weighting, run = FAMO(), tasks(3)
    weigh_by(weighting, run, [1.0, 2.0, 3.0])
    weighting.mtlcore_after_update(run, again([0.9, 1.9, 2.0]))
    before = weighting.state.clone()
    weights = weigh_by(weighting, run, [1.0, 2.0], present=[0, 2])
    assert weights.sum() == pytest.approx(1)
    weighting.mtlcore_after_update(run, again([0.8, 1.0]))
    assert torch.equal(weighting.state[:, 1], before[:, 1])
    assert (weighting.state[:, [0, 2]] != before[:, [0, 2]]).all()


def test_a_step_in_which_it_was_not_asked_costs_no_pass_and_teaches_nothing():
    weighting, run = FAMO(), tasks(2)

    def never():
        raise AssertionError("a forward pass for nothing")

    weighting.mtlcore_after_update(run, never)
    weigh_by(weighting, run, [1.0, 2.0])
    weighting.mtlcore_after_update(run, again([torch.inf, 1.0]))
    assert weighting.state[0].tolist() == [0, 0]


def test_losses_of_a_step_without_an_update_are_not_compared_with_a_later_one():
    weighting, run = FAMO(), tasks(3)
    weigh_by(weighting, run, [1.0, 2.0, 3.0])
    run.step += 1  # its update was given up, and in the next step it was not asked
    weighting.mtlcore_after_update(run, again([0.5, 0.5]))
    assert weighting.state[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("losses", [[0.0, 0.0], [0.0, 1e30], [1e-30, 1e30]])
def test_weights_stay_finite_and_sum_to_one(losses):
    weighting, run = FAMO(learning_rate=1.0), tasks(2)
    for _ in range(50):
        weights = weigh_by(weighting, run, losses)
        assert torch.isfinite(weights).all()
        assert weights.sum() == pytest.approx(1)
        weighting.mtlcore_after_update(run, again(losses[::-1]))


SEEN = '''
import torch
from mtlcore.components import Penalty, Regularizer
from mtlcore.hookspecs import hookimpl

class Squares(Regularizer):
    """A penalty on the tasks, which is in the losses that a weighting reads."""

    name = "squares"
    acts_on = "task"

    def mtlcore_penalties(self, run, batch, outputs):
        if batch is None:
            return []
        squares = outputs.token_losses.square()
        sums = [(squares * (batch.label_tasks == task.index)).sum() for task in run.tasks]
        return [Penalty("squares", "task", 0.1 * torch.stack(sums))]

@hookimpl(tryfirst=True)
def mtlcore_after_update(run, losses_again):
    _, _, given = run.weighting._before
    after = losses_again()
    with open(run.folder / "seen.txt", "a") as file:
        print(torch.equal(given, after), float((given - after).sum()), file=file)
'''


@pytest.mark.parametrize(("rate", "same"), [(1e-30, True), (1e-3, False)])
def test_the_losses_after_an_update_are_of_the_same_rows_and_dropout(
    rate, same, tiny_model, tmp_path
):
    """Micro-batches, dropout and task penalties: without an update they are the same to the bit."""
    (tmp_path / "seen.py").write_text(SEEN)
    recipe = write_tiny_recipe(
        tmp_path,
        tiny_model,
        weighting="famo",
        plugins="[seen.py]",
        regularization="[squares]",
        training=training_part(
            tmp_path,
            max_steps=3,
            learning_rate=rate,
            per_device_train_batch_size=3,
            gradient_accumulation_steps=2,
        ),
    )
    mtlcore.train(recipe)
    lines = (tmp_path / "run" / "seen.txt").read_text().split("\n")[:-1]
    assert len(lines) == 3
    for line in lines:
        equal, fell = line.split()
        assert (equal == "True") == same
        assert same or float(fell) > 0


def test_two_processes_learn_the_same_weights(tiny_model, tmp_path):
    records, finals = train_both(
        tmp_path, tiny_model, weighting="famo", lora="{r: 4, lora_alpha: 8}"
    )
    for one, two in zip(*records, strict=True):
        assert one["weights"] == pytest.approx(two["weights"], rel=1e-9)
    assert len({round(weight, 9) for weight in records[0][-1]["weights"].values()}) == 3
    assert_equal(finals)


def test_a_run_differs_from_equal_weights(tiny_model, tmp_path):
    lines = trained(tmp_path, tiny_model, "{name: famo, learning_rate: 0.5}")
    weights = [list(line["weights"].values()) for line in lines]
    assert weights[-1] != pytest.approx(weights[0], rel=1e-2)
    assert all(sum(found) == pytest.approx(1) for found in weights)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0}, "weighting.learning_rate must be greater than 0, found 0"),
        ({"weight_decay": -1}, "weighting.weight_decay must be greater than or equal to 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(UserError) as caught:
        create(FAMO, **options)
    assert message in str(caught.value)
