"""The default row chooser: epochs, resuming, independence of tasks."""

import pytest

from mtlcore.testing import plugin_manager, stand_in_run
from mtlcore_plugins.sampling.shuffled import Shuffled


def draw(counts, *, rows=7, seed=0, start=0, chooser=None):
    """Rows of task "a" in steps of the given counts; `start` rows were drawn before."""
    run = stand_in_run({"a": rows, "b": rows}, seed=seed)
    run.rows_drawn[0] = start
    chooser = chooser or Shuffled()
    drawn = []
    for step, count in enumerate(counts):
        rows_of_step = chooser.choose(run, step, run.tasks[0], count)
        assert len(rows_of_step) == count
        run.rows_drawn[0] += count
        drawn += rows_of_step
    return drawn


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_each_epoch_holds_every_row_once(rows):
    drawn = draw([3] * 7, rows=rows)
    for start in range(0, len(drawn) - rows + 1, rows):
        assert sorted(drawn[start : start + rows]) == list(range(rows))


def test_each_epoch_has_another_order():
    drawn = draw([20] * 5, rows=20)
    epochs = {tuple(drawn[start : start + 20]) for start in range(0, 100, 20)}
    assert len(epochs) == 5


@pytest.mark.parametrize("counts", [[1] * 30, [4] * 7 + [2], [30], [0, 13, 0, 17], [7, 7, 7, 9]])
def test_the_sequence_does_not_depend_on_the_size_of_the_steps(counts):
    assert draw(counts) == draw([5] * 6)


@pytest.mark.parametrize("start", range(0, 22, 3))
def test_a_resumed_run_goes_on_with_the_same_rows(start):
    assert draw([1] * (22 - start), start=start) == draw([22])[start:]


def test_a_kept_order_is_not_used_for_another_epoch_or_size():
    chooser = Shuffled()
    assert draw([14], chooser=chooser) == draw([14])
    assert draw([3], chooser=chooser, start=2) == draw([3], start=2)
    assert draw([5], chooser=chooser, rows=5) == draw([5], rows=5)


def test_tasks_and_seeds_have_orders_of_their_own():
    run = stand_in_run({"a": 30, "b": 30})
    a, b = (Shuffled().choose(run, 0, task, 30) for task in run.tasks)
    assert a != b
    assert draw([30], rows=30, seed=0) != draw([30], rows=30, seed=1)


def test_the_hook_serves_the_tasks_of_the_chooser():
    run = stand_in_run({"a": 5, "b": 5})
    choosers = [Shuffled(), Shuffled()]
    for chooser, task in zip(choosers, run.tasks, strict=True):
        chooser.tasks = (task.name,)
    choose = plugin_manager(*choosers).hook.mtlcore_choose_rows
    for task in run.tasks:
        assert sorted(choose(run=run, step=0, task=task, count=5)) == [0, 1, 2, 3, 4]
