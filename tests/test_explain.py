"""Attributions of tokens: completeness, linear functions, and the deletion test."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import mtlcore
from mtlcore import explain
from mtlcore.errors import UserError
from mtlcore.evaluation.predictions import sum_losses
from mtlcore.explain import Question, attribute
from mtlcore.run import Run
from tests.auditing.planted import planted_recipe
from tests.recipes import write_tiny_recipe

ALL = list(explain.METHODS)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that has learned which word tells the label."""
    recipe = planted_recipe(tmp_path_factory.mktemp("planted"), mend=False)
    return mtlcore.train(recipe, ["training.max_steps=50"])


# -- functions that are known ------------------------------------------------------------------

X = torch.tensor([[[1.0, 2.0], [0.0, -1.0], [3.0, 0.5]]], dtype=torch.float64)
B = torch.full_like(X, 0.5)


@pytest.mark.parametrize("method", ALL)
def test_scores_of_a_linear_function_are_its_terms(method: str) -> None:
    weight = torch.tensor([[1.0, -2.0], [3.0, 0.5], [0.0, 4.0]], dtype=torch.float64)
    found = attribute(lambda e: (e * weight).sum((1, 2)) + 7.0, X, B, method=method)
    # captum's weights of the steps are float32 numbers: measured error 1.2e-8
    assert found.scores == pytest.approx(((X - B)[0] * weight).sum(-1).tolist(), abs=1e-7)
    assert found.complete


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_steps_are_doubled_until_the_sum_is_complete(scale: float) -> None:
    def steep(e: Tensor) -> Tensor:
        return scale * (60 * (e.sum((1, 2)) - 2.7)).sigmoid()

    found = attribute(steep, X, B)
    assert found.complete
    assert found.delta <= 1e-3 * abs(found.value - found.baseline_value)
    fixed = attribute(steep, X, B, n_steps=4)
    assert fixed.n_steps == 4
    assert fixed.delta > found.delta


def test_a_token_that_is_its_baseline_has_no_score() -> None:
    x = X.clone()
    x[0, 1] = B[0, 1]
    found = attribute(lambda e: e.prod(-1).prod(-1), x, B)
    assert found.scores[1] == 0.0
    assert found.complete


# -- models ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "row"), [("sentiment", 0), ("spelling", 3), ("definitions", 5)])
def test_scores_of_a_model_are_complete(tiny_run: Path, task: str, row: int) -> None:
    run = mtlcore.load(tiny_run)
    question = Question(run, run.task(task), run.rows(task, "test")[row])
    found = attribute(question, question.embed(question.given), question.embed(question.baseline))
    assert found.complete
    assert found.delta <= 1e-3 * max(abs(found.value - found.baseline_value), 1e-2)
    special = set(range(len(question.given))) - set(question.free)
    assert all(found.scores[place] == 0 for place in special)


@pytest.mark.parametrize("attention", ["flat", "padded"])
def test_scores_are_complete_in_float64_with_and_without_padding(
    tiny_model: Path, tmp_path: Path, attention: str
) -> None:
    recipe = write_tiny_recipe(tmp_path, tiny_model)
    run = mtlcore.train(
        recipe,
        ["training.max_steps=1", "model.dtype=float64", f"model.attn_implementation={attention}"],
    )
    for task in ("sentiment", "spelling"):
        question = Question(run, run.task(task), run.rows(task, "test")[0])
        found = attribute(
            question, question.embed(question.given), question.embed(question.baseline)
        )
        assert found.delta <= 1e-3 * abs(found.value - found.baseline_value)


@pytest.mark.parametrize("task", ["sentiment", "spelling"])
def test_the_value_is_what_the_model_says_of_the_row(tiny_run: Path, task: str) -> None:
    run = mtlcore.load(tiny_run)
    example = run.rows(task, "test")[1]
    question = Question(run, run.task(task), example)
    value = float(question(question.embed(question.given))[0].detach())
    [prediction] = [p for p in run.predict("test", [task])[task] if p.row == example.row]
    if example.options:
        scores = torch.tensor(prediction.scores)
        assert question.choice == prediction.choice
        assert question.target == prediction.output
        others = torch.cat([scores[: question.choice], scores[question.choice + 1 :]])
        expected = float(scores[question.choice] - others.logsumexp(0))
    else:
        expected = -prediction.loss_sum
        assert expected == pytest.approx(-sum_losses(run, run.task(task), [example])[0])
    assert value == pytest.approx(expected, abs=1e-4)


