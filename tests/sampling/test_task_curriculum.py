"""Easy tasks first: the schedule, the order, stages, measured losses, state and errors."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mtlcore
from mtlcore.errors import UserError
from mtlcore.recipe_file import read_recipe
from mtlcore.run import Run
from mtlcore_plugins.sampling.task_curriculum import TaskCurriculum
from tests.recipes import metrics, training_part, write_tiny_recipe
from tests.sampling.stand_in import tasks_of

NAMES = ["a", "b", "c", "d"]
ORDER = ["c", "a", "d", "b"]


def begun(steps=100, order=ORDER, **options):
    run = tasks_of(dict.fromkeys(NAMES, 10), steps=steps)
    run.sampler = TaskCurriculum(order=order, **options)
    run.sampler.mtlcore_run_start(run)
    return run


def trained(run, step):
    shares = run.sampler.expected_shares(run, step)
    assert sum(shares) == pytest.approx(1)
    return {name for name, share in zip(NAMES, shares, strict=True) if share}


def test_tasks_come_in_from_easy_to_hard_when_competence_reaches_their_place():
    run = begun(schedule="linear")  # c = 0.1 + 0.9 t / 50
    seen = [trained(run, step) for step in range(100)]
    assert seen[0] == {"c"}
    for step in range(100):
        share = min(1, 0.1 + 0.9 * step / 50)
        assert seen[step] == set(ORDER[: math.ceil(4 * share - 1e-9)])
    assert "all are in after 50 steps" in run.notes[0]
    assert "from easy to hard: c, a, d, b" in run.notes[0]


@given(
    start=st.floats(0.01, 1),
    duration=st.floats(0.01, 1),
    schedule=st.sampled_from(["sqrt", "linear"]),
    active=st.lists(st.booleans(), min_size=4, max_size=4).filter(any),
)
def test_no_task_leaves_again_and_all_are_in_at_the_end(start, duration, schedule, active):
    run = begun(start=start, duration=duration, schedule=schedule)
    run.active = active
    seen = [trained(run, step) for step in range(101)]
    assert all(before <= after for before, after in pairwise(seen))
    assert len(seen[0]) >= 1
    assert seen[100] == {name for name, on in zip(NAMES, active, strict=True) if on}


def test_sqrt_lets_tasks_in_sooner_than_linear():
    counts = [
        [len(trained(begun(schedule=s), step)) for step in range(50)] for s in ("sqrt", "linear")
    ]
    assert all(one >= other for one, other in zip(*counts, strict=True))
    assert sum(counts[0]) > sum(counts[1])


def test_places_are_counted_among_the_tasks_that_are_trained():
    run = begun()
    run.active = [False, True, False, True]
    assert trained(run, 0) == {"d"}
    assert trained(run, 50) == {"b", "d"}


def test_before_the_run_begins_and_for_its_plan_all_are_in():
    run = tasks_of({"a": 10, "b": 30})
    run.sampler = TaskCurriculum()
    assert run.sampler.expected_shares(run, 0) == run.sampler.planned_shares(run) == [0.25, 0.75]
    run = begun()
    assert run.sampler.planned_shares(run) == [0.25] * 4
    assert run.sampler.expected_shares(run, 0) == [0.0, 0.0, 1.0, 0.0]


def test_a_run_that_is_resumed_with_more_steps_keeps_its_course():
    saved = begun(steps=10).sampler.state_dict()
    assert saved == {"steps": 10}
    run = tasks_of(dict.fromkeys(NAMES, 10), steps=1000)
    run.sampler = TaskCurriculum(order=ORDER)
    run.sampler.load_state_dict(saved)
    run.sampler.mtlcore_run_start(run)
    assert trained(run, 5) == {*NAMES}


@pytest.mark.parametrize("order", [["a", "b", "c"], ["a", "b", "c", "d", "d"]])
def test_an_order_must_name_every_task_once(order):
    with pytest.raises(UserError, match=r"sampling\.order must name every task once, found a, b"):
        TaskCurriculum(order=order).mtlcore_check(begun().recipe)
    with pytest.raises(UserError, match="'x'"):
        TaskCurriculum(order=["x", *NAMES]).mtlcore_check(begun().recipe)


# -- with a model ------------------------------------------------------------------------------


def test_tasks_are_ordered_by_the_losses_of_the_model_as_it_is(tiny_model, tmp_path):
    recipe = write_tiny_recipe(tmp_path, tiny_model, sampling="{name: task_curriculum, rows: 1000}")
    run = Run(read_recipe(recipe).recipe, tmp_path / "run")
    run.sampler.mtlcore_run_start(run)
    scores = run.evaluate("eval", outputs=False)
    expected = torch.tensor([scores.by_task[task.name].loss for task in run.tasks])
    torch.testing.assert_close(run.sampler.losses.float(), expected, rtol=1e-5, atol=0)
    easiest = min(run.tasks, key=lambda task: expected[task.index])
    assert run.sampler.expected_shares(run, 0)[easiest.index] == 1
    saved = run.sampler.state_dict()
    run.sampler.load_state_dict({**saved, "losses": -saved["losses"]})
    run.sampler.mtlcore_run_start(run)  # it measures no second time
    assert run.sampler.expected_shares(run, 0)[easiest.index] == 0


def test_a_run_trains_the_easiest_task_first_and_all_at_the_end(tiny_model, tmp_path):
    recipe = write_tiny_recipe(
        tmp_path,
        tiny_model,
        sampling="{name: task_curriculum, rows: 2, temperature: 100}",
        training=training_part(tmp_path, max_steps=4, save_steps=4),
    )
    run = mtlcore.train(recipe)
    seen = [[name for name, n in line["rows"].items() if n] for line in metrics(run.folder)]
    assert seen[0] == [run.tasks[int(run.sampler.losses.argmin())].name]
    assert len(seen[2]) == len(seen[3]) == 3
