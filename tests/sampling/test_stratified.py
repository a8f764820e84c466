"""Stratified rows: shares of every step, emphasis, clusters, state, errors."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtlcore.data.batches import deal
from mtlcore.errors import UserError
from mtlcore_plugins.sampling.stratified import Stratified, quotas
from tests.sampling.stand_in import draw, flat, rows_of, run_of, started

SHARES = st.lists(st.integers(1, 500), min_size=1, max_size=9).map(
    lambda sizes: [size / sum(sizes) for size in sizes]
)
COUNTS = st.lists(st.integers(0, 20), max_size=40)
TEXTS = [
    *["the dog ran to the cat and the dog barked"] * 3,
    *["interest rates and bond markets fell on monday"] * 5,
    *["add flour, butter and sugar to the bowl"] * 4,
]


@given(shares=SHARES, counts=COUNTS)
def test_every_step_rounds_each_share_down_or_up(shares, counts):
    drawn = [0] * len(shares)
    for count in counts:
        takes = quotas(shares, drawn, count)
        assert sum(takes) == count
        for take, share in zip(takes, shares, strict=True):
            assert math.floor(count * share + 1e-9) <= take <= math.ceil(count * share - 1e-9)
        drawn = [before + take for before, take in zip(drawn, takes, strict=True)]


@given(shares=SHARES, counts=COUNTS)
def test_what_a_step_rounds_off_later_ones_make_good(shares, counts):
    drawn = [0] * len(shares)
    for count in counts:
        takes = quotas(shares, drawn, count)
        drawn = [before + take for before, take in zip(drawn, takes, strict=True)]
        for have, share in zip(drawn, shares, strict=True):
            assert abs(have - sum(drawn) * share) < 2


def test_a_rare_stratum_gets_its_turn_in_steps_of_one_row():
    labels = [0] * 49 + [1]
    drawn = flat(draw(Stratified(), run_of(rows_of(labels)), [1] * 500))
    assert drawn.count(49) == 10


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=30),
    counts=st.lists(st.integers(0, 12), max_size=12),
    emphasis=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_rows_of_a_stratum_come_in_passes(labels, counts, emphasis):
    drawn = flat(draw(Stratified(emphasis=emphasis), run_of(rows_of(labels)), counts))
    for label in set(labels):
        mine = [row for row in drawn if labels[row] == label]
        size = labels.count(label)
        for start in range(0, len(mine), size):
            part = mine[start : start + size]
            assert len(set(part)) == len(part)


def test_without_emphasis_every_row_comes_equally_often():
    labels = [0] * 13 + [1] * 7 + [2]
    drawn = Counter(flat(draw(Stratified(), run_of(rows_of(labels)), [7] * 30)))
    assert set(drawn.values()) <= {9, 10, 11}


@pytest.mark.parametrize(
    ("emphasis", "expected"), [(0.0, [80, 16, 4]), (0.5, [57, 25, 18]), (1.0, [34, 33, 33])]
)
def test_emphasis_goes_from_the_shares_of_the_rows_to_equal_ones(emphasis, expected):
    labels = [0] * 80 + [1] * 16 + [2] * 4
    drawn = flat(draw(Stratified(emphasis=emphasis), run_of(rows_of(labels)), [10] * 10))
    seen = Counter(labels[row] for row in drawn)
    assert [seen[label] for label in range(3)] == pytest.approx(expected, abs=1)


def test_micro_batches_are_as_mixed_as_the_step():
    labels = [0] * 50 + [1] * 25 + [2] * 25
    [step] = draw(Stratified(), run_of(rows_of(labels)), [16])
    for hand in deal(step, 4):
        assert Counter(labels[row] for row in hand) == {0: 2, 1: 1, 2: 1}


@pytest.mark.parametrize("by", ["label", "kind", "cluster"])
@pytest.mark.parametrize("stop", [0, 1, 4, 9])
def test_a_resumed_run_goes_on_with_the_same_rows(by, stop):
    kinds = [{"kind": index % 5 == 0} for index in range(12)]
    rows = rows_of([0, 1, 2] * 4, fields=kinds, prompts=TEXTS)
    counts = [3, 1, 5, 0, 2, 8, 8, 1, 13, 4]
    whole = draw(Stratified(by=by, clusters=3, emphasis=0.3), run_of(rows), counts)
    run, chooser = run_of(rows), Stratified(by=by, clusters=3, emphasis=0.3)
    assert draw(chooser, run, counts[:stop]) == whole[:stop]
    state = chooser.state_dict()
    draw(chooser, run, [5])  # the saved state is a copy
    resumed = Stratified(by=by, clusters=3, emphasis=0.3)
    resumed.load_state_dict(state)
    assert resumed.state_dict().keys() == state.keys()
    assert draw(resumed, run, counts[stop:], start=sum(counts[:stop])) == whole[stop:]


def test_clusters_are_saved_and_not_found_anew():
    rows = rows_of(prompts=TEXTS)
    chooser = Stratified(by="cluster", clusters=3)
    started(chooser, run_of(rows))
    state = chooser.state_dict()
    state["clusters:a"] = torch.tensor([0, 1, 2] * 4)  # others than KMeans would find
    resumed = Stratified(by="cluster", clusters=3)
    resumed.load_state_dict(state)
    run = run_of(rows)
    started(resumed, run)
    assert "3 groups, 4 of 'cluster 0', 4 of 'cluster 1', 4 of 'cluster 2'" in run.notes[0]


def test_clusters_are_of_texts_on_one_subject():
    run = run_of(rows_of(prompts=TEXTS))
    [step] = draw(Stratified(by="cluster", clusters=3, emphasis=1.0), run, [6])
    assert sorted(Counter(TEXTS[row] for row in step).values()) == [2, 2, 2]


def test_clusters_do_not_depend_on_the_seed():
    found = []
    for seed in (0, 1):
        chooser = Stratified(by="cluster", clusters=2)
        started(chooser, run_of(rows_of(prompts=TEXTS), seed=seed))
        found.append(chooser.state_dict()["clusters:a"].tolist())
    assert found[0] == found[1]


@pytest.mark.parametrize("texts", [["one"], ["same words"] * 7, ["a b", "b a", "c d"]])
def test_there_are_no_more_clusters_than_different_texts(texts):
    run = run_of(rows_of(prompts=texts))
    drawn = flat(draw(Stratified(by="cluster"), run, [len(texts)]))
    assert sorted(drawn) == list(range(len(texts)))


def test_scripts_without_spaces_are_clustered_by_their_characters():
    texts = ["猫和狗在花园里", "狗和猫在花园外", "股票市场今天下跌", "今天股票市场上涨"]
    run = run_of(rows_of(prompts=texts))
    started(Stratified(by="cluster", clusters=2), run)
    assert "2 groups, 2 of 'cluster 0', 2 of 'cluster 1'" in run.notes[0]


def test_a_format_without_labels_may_have_a_column_of_that_name():
    run = run_of(rows_of(fields=[{"label": "x"}, {"label": "y"}] * 3))
    [step] = draw(Stratified(), run, [4])
    assert Counter(row % 2 for row in step) == {0: 2, 1: 2}


@pytest.mark.parametrize("count", [1, 7])
def test_one_stratum_is_a_plain_shuffle_and_said_to_be(count):
    run = run_of(rows_of([0] * count))
    assert sorted(flat(draw(Stratified(), run, [1] * count))) == list(range(count))
    assert "one group alone" in run.notes[0]


def test_prompts_without_words_are_an_error():
    with pytest.raises(UserError, match=r"tasks.a.rows.by: the prompts have no words"):
        started(Stratified(by="cluster"), run_of(rows_of(prompts=["?!", "..."])))


def test_an_unknown_column_is_an_error():
    with pytest.raises(UserError, match="no column 'labl'"):
        started(Stratified(by="labl"), run_of(rows_of([0, 1], fields=[{"label": 0}] * 2)))


def test_a_state_of_other_rows_is_an_error():
    chooser = Stratified()
    draw(chooser, run_of(rows_of([0, 1, 2])), [3])
    resumed = Stratified()
    resumed.load_state_dict(chooser.state_dict())
    with pytest.raises(UserError, match="knows 3 strata of task 'a', its train rows make 2"):
        started(resumed, run_of(rows_of([0, 1])))
    chooser = Stratified(by="cluster")
    started(chooser, run_of(rows_of(prompts=TEXTS)))
    resumed = Stratified(by="cluster")
    resumed.load_state_dict(chooser.state_dict())
    with pytest.raises(UserError, match="knows 12 rows of task 'a', its train rows make 11"):
        started(resumed, run_of(rows_of(prompts=TEXTS[1:])))
