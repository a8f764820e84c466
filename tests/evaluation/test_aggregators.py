"""The overall score: four ways to make one number of the tasks' scores."""

from __future__ import annotations

import random
import statistics
from types import SimpleNamespace

import pytest

from mtlcore.components import Aggregator
from mtlcore.errors import UserError
from mtlcore.evaluation.scores import Scores, TaskScore
from mtlcore.testing import plugin_manager, stand_in_run
from mtlcore_plugins.evaluation.geometric_mean import GeometricMean
from mtlcore_plugins.evaluation.harmonic_mean import HarmonicMean
from mtlcore_plugins.evaluation.mean import Mean
from mtlcore_plugins.evaluation.worst import Worst

ALL: list[type[Aggregator]] = [Mean, Worst, GeometricMean, HarmonicMean]


def drawn(tasks: int, seed: int = 0) -> dict[str, float]:
    draw = random.Random(seed)
    return {f"task{index}": draw.uniform(0.01, 1) for index in range(tasks)}


@pytest.mark.parametrize("cls", ALL)
def test_one_task_is_its_own_score(cls: type[Aggregator]) -> None:
    assert cls().aggregate({"a": 0.37}) == pytest.approx(0.37, rel=1e-12)


@pytest.mark.parametrize("cls", ALL)
def test_equal_scores_are_the_overall_score(cls: type[Aggregator]) -> None:
    for value in (0.0, 1e-10, 0.5, 1.0):
        found = cls().aggregate(dict.fromkeys("abcde", value))
        assert found == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("cls", ALL)
def test_the_result_lies_between_the_worst_and_the_best_and_never_falls_when_a_task_gains(
    cls: type[Aggregator],
) -> None:
    for tasks in (2, 7):
        values = drawn(tasks, seed=tasks)
        before = cls().aggregate(values)
        assert min(values.values()) <= before <= max(values.values())
        for name in values:
            assert cls().aggregate({**values, name: values[name] + 0.1}) >= before


def test_the_means_equal_the_standard_library_and_keep_their_order() -> None:
    values = drawn(5)
    numbers = list(values.values())
    found = [cls().aggregate(values) for cls in (Worst, HarmonicMean, GeometricMean, Mean)]
    assert found == pytest.approx(
        [
            min(numbers),
            statistics.harmonic_mean(numbers),
            statistics.geometric_mean(numbers),
            statistics.fmean(numbers),
        ],
        rel=1e-12,
    )
    assert found == sorted(found)


@pytest.mark.parametrize("cls", [GeometricMean, HarmonicMean])
def test_one_task_at_zero_makes_it_zero_and_below_zero_is_refused(cls: type[Aggregator]) -> None:
    assert cls().aggregate({"a": 0.0, "b": 1.0}) == 0.0
    with pytest.raises(UserError, match=r"overall: .*the score -0\.1 of task 'b'"):
        cls().aggregate({"a": 0.5, "b": -0.1})


def test_the_mean_takes_weights_by_task() -> None:
    weighted = Mean(weights={"a": 3.0})
    assert weighted.aggregate({"a": 1.0, "b": 0.0}) == 0.75
    assert Mean(weights={"a": 0.0}).aggregate({"a": 1.0, "b": 0.2}) == 0.2


def test_a_weight_of_an_unknown_task_is_refused_at_the_start() -> None:
    run = stand_in_run({"spelling": 3})
    Mean(weights={"spelling": 2.0}).mtlcore_check(run.recipe)
    with pytest.raises(UserError, match="did you mean 'spelling'"):
        Mean(weights={"speling": 2.0}).mtlcore_check(run.recipe)


def test_weights_that_are_all_zero_are_refused() -> None:
    with pytest.raises(UserError, match=r"overall\.weights of a are all 0"):
        Mean(weights={"a": 0.0}).aggregate({"a": 0.5})


def test_a_negative_weight_is_refused_by_the_recipe() -> None:
    spec = SimpleNamespace(name="mean", options={"weights": {"a": -1.0}})
    with pytest.raises(UserError, match="greater than or equal to 0"):
        plugin_manager(Mean).create("overall", spec, "overall")


def test_scores_use_the_aggregator_on_main_tasks_with_a_metric() -> None:
    def score(value: float | None, *, auxiliary: bool = False) -> TaskScore:
        return TaskScore(1.0, 2, {}, None if value is None else "m", value, auxiliary)

    tasks = {"a": score(0.5), "b": score(0.1), "c": score(None), "d": score(0.0, auxiliary=True)}
    assert Scores("test", tasks).overall == pytest.approx(0.3)
    assert Scores("test", tasks, Worst().aggregate).overall == 0.1
    assert Scores("test", tasks, GeometricMean().aggregate).overall == pytest.approx(0.05**0.5)
    assert Scores("test", {"c": tasks["c"]}, Worst().aggregate).overall is None
