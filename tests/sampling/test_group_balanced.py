"""Group-balanced rows: shares of groups, of labels within them, resuming, errors."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtlcore.errors import UserError
from mtlcore_plugins.sampling.group_balanced import GroupBalanced, spread
from tests.sampling.stand_in import draw, flat, rows_of, run_of, started


def groups(*sizes, labels=()):
    """Rows of groups "0", "1", ... of these sizes."""
    fields = [{"group": str(group)} for group, size in enumerate(sizes) for _ in range(size)]
    return rows_of(labels, fields=fields)


def chooser(**options):
    return GroupBalanced(column="group", **options)


@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    counts=st.lists(st.integers(0, 9), max_size=6),
)
def test_groups_are_drawn_equally_often_in_every_prefix(sizes, counts):
    rows = groups(*sizes)
    drawn = flat(draw(chooser(min_group=1), run_of(rows), counts))
    seen = Counter()
    for row in drawn:
        seen[rows[row].fields["group"]] += 1
        assert max(seen.values()) - min(seen[str(group)] for group in range(len(sizes))) <= 1


@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=40), seed=st.integers(0, 99))
def test_one_pass_takes_each_row_once_and_spreads_the_labels(labels, seed):
    order = spread(range(len(labels)), labels, torch.Generator().manual_seed(seed))
    assert sorted(order) == list(range(len(labels)))
    classes = len(set(labels))
    for stop in range(1, len(order) + 1):
        for label in set(labels):
            found = sum(labels[row] == label for row in order[:stop])
            assert abs(found - labels.count(label) * stop / len(labels)) <= classes


def test_labels_keep_their_shares_within_a_group():
    labels = [0] * 30 + [1] * 10 + [0] * 6 + [1] * 6
    rows = groups(40, 12, labels=labels)
    drawn = flat(draw(chooser(), run_of(rows), [240]))  # 120 of each: 3 and 10 passes
    seen = Counter((rows[row].fields["group"], labels[row]) for row in drawn)
    assert seen == {("0", 0): 90, ("0", 1): 30, ("1", 0): 60, ("1", 1): 60}
    for start in range(0, 240, 24):  # a quarter of each 12 rows of group 0, give or take one
        part = [row for row in drawn[start : start + 24] if row < 40]
        assert 2 <= sum(labels[row] for row in part) <= 4


def test_each_pass_has_another_order():
    drawn = flat(draw(chooser(), run_of(groups(10, 10, labels=[0, 1] * 10)), [100]))
    first = [row for row in drawn if row < 10]
    assert len({tuple(first[i : i + 10]) for i in range(0, 50, 10)}) == 5


@given(start=st.integers(0, 80), seed=st.integers(0, 3))
def test_a_resumed_run_goes_on_with_the_same_rows(start, seed):
    rows = groups(11, 13, labels=[0, 1, 1] * 8)
    whole = flat(draw(chooser(), run_of(rows, seed=seed), [start + 12]))
    assert flat(draw(chooser(), run_of(rows, seed=seed), [5, 7], start=start)) == whole[start:]


def test_one_group_is_a_plain_shuffle_and_said_to_be():
    run = run_of(groups(11))
    assert sorted(flat(draw(chooser(), run, [11]))) == list(range(11))
    assert "one group alone" in run.notes[0]


def test_a_group_of_3_rows_is_an_error_with_column_counts_and_fix():
    run = run_of(groups(3, 40, 9))
    with pytest.raises(UserError) as error:
        started(chooser(), run)
    problem = error.value.problem
    assert problem.where == "tasks.a.rows"
    assert "column 'group' has groups of fewer than 10 rows in a.jsonl" in problem.message
    assert "3 of '0', 9 of '2' (of 3 groups, 52 rows)" in problem.message
    assert "set min_group to 3" in problem.fix


def test_a_lower_limit_lets_a_small_group_in():
    started(chooser(min_group=3), run_of(groups(3, 40)))


def test_a_missing_column_is_an_error():
    with pytest.raises(UserError, match="no column 'sex'") as error:
        started(GroupBalanced(column="sex"), run_of(groups(20, 20)))
    assert "group" in error.value.problem.fix
