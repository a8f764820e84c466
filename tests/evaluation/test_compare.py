"""Comparing runs: delta_m by hand, paired intervals, and runs that cannot be compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import mtlcore
from mtlcore.errors import UserError
from mtlcore.evaluation.compare import COMPARISON, compare
from mtlcore.evaluation.kept import read_predictions
from mtlcore.evaluation.predictions import Prediction, write_predictions


def answer(folder: Path, task: str, correct: list[int], losses: float = 1.0) -> None:
    """Let a run have answered the rows in `correct` rightly, and the others wrongly."""
    path = folder / "predictions" / "test" / f"{task}.jsonl"
    found = []
    for row in read_predictions(path):
        right = row.row in correct
        wrong = None if row.label is None else 1 - row.label
        values = {
            **vars(row),
            "output": row.target if right else "?",
            "choice": row.label if right else wrong,
            "loss_sum": losses * row.tokens,
        }
        found.append(Prediction(**values))
    write_predictions(path, found)


@pytest.fixture(scope="session")
def scored_run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with predictions on its test rows: 6 of each task."""
    folder = Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("scored") / "run"))
    mtlcore.load(folder).evaluate("test", save_as="test")
    return folder


@pytest.fixture
def runs(scored_run: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two runs: the first has 5, 4, 3 of 6 rows right, the second 4, 5 and 2."""
    folders = tuple(Path(shutil.copytree(scored_run, tmp_path / name)) for name in ("mine", "base"))
    for folder, counts in zip(folders, ((5, 4, 3), (4, 5, 2)), strict=True):
        for task, count in zip(("sentiment", "spelling", "definitions"), counts, strict=True):
            answer(folder, task, list(range(count)))
    return folders[0], folders[1]


def change_recipe(folder: Path, old: str, new: str) -> None:
    path = folder / "recipe.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_delta_m_is_the_mean_over_tasks_of_the_mean_relative_gain_of_their_metrics(
    runs: tuple[Path, Path],
) -> None:
    found = compare(runs[0], [runs[1]])
    [other] = found["others"]
    metrics = other["tasks"]["sentiment"]["metrics"]
    accuracy, f1 = metrics["accuracy"], metrics["macro_f1"]
    assert (accuracy["run"], accuracy["other"]) == pytest.approx((5 / 6, 4 / 6))
    assert accuracy["difference"] == pytest.approx(1 / 6)
    gain = 50 * (accuracy["run"] / accuracy["other"] - 1 + f1["run"] / f1["other"] - 1)
    gains = [gain, 100 * (4 / 5 - 1), 100 * (3 / 2 - 1)]
    assert [task["gain"] for task in other["tasks"].values()] == pytest.approx(gains)
    assert other["delta_m"] == pytest.approx(sum(gains) / 3)
    assert other["lost"] == ["spelling"]
    overall = other["overall"]
    assert overall["run"] == pytest.approx((5 + 4 + 3) / 18)
    assert overall["difference"] == pytest.approx(1 / 18)
    assert overall["low"] < overall["difference"] < overall["high"]
    assert json.loads((runs[0] / COMPARISON).read_text()) == found
    assert compare(runs[0], [runs[1]]) == found  # seeded


def test_a_run_against_itself_gains_nothing_at_all(runs: tuple[Path, Path]) -> None:
    [other] = compare(runs[0], [runs[0]])["others"]
    assert other["delta_m"] == 0
    assert (other["delta_m_interval"]["low"], other["delta_m_interval"]["high"]) == (0, 0)
    for task in other["tasks"].values():
        for metric in task["metrics"].values():
            # paired: the same rows are drawn for both
            assert (metric["difference"], metric["low"], metric["high"]) == (0, 0, 0)


def test_a_score_of_zero_has_no_relative_gain_and_that_is_said(runs: tuple[Path, Path]) -> None:
    answer(runs[1], "spelling", [])
    [other] = compare(runs[0], [runs[1]])["others"]
    assert other["tasks"]["spelling"]["gain"] is None
    assert other["delta_m_tasks"] == ["sentiment", "definitions"]
    kept = [other["tasks"][name]["gain"] for name in other["delta_m_tasks"]]
    assert other["delta_m"] == pytest.approx(sum(kept) / 2)
    assert "spelling: exact_match of" in other["notes"][0]
    assert "undefined" in other["notes"][0]
    # Two of six rows are right in definitions: (4/6)^6 = 9% of the draws have none of them.
    left_out = 1000 - other["delta_m_interval"]["resamples"]
    assert 50 < left_out < 140
    assert f"leaves out {left_out} of 1000 draws" in other["notes"][1]
    [nothing] = compare(runs[0], [runs[1]], tasks=["spelling"])["others"]
    assert (nothing["delta_m"], nothing["delta_m_interval"]) == (None, None)


def test_a_task_without_a_metric_is_compared_by_its_loss_where_less_is_better(
    runs: tuple[Path, Path],
) -> None:
    for folder in runs:
        change_recipe(folder, "metrics:\n    - exact_match\n", "metrics: []\n")
    answer(runs[0], "spelling", [], losses=1.5)
    answer(runs[1], "spelling", [], losses=2.0)
    [other] = compare(runs[0], [runs[1]], tasks=["spelling"], resamples=50)["others"]
    loss = other["tasks"]["spelling"]["metrics"]["loss"]
    assert (loss["run"], loss["other"]) == pytest.approx((1.5, 2.0))
    assert loss["greater_is_better"] is False
    assert other["delta_m"] == pytest.approx(25.0)
    assert other["delta_m_interval"]["low"] == pytest.approx(25.0)


def test_auxiliary_tasks_are_shown_and_do_not_count(runs: tuple[Path, Path]) -> None:
    for folder in runs:
        text = (folder / "recipe.yaml").read_text()
        before, found, after = text.partition("  spelling:")
        (folder / "recipe.yaml").write_text(
            before + found + after.replace("role: main", "role: auxiliary", 1)
        )
    [other] = compare(runs[0], [runs[1]])["others"]
    assert other["tasks"]["spelling"]["gain"] == pytest.approx(-20)
    assert other["tasks"]["spelling"]["role"] == "auxiliary"
    assert other["delta_m_tasks"] == ["sentiment", "definitions"]
    assert other["lost"] == []


def test_without_resamples_there_are_no_intervals(runs: tuple[Path, Path]) -> None:
    [other] = compare(runs[0], [runs[1]], resamples=0)["others"]
    assert other["delta_m_interval"] is None
    assert other["tasks"]["spelling"]["metrics"]["exact_match"]["low"] is None


def test_answers_of_other_weights_or_of_fewer_rows_are_made_anew(
    runs: tuple[Path, Path], scored_run: Path
) -> None:
    def outputs(folder: Path) -> list[str]:
        rows = read_predictions(folder / "predictions" / "test" / "definitions.jsonl")
        return [row.output for row in rows]

    real = outputs(scored_run)
    scores = runs[0] / "predictions" / "test" / "scores.json"
    scores.write_text(json.dumps({**json.loads(scores.read_text()), "step": 2}))
    path = runs[1] / "predictions" / "test" / "definitions.jsonl"
    write_predictions(path, read_predictions(path)[:2])
    compare(runs[0], [runs[1]])
    assert outputs(runs[0]) == outputs(runs[1]) == real


# -- bad input ---------------------------------------------------------------------------------


def test_runs_with_other_rows_are_refused_by_name(runs: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = (runs[1] / "recipe.yaml").read_text()
    source = Path(next(line for line in recipe.splitlines() if "spelling.test" in line).split()[1])
    changed = tmp_path / "changed.jsonl"
    lines = source.read_text().splitlines(keepends=True)
    for rows, said in ((lines[::-1], "row 0 of task 'spelling'"), (lines[:4], "has 6 and 4 test")):
        changed.write_text("".join(rows))
        shutil.rmtree(runs[1] / "predictions")
        (runs[1] / "recipe.yaml").write_text(recipe.replace(str(source), str(changed)))
        with pytest.raises(UserError, match="were not asked the same rows") as caught:
            compare(runs[0], [runs[1]])
        assert said in str(caught.value)
        assert not (runs[0] / COMPARISON).exists()


@pytest.mark.parametrize("missing_in", [0, 1])
def test_runs_with_other_tasks_are_refused_and_the_common_ones_are_named(
    missing_in: int, runs: tuple[Path, Path]
) -> None:
    change_recipe(runs[missing_in], "  spelling:", "  orthography:")
    with pytest.raises(UserError, match="has no task") as caught:
        compare(runs[0], [runs[1]])
    assert "--task sentiment --task definitions" in str(caught.value)
    found = compare(runs[0], [runs[1]], tasks=["definitions"])
    assert list(found["others"][0]["tasks"]) == ["definitions"]


def test_an_unknown_task_is_refused(runs: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match="did you mean 'spelling'"):
        compare(runs[0], [runs[1]], tasks=["speling"])


def test_a_folder_without_a_run_is_refused(runs: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        compare(runs[0], [tmp_path])
    with pytest.raises(UserError, match="no run to compare with"):
        compare(runs[0], [])


def test_a_damaged_file_of_predictions_is_named_with_its_line(runs: tuple[Path, Path]) -> None:
    path = runs[1] / "predictions" / "test" / "spelling.jsonl"
    text = path.read_text()
    bad: list[Any] = ["{", "[]", '{"task": "spelling"}']
    for line in bad:
        path.write_text(f"{text}{line}\n")
        with pytest.raises(UserError, match=r"spelling\.jsonl:7: is no prediction"):
            compare(runs[0], [runs[1]])


def test_kept_predictions_read_back_as_they_were_written(tmp_path: Path) -> None:
    rows = [
        Prediction("t", 0, "p\u2028", "é", "\n", 1.5, 2, 1, 0, ("a", "b"), (-1.0, -2.0), {"x": 1})
    ]
    write_predictions(tmp_path / "t.jsonl", rows)
    assert read_predictions(tmp_path / "t.jsonl") == rows
