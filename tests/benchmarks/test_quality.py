"""The quality study in its quick form: it resumes, chooses by eval score, and judges as it says."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import harness, quality
from benchmarks.quality import SINGLE, Study, Trial, Unit
from mtlcore.evaluation import bootstrap
from mtlcore.evaluation.bootstrap import Interval
from mtlcore.evaluation.kept import read_predictions
from mtlcore.plugins import PluginManager
from mtlcore.recipe import ComponentSpec
from tests.benchmarks.test_benchmarks import last_line, metrics

METHODS = ("equal", "pcgrad", "fixed")


@pytest.fixture(scope="module", autouse=True)
def few_methods() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quality, "QUICK", replace(quality.QUICK, methods=METHODS))
        yield


@pytest.fixture(scope="module")
def finished(few_methods: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a quick study that was done in one go."""
    folder = tmp_path_factory.mktemp("quality")
    quality.open_study(True, folder).go_on()
    return folder


@pytest.fixture
def study(finished: Path, tmp_path: Path) -> Study:
    """A copy of the finished study, to be changed."""
    shutil.copytree(finished, tmp_path / "study")
    return quality.open_study(True, tmp_path / "study")


def without_times(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one for one in results if "time" not in one["metric"]]


def test_a_study_of_several_sittings_gives_the_numbers_of_one(
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(quality, "check", lambda: None)
    folder = tmp_path / "study"
    command = ["--quick", "--json", "--record", "--folder", str(folder)]
    quality.run([*command, "--minutes", "0"])
    record = last_line(capsys, "quality")
    assert [(one["case"], one["value"]) for one in record["results"]] == [("study", 1)]
    assert not (tmp_path / "results").exists()

    quality.run([*command, "--status"])
    said = capsys.readouterr().out
    assert "1 of 17 units done" in said
    assert "next: single-task, learning rate 0.01, seed 0, eval rows" in said

    [kept] = folder.glob("*/result.json")
    before = kept.stat().st_mtime_ns
    quality.run(command)
    record = last_line(capsys, "quality")
    assert kept.stat().st_mtime_ns == before
    [file] = (tmp_path / "results").iterdir()
    assert json.loads(file.read_text()) == record

    quality.run(["--quick", "--json", "--folder", str(finished)])
    at_once = last_line(capsys, "quality")["results"]
    assert without_times(record["results"]) == without_times(at_once)
    assert {one["case"] for one in at_once} == {SINGLE, *METHODS, "study"}
    for method in METHODS:
        found = metrics(record, method)
        single = metrics(record, SINGLE)
        for task in quality.TASKS:
            gains = found.get(f"gain, {task}")
            assert (gains is None) == (single[task]["value"] == 0)
        assert found["delta_m"]["value"] == pytest.approx(
            np.mean([found[f"delta_m, seed {seed}"]["value"] for seed in (0, 1)])
        )
    assert metrics(record, "equal")["step time / equal"]["value"] == 1
    quality.run(["--quick", "--status", "--folder", str(folder)])
    assert "17 of 17 units done" in (said := capsys.readouterr().out)
    assert said.endswith("complete\n")


def test_processes_share_the_work_of_a_study(
    few_methods: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads stand for the processes: a lock of a file parts them alike."""
    done: list[str] = []
    both = threading.Barrier(2, timeout=60)

    def work(unit: Unit) -> None:
        done.append(unit.name)
        if len(done) <= 2:
            both.wait()  # each of the two is at a unit of its own
        unit.file.parent.mkdir(parents=True, exist_ok=True)
        unit.file.write_text(json.dumps({"overall": 0.5}))

    units = Study.units
    monkeypatch.setattr(
        Study,
        "units",
        lambda self: (one._replace(work=partial(work, one)) for one in units(self)),
    )
    with ThreadPoolExecutor(2) as pool:
        studies = [quality.open_study(True, tmp_path) for _ in range(2)]
        for ended in [pool.submit(study.go_on) for study in studies]:
            ended.result(timeout=120)
    assert sorted(done) == sorted({unit.name for unit in studies[0].units()})
    assert done[-1] == quality.TIMES
    assert studies[0].is_complete()


def test_the_learning_rate_is_that_of_the_best_eval_score(study: Study) -> None:
    low, high = study.candidates("pcgrad")
    for best in (high, low):
        for trial in (low, high):
            give_score(study, trial, 0.9 if trial == best else 0.1)
        assert study.chosen("pcgrad") == best
    give_score(study, high, 0.9)
    assert study.chosen("pcgrad") == low, "of equal scores the first counts"
    study.scores_file(high, "eval").unlink()
    assert study.chosen("pcgrad") is None


def test_fixed_weights_are_searched_at_the_learning_rate_of_equal(study: Study) -> None:
    low, high = study.candidates("equal")
    give_score(study, low, 0.1)
    give_score(study, high, 0.9)
    first, *drawn = study.candidates("fixed")
    assert first == high, "equal weights are among those tried"
    assert len(drawn) == study.size.searches
    assert all(trial.rate == high.rate and trial.seed == 0 for trial in drawn)
    assert all(abs(sum(trial.weights) - 1) < 0.003 for trial in drawn)
    assert drawn == study.candidates("fixed")[1:]


def give_score(study: Study, trial: Trial, score: float) -> None:
    file = study.scores_file(trial, "eval")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"overall": score}))


def test_the_interval_is_that_of_seeds_and_rows_drawn_alike(study: Study) -> None:
    """Restated: each draw of seeds and rows scores equal, pcgrad and the single-task models."""
    choices = study.choices()
    answers = {
        (method, seed, task): read_predictions(
            study.scores_file(replace(trial, seed=seed), "test").with_name(f"{task}.jsonl")
        )
        for method, trial in choices.items()
        for seed in study.size.seeds
        for task in quality.TASKS
    }
    plugins = PluginManager.load()
    evaluators = {
        task: plugins.create("evaluation", ComponentSpec(name=part["metrics"][0]), "")
        for task, part in study.tasks.items()
    }
    count, seeds = study.size.resamples, study.size.seeds

    def drawn_rows(rows: int, *key: str) -> list[list[int]]:
        return torch.cat(list(bootstrap.draws(rows, count, "quality", *key))).tolist()

    rows = {task: drawn_rows(8, task) for task in quality.TASKS}

    def score(method: str, seed: int, task: str, draw: list[int]) -> float:
        given = answers[method, seed, task]
        return float(evaluators[task].score([given[row] for row in draw]))

    counted = {
        seed: [t for t in quality.TASKS if score(SINGLE, seed, t, list(range(8))) > 0]
        for seed in seeds
    }
    differences = []
    for b, picked in enumerate(drawn_rows(len(seeds), "seeds")):
        found = []
        for seed in (seeds[place] for place in picked):
            gains = []
            for task in counted[seed]:
                of = {m: score(m, seed, task, rows[task][b]) for m in (SINGLE, "equal", "pcgrad")}
                gap = of["pcgrad"] - of["equal"]
                gains.append(100 * gap / of[SINGLE] if of[SINGLE] else np.nan)
            found.append(np.mean(gains))
        differences.append(np.mean(found))
    known = np.array(differences)[np.isfinite(differences)]
    results = {(one.case, one.metric): one.value for one in study.results()}
    low, high = np.quantile(known, [0.025, 0.975])
    assert low < high
    assert results["pcgrad", "delta_m - equal, low"] == pytest.approx(low)
    assert results["pcgrad", "delta_m - equal, high"] == pytest.approx(high)


def test_only_an_interval_above_0_is_a_recommendation() -> None:
    assert quality.verdict(Interval(0.1, 3.0, 100)) == "recommended"
    assert quality.verdict(Interval(-3.0, -0.1, 100)) == "worse"
    assert quality.verdict(Interval(-0.1, 3.0, 100)) == "no difference seen"
    assert quality.verdict(Interval(0.0, 3.0, 100)) == "no difference seen"
    assert quality.verdict(None) == "no difference seen"
    draws = torch.linspace(0, 1, 50, dtype=torch.float64)
    found = quality.interval_over([2 + draws, 1 + draws], [0 * draws, 0 * draws])
    assert found is not None
    assert 1 < found.low < found.high < 3


def test_runs_are_kept_by_what_they_depend_on(study: Study) -> None:
    trial = Trial("equal", 1e-3)
    folder = study.recipe(trial).output_dir
    others = [replace(trial, seed=1), replace(trial, rate=2e-3), Trial(SINGLE, 1e-3)]
    names = {study.recipe(other).output_dir.name for other in others}
    assert len(names | {folder.name}) == 4
    moved = shutil.copytree(study.folder, study.folder.with_name("moved"))
    assert quality.open_study(True, moved).recipe(trial).output_dir == moved / folder.name
    with (study.folder / "rows" / "spelling.test.jsonl").open("a") as file:
        file.write("\n")
    again = Study(study.size, study.folder, study.model, quality.RECIPE.parent / "data")
    assert again.recipe(trial).output_dir == folder, "rows are taken anew"
    with (study.model / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    again = Study(study.size, study.folder, study.model, quality.RECIPE.parent / "data")
    assert again.recipe(trial).output_dir != folder


@pytest.mark.parametrize("method", ["pcgrad", SINGLE])
def test_a_run_that_was_killed_is_run_again(tmp_path: Path, method: str) -> None:
    study = quality.open_study(True, tmp_path)
    trial = study.candidates(method)[0]
    file, folder = study.scores_file(trial, "eval"), study.recipe(trial).output_dir
    study.score(trial, "eval")
    before = json.loads(file.read_text())
    shutil.rmtree(folder / "checkpoints")
    (folder / "result.json").unlink()
    file.unlink()
    study.score(trial, "eval")
    assert json.loads(file.read_text()) == before
    assert (folder / "result.json").is_file()


def test_rows_are_taken_evenly(tmp_path: Path) -> None:
    source = tmp_path / "all.jsonl"
    source.write_text("".join(f"{number}\n" for number in range(10)))
    quality.take_rows(source, tmp_path / "new" / "some.jsonl", 4)
    assert (tmp_path / "new" / "some.jsonl").read_text().split() == ["0", "2", "5", "7"]
    quality.take_rows(source, tmp_path / "every.jsonl", 99)
    assert (tmp_path / "every.jsonl").read_text() == source.read_text()


def test_the_check_sees_fixed_weights_that_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    quality.check()
    recipe = Study.recipe

    def skewed(self: Study, trial: Trial) -> Any:
        weights = (1.0, 0.0, 0.0, 0.0) if trial.weights else ()
        return recipe(self, replace(trial, weights=weights))

    monkeypatch.setattr(Study, "recipe", skewed)
    with pytest.raises(AssertionError):
        quality.check()
