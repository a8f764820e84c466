"""Competence-based curriculum: the curve, what is drawn when, resuming, difficulties, errors."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtlcore.errors import UserError
from mtlcore.evaluation.predictions import predict
from mtlcore.recipe_file import read_recipe
from mtlcore.run import Run
from mtlcore_plugins.sampling.curriculum import Curriculum
from tests.recipes import TASKS, write_tiny_recipe
from tests.sampling.stand_in import draw, flat, rows_of, run_of, stage_of, started

SCHEDULES = st.sampled_from(["sqrt", "linear"])


@pytest.mark.parametrize("schedule", ["sqrt", "linear"])
@pytest.mark.parametrize("start", [0.01, 0.1, 1.0])
def test_competence_goes_from_the_start_to_one(schedule, start):
    chooser = Curriculum(start=start, schedule=schedule)
    assert chooser.competence(0, 100) == pytest.approx(start)
    assert chooser.competence(100, 100) == chooser.competence(500, 100) == 1
    curve = [chooser.competence(draw, 100) for draw in range(101)]
    assert curve == sorted(curve)


def test_competence_is_that_of_the_paper():
    assert Curriculum(start=0.1).competence(25, 100) == pytest.approx(math.sqrt(0.2575))
    assert Curriculum(start=0.1, schedule="linear").competence(25, 100) == pytest.approx(0.325)


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=30),
    schedule=SCHEDULES,
    start=st.sampled_from([0.001, 0.2, 1.0]),
)
def test_no_row_comes_before_its_time(lengths, schedule, start):
    run = run_of(rows_of(lengths=lengths), steps=20, rows_per_step=5)  # 100 draws, all in at 50
    chooser = Curriculum(start=start, schedule=schedule)
    for place, row in enumerate(flat(draw(chooser, run, [5] * 20))):
        allowed = max(1, math.ceil(chooser.competence(place, 50) * len(lengths) - 1e-9))
        assert lengths[row] <= sorted(lengths)[allowed - 1]


def test_rows_that_are_allowed_are_drawn_alike():
    run = run_of(rows_of(lengths=range(1, 41)), steps=1000, rows_per_step=8)
    chooser = Curriculum(start=0.25, schedule="linear", duration=1.0)
    drawn = flat(draw(chooser, run, [8] * 1000))
    seen, expected = Counter(drawn), [0.0] * 40
    for place in range(8000):
        allowed = chooser.allowed(place, 40, 8000)
        for row in range(allowed):
            expected[row] += 1 / allowed
    for row in range(40):
        assert seen[row] == pytest.approx(expected[row], abs=12)


def test_after_the_course_every_pass_holds_every_row_once():
    run = run_of(rows_of(lengths=range(1, 8)), steps=100, rows_per_step=7)
    chooser = Curriculum(duration=0.1)  # 70 draws
    draw(chooser, run, [70])
    _, _, at = chooser.prepared(run, run.tasks[0]).place
    draw(chooser, run, [7 - at])  # to the end of the pass
    steps = draw(chooser, run, [7] * 5)
    assert all(sorted(step) == list(range(7)) for step in steps)
    assert len({tuple(step) for step in steps}) > 1


@given(
    count=st.integers(1, 20),
    counts=st.lists(st.integers(0, 30), max_size=8),
    stop=st.integers(0, 8),
    schedule=SCHEDULES,
)
def test_rows_depend_neither_on_the_steps_nor_on_a_stop_between(count, counts, stop, schedule):
    rows = rows_of(lengths=range(1, count + 1))
    whole = flat(draw(Curriculum(schedule=schedule), run_of(rows, steps=10), [sum(counts)]))
    run, chooser = run_of(rows, steps=10), Curriculum(schedule=schedule)
    first = flat(draw(chooser, run, counts[:stop]))
    resumed = Curriculum(schedule=schedule)
    resumed.load_state_dict(chooser.state_dict())
    after = run_of(rows, steps=10)
    assert first + flat(draw(resumed, after, counts[stop:], start=len(first))) == whole


def test_a_run_that_is_resumed_with_more_steps_keeps_its_course():
    rows = rows_of(lengths=range(1, 30))
    chooser = started(Curriculum(), run_of(rows, steps=10))
    resumed = Curriculum()
    resumed.load_state_dict(chooser.state_dict())
    run = run_of(rows, steps=1000)
    started(resumed, run)
    assert "from the easiest 3 of 29 rows to all after 40 draws" in run.notes[0]


def test_the_draws_of_all_stages_with_the_task_count():
    run = run_of(rows_of(lengths=[1, 2]), rows_per_step=8)
    run.recipe.stages = [stage_of("a"), stage_of("b"), stage_of("a")]
    run.recipe.training.num_train_epochs = 1
    run.is_active = lambda task: run.active[task.index]
    started(Curriculum(duration=1.0), run)
    assert "after 160 draws" in run.notes[0]
    assert run.active == [True]


def test_rows_equally_hard_are_let_in_in_an_order_of_chance():
    firsts = set()
    for seed in range(5):
        run = run_of(rows_of(lengths=[4] * 50), seed=seed)
        firsts.add(tuple(sorted(flat(draw(Curriculum(start=0.1), run, [5])))))
        assert "warning: all are equally hard" in run.notes[0]
    assert len(firsts) == 5


def test_one_row_is_drawn_again_and_again():
    run = run_of(rows_of(lengths=[3]))
    assert flat(draw(Curriculum(), run, [1, 4])) == [0] * 5
    assert "equally hard" not in run.notes[0]


@pytest.mark.parametrize("values", [[3, 1.5, -2, 10], ["3", " 1.5", "-2e0", "10"]])
def test_a_column_of_numbers_is_a_difficulty(values):
    run = run_of(rows_of(fields=[{"level": value} for value in values]))
    assert flat(draw(Curriculum(difficulty="level", start=0.01), run, [1])) == [2]
    assert Counter(flat(draw(Curriculum(difficulty="level", start=0.5), run, [2], start=0))) == {
        1: 1,
        2: 1,
    }


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("hard", "the text 'hard'"),
        (None, "null"),
        (True, "true or false"),
        (float("inf"), "the number inf"),
        ([1], "a list"),
    ],
)
def test_a_value_that_is_no_number_is_an_error_with_its_row(value, found):
    run = run_of(rows_of(fields=[{"level": 1}, {"level": value}]))
    with pytest.raises(UserError) as error:
        started(Curriculum(difficulty="level"), run)
    problem = error.value.problem
    assert problem.where == "tasks.a.rows"
    assert problem.message == f"column 'level' must hold numbers; row 1 of a.jsonl has {found}"


def test_an_unknown_difficulty_is_an_error_with_the_nearest_spelling():
    with pytest.raises(UserError, match="no column 'lenght'") as error:
        started(Curriculum(difficulty="lenght"), run_of(rows_of(fields=[{"level": 1}])))
    assert error.value.problem.fix == "did you mean 'length'?"


# -- with a model ------------------------------------------------------------------------------

BY_LOSS = TASKS.replace(
    "    metrics: [exact_match]\n",
    "    metrics: [exact_match]\n    rows: {name: curriculum, difficulty: loss, start: 0.2}\n",
)


def test_the_models_own_loss_is_a_difficulty(tiny_model, tmp_path):
    recipe = write_tiny_recipe(tmp_path, tiny_model, tasks=BY_LOSS)
    run = Run(read_recipe(recipe).recipe, tmp_path / "run")
    task = run.task("spelling")
    chooser = run.components["tasks.spelling.rows:curriculum"]
    chooser.mtlcore_run_start(run)
    losses = [p.loss_sum / p.tokens for p in predict(run, task, task.train, outputs=False)]
    easiest = sorted(range(len(losses)), key=losses.__getitem__)[: math.ceil(0.2 * len(losses))]
    assert sorted(chooser.choose(run, 0, task, 1)) <= easiest
    ranks = chooser.prepared(run, task).ranks
    assert sorted(range(len(losses)), key=ranks.__getitem__)[: len(easiest)] == easiest
    saved = chooser.state_dict()["losses:spelling"]
    assert saved.dtype == torch.float64
    assert saved.shape == (24,)
    resumed = Curriculum(difficulty="loss")
    resumed.load_state_dict({"draws:spelling": 9, "losses:spelling": saved[:5]})
    with pytest.raises(UserError, match="losses of 5 rows of task 'spelling', which has 24"):
        resumed.prepared(run, task)
