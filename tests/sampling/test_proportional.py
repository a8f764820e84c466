"""Examples-proportional mixing."""

import pytest

from mtlcore.testing import stand_in_run
from mtlcore_plugins.sampling.proportional import Proportional


def test_shares_are_the_sizes():
    assert Proportional().shares(stand_in_run({"a": 30, "b": 70}), 0) == [0.3, 0.7]


def test_a_task_beyond_the_cap_counts_as_the_cap():
    shares = Proportional(cap=10).shares(stand_in_run({"a": 5, "b": 1000, "c": 10}), 0)
    assert shares == pytest.approx([0.2, 0.4, 0.4])


def test_a_tiny_task_is_drawn_in_the_long_run():
    run = stand_in_run({"tiny": 1, "large": 999}, rows_per_step=4)
    drawn = [Proportional().mtlcore_plan_step(run, step) for step in range(5000)]
    assert 8 <= sum(counts[0] for counts in drawn) <= 35
    assert all(sum(counts) == 4 for counts in drawn)
