"""Equal mixing."""

import pytest

from mtlcore.testing import stand_in_run
from mtlcore_plugins.sampling.equal import Equal


@pytest.mark.parametrize("sizes", [[1], [1, 1000], [5, 7, 11]])
def test_every_task_has_the_same_share(sizes):
    run = stand_in_run({str(index): size for index, size in enumerate(sizes)})
    assert Equal().shares(run, 0) == [1 / len(sizes)] * len(sizes)


def test_tasks_of_other_stages_leave_their_share_to_the_rest():
    run = stand_in_run({"a": 1, "b": 2, "c": 3}, rows_per_step=6)
    run.is_active = lambda task: task.name != "b"
    assert Equal().expected_shares(run, 0) == [0.5, 0.0, 0.5]
    assert Equal().mtlcore_plan_step(run, 0) == [3, 0, 3]
