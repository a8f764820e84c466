"""Class-balanced rows: shares, passes, resuming, what is a class, errors."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtlcore.errors import UserError
from mtlcore_plugins.sampling.class_balanced import ClassBalanced
from tests.sampling.stand_in import draw, flat, rows_of, run_of, stage_of, started

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=30)


@given(labels=LABELS, rounds=st.integers(1, 12))
def test_every_round_holds_each_class_once(labels, rounds):
    run = run_of(rows_of(labels))
    classes = len(set(labels))
    drawn = flat(draw(ClassBalanced(), run, [classes] * rounds))
    for start in range(0, len(drawn), classes):
        found = [labels[row] for row in drawn[start : start + classes]]
        assert sorted(found) == sorted(set(labels))


@given(labels=LABELS)
def test_every_pass_over_a_class_holds_each_of_its_rows_once(labels):
    run = run_of(rows_of(labels))
    drawn = flat(draw(ClassBalanced(), run, [len(set(labels)) * len(labels) * 2]))
    for label in set(labels):
        mine = [row for row in drawn if labels[row] == label]
        size = labels.count(label)
        for start in range(0, len(mine) - size + 1, size):
            assert len(set(mine[start : start + size])) == size


def test_passes_and_rounds_have_orders_drawn_anew():
    labels = [0] * 20 + [1] * 20
    drawn = flat(draw(ClassBalanced(), run_of(rows_of(labels)), [200]))
    assert len({tuple(r for r in drawn[i : i + 40] if r < 20) for i in range(0, 200, 40)}) == 5
    assert {tuple(labels[row] for row in drawn[i : i + 2]) for i in range(0, 200, 2)} == {
        (0, 1),
        (1, 0),
    }


@given(labels=LABELS, counts=st.lists(st.integers(0, 9), max_size=8))
def test_the_sequence_does_not_depend_on_the_size_of_the_steps(labels, counts):
    rows = rows_of(labels)
    whole = flat(draw(ClassBalanced(), run_of(rows), [sum(counts)]))
    assert flat(draw(ClassBalanced(), run_of(rows), counts)) == whole


@given(labels=LABELS, start=st.integers(0, 60))
def test_a_resumed_run_goes_on_with_the_same_rows(labels, start):
    rows = rows_of(labels)
    whole = flat(draw(ClassBalanced(), run_of(rows), [start + 20]))
    assert flat(draw(ClassBalanced(), run_of(rows), [7, 13], start=start)) == whole[start:]
    assert ClassBalanced().state_dict() == {}


def test_seeds_have_orders_of_their_own():
    rows = rows_of([0, 1] * 20)
    first, second = (draw(ClassBalanced(), run_of(rows, seed=seed), [40]) for seed in (0, 1))
    assert first != second


def test_a_rare_class_comes_as_often_as_a_common_one():
    labels = [0] * 97 + [1] * 2 + [2]
    drawn = flat(draw(ClassBalanced(), run_of(rows_of(labels)), [30] * 10))
    assert Counter(labels[row] for row in drawn) == {0: 100, 1: 100, 2: 100}
    assert Counter(drawn)[99] == 100


@pytest.mark.parametrize("labels", [[0], [3] * 7])
def test_one_class_is_a_plain_shuffle_and_said_to_be(labels):
    run = run_of(rows_of(labels))
    drawn = flat(draw(ClassBalanced(), run, [2 * len(labels)]))
    assert sorted(drawn) == sorted([*range(len(labels))] * 2)
    assert "one group alone is the same as plain shuffling" in run.notes[0]


def test_the_values_of_a_column_are_classes_whatever_their_type():
    values = [1, "1", 1.0, " 1 ", "two", True]
    run = run_of(rows_of(fields=[{"kind": value} for value in values]))
    drawn = flat(draw(ClassBalanced(column="kind"), run, [12]))
    counts = Counter(drawn)
    assert sum(counts[row] for row in range(4)) == counts[4] == counts[5] == 4
    assert "3 groups, 1 of 'true', 1 of 'two', 4 of '1'" in run.notes[0]


def test_a_class_of_multiple_choice_is_the_place_of_the_right_answer():
    options = [("x", "y"), ("u", "v"), ("p", "q")]
    run = run_of(rows_of([0, 1, 0], options=options))
    drawn = flat(draw(ClassBalanced(), run, [8]))
    assert Counter(drawn)[1] == 4
    assert "1 of 'answer 001', 2 of 'answer 000'" in run.notes[0]


def test_a_group_for_every_row_is_said_to_change_nothing():
    run = run_of(rows_of(fields=[{"id": number} for number in range(5)]))
    started(ClassBalanced(column="id"), run)
    assert "a group for every row is the same as plain shuffling" in run.notes[0]


def test_rows_without_a_label_are_an_error_that_lists_the_columns():
    run = run_of(rows_of([0, None], fields=[{"text": "x", "kind": 1}] * 2))
    with pytest.raises(UserError, match=r"tasks.a.rows: row 1 of a.jsonl has no label") as error:
        started(ClassBalanced(), run)
    assert "theirs are: kind, text" in error.value.problem.fix


def test_an_unknown_column_is_an_error_with_the_nearest_spelling():
    run = run_of(rows_of(fields=[{"gender": "f"}]))
    with pytest.raises(UserError, match="no column 'gendr'") as error:
        started(ClassBalanced(column="gendr"), run)
    assert error.value.problem.fix == "did you mean 'gender'?"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (None, "null"),
        (float("nan"), "the number nan"),
        ("  ", "a text"),
        ([1], "a list"),
        ({}, "an object"),
    ],
)
def test_a_value_that_is_no_class_is_an_error_with_its_row(value, found):
    run = run_of(rows_of(fields=[{"kind": 1}, {"kind": value}, {"kind": value}]))
    with pytest.raises(UserError, match=f"in 2 of 3 rows of a.jsonl; row 1 has {found}"):
        started(ClassBalanced(column="kind"), run)


def test_a_row_that_lacks_the_column_is_an_error():
    run = run_of(rows_of(fields=[{"kind": 1}, {"other": 2}]))
    with pytest.raises(UserError, match="row 1 has no such column"):
        started(ClassBalanced(column="kind"), run)


def test_rows_that_no_stage_trains_on_are_not_looked_at():
    run = run_of(rows_of([None]))
    run.recipe.stages = [stage_of("other")]
    started(ClassBalanced(), run)
    run.recipe.stages.append(stage_of("a"))
    with pytest.raises(UserError, match="has no label"):
        started(ClassBalanced(), run)
