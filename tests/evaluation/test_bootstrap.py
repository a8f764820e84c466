"""Bootstrap intervals: seeded, right in known cases, the same by every way of computing them."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from mtlcore.components import Evaluator
from mtlcore.errors import UserError
from mtlcore.evaluation import bootstrap
from mtlcore.evaluation.predictions import Prediction
from mtlcore.evaluation.scores import Scores, TaskScore
from mtlcore_plugins.evaluation.accuracy import Accuracy
from mtlcore_plugins.evaluation.chrf import ChrF
from mtlcore_plugins.evaluation.exact_match import ExactMatch
from mtlcore_plugins.evaluation.macro_f1 import MacroF1
from mtlcore_plugins.evaluation.rouge_l import RougeL
from mtlcore_plugins.evaluation.worst import Worst

METRICS = [Accuracy(), MacroF1(), ExactMatch(), ChrF(), RougeL()]
WORDS = ["the", "cat", "sat", "on", "a", "mat", "house", "river", "blue", "mountain"]


def predictions(count: int, *, seed: int = 0, classes: int = 3) -> list[Prediction]:
    """Rows with texts, half of them right, and labels with choices, some missing."""
    draw = random.Random(seed)
    found = []
    for row in range(count):
        target = " ".join(draw.choices(WORDS, k=draw.randint(1, 8)))
        output = draw.choice([target, " ".join(draw.choices(WORDS, k=draw.randint(0, 8)))])
        label = draw.randrange(classes)
        choice = draw.choice([label, draw.randrange(classes), None])
        found.append(
            Prediction(
                "t", row, "", target, output, draw.random(), draw.randint(1, 9), label, choice
            )
        )
    return found


class Slow(Evaluator):
    """Accuracy without a way of its own to resample; undefined where only one class is drawn."""

    name = "slow"

    def score(self, predictions: Sequence[Prediction]) -> float:
        if len({row.label for row in predictions}) < 2:
            raise ValueError("one class only")
        return sum(row.choice == row.label for row in predictions) / len(predictions)


class Deaf(Evaluator):
    """Answers the hook alone."""

    name = "deaf"

    def mtlcore_evaluate(self, run: Any, task: Any, predictions: Any) -> dict[str, float]:
        return {"deaf": 0.5}


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
@pytest.mark.parametrize("count", [1, 13])
def test_resampled_scores_are_the_scores_of_the_resampled_rows(
    metric: Evaluator, count: int
) -> None:
    rows = predictions(count)
    [draws] = bootstrap.draws(count, 17, "key")
    expected = [metric.score([rows[row] for row in draw]) for draw in draws.tolist()]
    assert metric.resample(rows, draws) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert bootstrap.is_quick(metric)


def test_draws_depend_on_their_key_and_not_on_how_they_are_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = torch.cat(list(bootstrap.draws(11, 50, 3, "t")))
    assert whole.shape == (50, 11)
    assert set(whole.flatten().tolist()) == set(range(11))
    monkeypatch.setattr(bootstrap, "CHUNK", 40)
    assert torch.equal(torch.cat(list(bootstrap.draws(11, 50, 3, "t"))), whole)
    assert not torch.equal(torch.cat(list(bootstrap.draws(11, 50, 4, "t"))), whole)


def test_the_interval_of_an_accuracy_is_that_of_the_binomial() -> None:
    rows = [Prediction("t", i, "", "", "", 0.0, 1, 0, int(i % 4 == 0)) for i in range(400)]
    found = bootstrap.interval(bootstrap.resample(Accuracy(), rows, 2000, 0, "t"))
    assert found is not None
    half = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert found.low == pytest.approx(0.75 - half, abs=0.006)
    assert found.high == pytest.approx(0.75 + half, abs=0.006)
    assert found.resamples == 2000


def test_the_interval_covers_the_truth_about_95_times_in_100() -> None:
    covered = 0
    for trial in range(200):
        draw = random.Random(trial)
        rows = [
            Prediction("t", i, "", "", "", 0.0, 1, 0, int(draw.random() < 0.3)) for i in range(100)
        ]
        found = bootstrap.interval(bootstrap.resample(Accuracy(), rows, 200, trial))
        assert found is not None
        covered += found.low <= 0.7 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_draws_without_a_score_are_left_out_and_counted() -> None:
    rows = [Prediction("t", i, "", "", "", 0.0, 1, int(i == 0), 0) for i in range(6)]
    values = bootstrap.resample(Slow(), rows, 100, "t")
    undefined = int(values.isnan().sum())
    assert 10 < undefined < 50  # (5/6)^6 = 33%
    found = bootstrap.interval(values)
    assert found is not None
    assert found.resamples == 100 - undefined
    assert bootstrap.interval(torch.tensor([math.nan, math.nan, 1.0])) is None
    assert bootstrap.interval(torch.empty(0)) is None


def test_a_metric_that_gives_no_score_has_no_interval() -> None:
    assert bootstrap.interval(bootstrap.resample(Deaf(), predictions(5), 40, "t")) is None


def test_slow_metrics_are_resampled_less_often_by_default_only() -> None:
    assert bootstrap.count_for([Accuracy(), ChrF()], "auto") == bootstrap.RESAMPLES
    assert bootstrap.count_for([Accuracy(), Slow()], "auto") == bootstrap.SLOW_RESAMPLES
    assert bootstrap.count_for([Slow()], 500) == 500
    assert bootstrap.count_for([Slow()], 0) == 0


def test_too_few_resamples_for_percentiles_are_refused() -> None:
    with pytest.raises(UserError, match="--resamples: 39 resamples give no 95% interval"):
        bootstrap.require_resamples(39)


def scores_of(rows: dict[str, list[Prediction]], auxiliary: str = "") -> Scores:
    metric = Accuracy()
    return Scores(
        "test",
        {
            name: TaskScore(
                1.0, len(some), {"accuracy": metric.score(some)}, "accuracy", metric.score(some),
                name == auxiliary,
            )
            for name, some in rows.items()
        },
    )  # fmt: skip


def test_intervals_of_tasks_and_of_the_overall_score_are_seeded_and_shown() -> None:
    rows = {"a": predictions(40, seed=1), "b": predictions(30, seed=2)}
    metrics = {name: [Accuracy()] for name in rows}
    plain = scores_of(rows)
    found = bootstrap.with_intervals(plain, metrics, rows, resamples=100, seed=5)
    again = bootstrap.with_intervals(plain, metrics, rows, resamples=100, seed=5)
    other = bootstrap.with_intervals(plain, metrics, rows, resamples=100, seed=6)
    assert found == again != other
    overall, single = found.overall_interval, found.by_task["a"].interval
    assert overall is not None
    assert single is not None
    assert overall.low < (plain.overall or 0) < overall.high
    # The mean of two tasks varies less than one of them.
    assert overall.high - overall.low < single.high - single.low
    assert found.flat()["eval_a_accuracy_low"] == single.low
    assert found.flat()["eval_overall_high"] == overall.high
    shown = found.to_json()
    assert shown["tasks"]["a"]["interval"] == {"metric": "accuracy", **single.to_json()}
    assert shown["overall_interval"] == overall.to_json()
    assert bootstrap.with_intervals(plain, metrics, rows, resamples=0) == plain
    assert "interval" not in str(plain.to_json())


def test_the_table_shows_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    rows = {"a": predictions(40, seed=1)}
    found = bootstrap.with_intervals(scores_of(rows), {"a": [Accuracy()]}, rows, resamples=40)
    Console(width=120).print(found.table())
    out = capsys.readouterr().out
    assert f"accuracy {found.overall:.3f} {found.overall_interval}" in out
    assert f"overall {found.overall:.3f} {found.overall_interval}" in out
    assert "95% interval" in out


def test_the_overall_interval_follows_the_aggregator_and_leaves_auxiliary_tasks_out() -> None:
    rows = {"a": predictions(40, seed=1), "b": predictions(30, seed=2), "c": predictions(9, seed=3)}
    metrics = {name: [Accuracy()] for name in rows}
    plain = scores_of(rows, auxiliary="c")
    worst = Scores("test", plain.by_task, Worst().aggregate)
    found = bootstrap.with_intervals(worst, metrics, rows, resamples=300, seed=0)
    by_hand = torch.stack(
        [bootstrap.resample(Accuracy(), rows[name], 300, 0, name) for name in ("a", "b")]
    ).amin(0)
    assert found.overall_interval == bootstrap.interval(by_hand)
    assert found.by_task["c"].interval is not None


def test_losses_are_resampled_by_token() -> None:
    rows = predictions(7)
    [draws] = bootstrap.draws(7, 40, "t")
    expected = [
        sum(rows[i].loss_sum for i in draw) / sum(rows[i].tokens for i in draw)
        for draw in draws.tolist()
    ]
    assert bootstrap.resample_losses(rows, 40, "t").tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_thousand_resamples_of_100_rows_take_about_a_second_at_most(metric: Evaluator) -> None:
    rows = predictions(100)
    started = time.perf_counter()
    bootstrap.resample(metric, rows, 1000, "t")
    assert time.perf_counter() - started < 3  # measured: at most 0.2 s; machines are busy


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_a_draw_in_which_a_task_has_no_score_has_no_overall_one(order: tuple[str, str]) -> None:
    drawn = {"a": torch.tensor([math.nan, 0.2]), "b": torch.tensor([0.5, 0.5])}
    scores = Scores("test", {}, Worst().aggregate)
    found = bootstrap._overall(scores, drawn, order)
    assert math.isnan(found[0])
    assert found[1] == pytest.approx(0.2)
