"""Rows before and after training: which are chosen, and that "before" is the base model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import mtlcore
from mtlcore.components import Evaluator
from mtlcore.errors import UserError
from mtlcore.evaluation import review
from mtlcore.evaluation.predictions import Prediction
from mtlcore_plugins.evaluation.chrf import ChrF
from mtlcore_plugins.evaluation.exact_match import ExactMatch
from mtlcore_plugins.evaluation.macro_f1 import MacroF1
from mtlcore_plugins.evaluation.rouge_l import RougeL


def predictions(outputs: Sequence[str], losses: Sequence[float]) -> list[Prediction]:
    return [
        Prediction("t", row, f"prompt {row}", "right", output, loss, 2)
        for row, (output, loss) in enumerate(zip(outputs, losses, strict=True))
    ]


class Correlation(Evaluator):
    """A metric that one row does not have."""

    name = "correlation"

    def score(self, predictions: Sequence[Prediction]) -> float:
        if len(predictions) < 2:
            raise ValueError("needs two rows")
        return 0.5


def chosen(lines: list[dict[str, object]], reason: str) -> list[object]:
    return [line["row"] for line in lines if reason in line["why"]]  # type: ignore[operator]


def test_worst_best_and_most_changed_rows_by_score_then_loss_then_text() -> None:
    before = predictions(["right", "x", "wrong", "x", "same"], [1, 1, 1, 1, 1])
    after = predictions(["no", "right", "wrung", "x", "same"], [5, 1, 2, 3, 9])
    lines = review._lines("t", [ExactMatch()], before, after, 2)
    assert set(chosen(lines, "worst")) == {4, 0}  # of four rows with score 0 the highest losses
    assert set(chosen(lines, "best")) == {1, 2}
    # Row 0 lost and row 1 gained its match; rows 3 and 4 are as before.
    assert set(chosen(lines, "changed")) == {0, 1}
    wide = review._lines("t", [ExactMatch()], before, after, 5)
    assert set(chosen(wide, "changed")) == {0, 1, 2}
    line = next(line for line in lines if line["row"] == 0)
    assert (line["before"], line["after"], line["target"]) == ("right", "no", "right")
    assert (line["score_before"], line["score_after"], line["metric"]) == (1.0, 0.0, "exact_match")
    assert (line["loss_before"], line["loss_after"]) == (0.5, 2.5)


@pytest.mark.parametrize("score", ["right", "wrong"])
def test_rows_that_all_score_the_same_are_neither_worst_nor_best(score: str) -> None:
    before = predictions(["right", "x", "wrong"], [1, 1, 1])
    after = predictions([score] * 3, [1, 3, 2])
    lines = review._lines("t", [ExactMatch()], before, after, 2)
    assert chosen(lines, "worst") == chosen(lines, "best") == []
    assert chosen(lines, review.SAME) == [1, 2]  # the highest losses
    assert str(review.table("t", lines).title) == "t: exact_match by row; all rows score the same"


@pytest.mark.parametrize("metric", [ExactMatch(), ChrF(), RougeL()], ids=lambda m: m.name)
def test_a_row_is_scored_by_its_metric_where_one_row_has_it(metric: Evaluator) -> None:
    rows = predictions(["right", "rig", ""], [1, 2, 3])
    name, scores = review.row_scores(metric, rows)
    assert name == metric.name
    assert scores == pytest.approx([metric.score([row]) for row in rows])


@pytest.mark.parametrize("metric", [None, Correlation(), MacroF1()])
def test_else_it_is_scored_by_minus_its_loss(metric: Evaluator | None) -> None:
    rows = predictions(["right", "rig"], [1, 4])
    assert review.row_scores(metric, rows) == (review.LOSS, [-0.5, -2.0])


def test_without_adapters_the_model_is_the_base_model(tiny_run: Path) -> None:
    run = mtlcore.load(tiny_run)
    base = AutoModelForCausalLM.from_pretrained(run.recipe.model.name_or_path).eval()
    before = {name: value.clone() for name, value in run.model.adapter_state().items()}
    trained = run.predict("test")
    with review.without_adapters(run.model):
        plain = run.predict("test")
    for name, value in run.model.adapter_state().items():
        assert torch.equal(value, before[name]), name
    for task in run.tasks:
        assert task.test is not None
        for example, row in zip(task.test, plain[task.name], strict=True):
            ids, labels = torch.tensor([example.input_ids]), torch.tensor([example.labels])
            with torch.no_grad():
                expected = base(input_ids=ids, labels=labels).loss * row.tokens
            assert row.loss_sum == pytest.approx(float(expected), rel=1e-5)
        assert plain[task.name] != trained[task.name]


def test_adapters_come_back_when_something_fails_in_between(tiny_run: Path) -> None:
    run = mtlcore.load(tiny_run)
    before = {name: value.clone() for name, value in run.model.adapter_state().items()}
    with pytest.raises(RuntimeError), review.without_adapters(run.model):
        raise RuntimeError
    for name, value in run.model.adapter_state().items():
        assert torch.equal(value, before[name]), name


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def test_a_review_is_written_line_by_line(run: Path) -> None:
    lines = review.review(run, rows=2)
    written = (run / review.REVIEW).read_text().splitlines()
    assert [json.loads(line) for line in written] == lines
    assert {line["task"] for line in lines} == {"sentiment", "spelling", "definitions"}
    kept = (run / "predictions" / "test" / "spelling.jsonl").read_text().splitlines()
    after = {json.loads(line)["row"]: json.loads(line)["output"] for line in kept}
    for line in lines:
        assert (line["against"], line["split"]) == ("base", "test")
        if line["task"] == "spelling":
            assert line["after"] == after[line["row"]]
    for task in ("sentiment", "spelling", "definitions"):
        mine = [line for line in lines if line["task"] == task]
        same, worst, best = (len(chosen(mine, why)) for why in (review.SAME, "worst", "best"))
        assert (same, worst, best) in ((0, 2, 2), (2, 0, 0))


def test_a_run_against_itself_has_no_changed_row(run: Path) -> None:
    lines = review.review(run, against=run, tasks=["spelling"])
    assert lines
    assert chosen(lines, "changed") == []


def test_a_subset_of_rows_is_answered_by_both(run: Path) -> None:
    lines = review.review(run, max_rows=2, rows=5, tasks=["definitions"])
    assert len({line["row"] for line in lines}) == 2
    assert not (run / "predictions").exists()


def test_bad_options_are_refused(run: Path) -> None:
    with pytest.raises(UserError, match="--rows: --rows 0 shows nothing"):
        review.review(run, rows=0)
    with pytest.raises(UserError, match="did you mean 'spelling'"):
        review.review(run, tasks=["speling"])
    with pytest.raises(UserError, match="--max-rows"):
        review.review(run, against=run, max_rows=3)
    with pytest.raises(UserError, match="holds no run"):
        review.review(run, against=run / "nowhere")


def test_control_characters_of_rows_do_not_reach_the_terminal() -> None:
    assert review._short("a\x1b[31mred\nb\tc é") == "a\\x1b[31mred\nb\tc é"
