"""Tasks that begin later: when they get rows, stages, epochs, notes and errors."""

import pytest

import mtlcore
from mtlcore.components import Sampler
from mtlcore.errors import UserError
from mtlcore.stages import plan_stages
from mtlcore_plugins.sampling.staged import Staged
from tests.recipes import metrics, training_part, write_tiny_recipe
from tests.sampling.stand_in import tasks_of

BEGIN = {"b": 3, "c": 5}


def shares(step, active=(True, True, True), **options):
    run = tasks_of({"a": 100, "b": 200, "c": 700})
    run.active = list(active)
    return Staged(begin=BEGIN, **options).expected_shares(run, step)


def test_a_task_has_no_rows_before_its_step_and_its_part_from_then_on():
    assert shares(0) == shares(2) == [1.0, 0.0, 0.0]
    assert shares(3) == shares(4) == pytest.approx([1 / 3, 2 / 3, 0.0])
    assert shares(5) == shares(99) == pytest.approx([0.1, 0.2, 0.7])


def test_tasks_that_are_in_are_mixed_by_temperature_and_cap():
    assert shares(5, temperature=1e9) == pytest.approx([1 / 3] * 3, rel=1e-6)
    assert shares(3, cap=100) == [0.5, 0.5, 0.0]
    assert shares(3, temperature=1e-3) == pytest.approx([0.0, 1.0, 0.0])


def test_where_none_has_begun_those_that_begin_first_are_in():
    assert shares(0, (False, True, True)) == [0.0, 1.0, 0.0]
    assert shares(0, (False, False, True)) == [0.0, 0.0, 1.0]


def test_epochs_count_the_rows_of_the_largest_task_as_if_all_were_in():
    run = tasks_of({"a": 64, "b": 64, "c": 128})
    run.sampler, run.recipe.training.max_steps = Staged(begin=BEGIN), None
    run.recipe.training.num_train_epochs = 2
    [stage] = plan_stages(run)
    assert stage.steps == 32  # 256 rows at 16 / 2 a step


def test_a_task_that_begins_after_the_last_step_is_told():
    run = tasks_of({"a": 100, "b": 200}, steps=5)
    run.sampler = Staged(begin={"a": 0, "b": 5})
    run.sampler.mtlcore_run_start(run)
    assert run.notes == [
        "warning: sampling staged: b begins after 5 steps, and the run has 5: it is not trained"
    ]


def test_unknown_tasks_and_steps_below_zero_are_errors(tiny_model, tmp_path):
    recipe = write_tiny_recipe(tmp_path, tiny_model, sampling="{name: staged, begin: {speling: 2}}")
    with pytest.raises(UserError, match="did you mean 'spelling'"):
        mtlcore.train(recipe)
    with pytest.raises(UserError, match=r"sampling\.begin\.spelling must be greater than or equal"):
        mtlcore.train(recipe, ["sampling.begin={spelling: -1}"])


def test_a_run_trains_its_tasks_from_their_steps_on(tiny_model, tmp_path):
    recipe = write_tiny_recipe(
        tmp_path,
        tiny_model,
        sampling="{name: staged, begin: {spelling: 1, definitions: 2}, temperature: 100}",
        training=training_part(tmp_path, max_steps=3, save_steps=3),
    )
    rows = [line["rows"] for line in metrics(mtlcore.train(recipe).folder)]
    seen = [{name for name, count in line.items() if count} for line in rows]
    assert seen == [
        {"sentiment"},
        {"sentiment", "spelling"},
        {"sentiment", "spelling", "definitions"},
    ]


def test_a_sampler_that_plans_no_rows_for_the_largest_task_cannot_count_its_epochs():
    run = tasks_of({"a": 64, "b": 128})
    run.sampler, run.recipe.training.max_steps = FirstAlone(), None
    run.recipe.training.num_train_epochs = 1
    with pytest.raises(
        UserError, match=r"'b', which has no share in .* of sampling 'all_a'"
    ) as found:
        plan_stages(run)
    assert found.value.problem.where == "training.num_train_epochs"


class FirstAlone(Sampler):
    """Draw the first task alone."""

    name = "all_a"

    def shares(self, run, step):
        return [1.0, 0.0]