def test_a_head_a_text_and_calibrated_answers_can_be_explained(
    tiny_model: Path, tmp_path: Path
) -> None:
    rows = [
        {"text": f"the {a} is", "label": b, "one": "hot", "two": "cold or warm"}
        for a in ("sun", "stone", "sea", "cup")
        for b in ("one", "two")
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {"train": str(file), "eval": str(file), "test": str(file)}
    choice = {"options": ["one", "two"], "template": "{{ text }}:", "calibration": "so:"}
    tasks = {
        "headed": {**own, "format": "classification", "head": {"name": "classification"}},
        "plain": {**own, "format": "text"},
        "chosen": {**own, "format": {"name": "multiple_choice", **choice}},
    }
    recipe = {
        "model": {"name_or_path": str(tiny_model)},
        "tasks": tasks,
        "bottleneck": {"shared": 4, "own": 2},
        "training": {"output_dir": str(tmp_path / "run"), "max_steps": 2},
    }
    run = mtlcore.load(mtlcore.train(recipe).folder)
    predictions = run.predict("test")
    for task in tasks:
        found = explain.explain(run, task, 3)
        assert found.attribution.complete
        prediction = predictions[task][3]
        if prediction.options:
            other, chosen = sorted(prediction.scores)
            assert found.attribution.value == pytest.approx(chosen - other, abs=1e-4)
            assert found.target == prediction.output
        else:
            assert found.attribution.value == pytest.approx(-prediction.loss_sum, abs=1e-4)
            assert len(found.tokens) == len(run.rows(task, "test")[3].input_ids)


# -- whether the scores are right --------------------------------------------------------------


@pytest.mark.parametrize("method", ALL)
def test_tokens_with_high_scores_matter_more_than_others(trained: Run, method: str) -> None:
    tops, randoms = [], []
    for row in range(5):
        found = explain.explain(trained, "people", row, method=method)
        assert found.deletion is not None
        tops.append(found.deletion.top)
        randoms.append(found.deletion.random)
    assert sum(tops) > 2 * sum(randoms)


def test_the_planted_shortcut_has_the_highest_score(trained: Run) -> None:
    shortcut, others = [], []
    for row in range(5):
        found = explain.explain(trained, "people", row)
        assert found.tokens[0] in ("he", "she")
        shortcut.append(found.scores[0])
        others.append(max(found.scores[1:]))
    assert sum(shortcut) > 2 * sum(others)


def test_an_explanation_is_a_line_of_the_runs_file(trained: Run) -> None:
    found = explain.explain(trained, "people", 7, split="eval", n_steps=16)
    last = (trained.folder / "explanations.jsonl").read_text().splitlines()[-1]
    line = json.loads(last)
    assert line == json.loads(json.dumps(found.to_json()))
    assert (line["task"], line["row"], line["split"]) == ("people", 7, "eval")
    assert len(line["tokens"]) == len(line["scores"])
    assert line["n_steps"] == 16
    again = explain.explain(trained, "people", 7, split="eval", n_steps=16)
    assert again == found


def test_explaining_leaves_gradients_and_embeddings_alone(trained: Run) -> None:
    embedding = trained.model.backbone.get_input_embeddings()
    weights = [p for _, p in trained.model.trainable_parameters()]
    before = [None if p.grad is None else p.grad.clone() for p in weights]
    training = trained.model.training
    explain.explain(trained, "people", 0)
    assert trained.model.training is training
    assert not embedding._forward_hooks
    assert trained.model.routing.rows == ()
    for weight, grad in zip(weights, before, strict=True):
        assert (grad is None and weight.grad is None) or torch.equal(grad, weight.grad)


# -- errors ------------------------------------------------------------------------------------


def test_unknown_tasks_rows_splits_and_methods_are_named(trained: Run) -> None:
    with pytest.raises(UserError, match="did you mean 'people'"):
        explain.explain(trained, "peeple", 0)
    with pytest.raises(UserError, match=r"has no test row 999(.|\n)*used are 0, 1, .* \.\.\. 59"):
        explain.explain(trained, "people", 999)
    with pytest.raises(UserError, match="did you mean 'integrated_gradients'"):
        explain.explain(trained, "people", 0, method="integrated_gradient")


def test_without_captum_the_package_to_install_is_named(
    trained: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(UserError, match=r"pip install 'mtlcore\[explain\]'"):
        explain.explain(trained, "people", 0)
