"""Whole runs whose tasks have heads and bottlenecks: train, score, resume, load, export."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

import mtlcore
from mtlcore.errors import UserError
from mtlcore.evaluation.predictions import predict
from mtlcore.run import Run
from tests.recipes import TASKS, write_tiny_recipe

HEAD = TASKS.replace(
    "    metrics: [accuracy",
    "    head: {name: classification, pooling: POOLING}\n    metrics: [accuracy",
)
NARROW = {"bottleneck": "{shared: 3, own: 2, non_linearity: silu}"}


def trained(folder: Path, model: Path, pooling: str = "last", **parts: str) -> Run:
    folder.mkdir(exist_ok=True)
    recipe = write_tiny_recipe(folder, model, tasks=HEAD.replace("POOLING", pooling), **parts)
    return mtlcore.train(recipe)


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with a head and without bottlenecks; tests do not change it."""
    return trained(tmp_path_factory.mktemp("head"), tiny_model)


def test_predictions_of_a_head_are_log_probabilities(run: Run) -> None:
    found = run.predict("test")["sentiment"]
    for prediction in found:
        assert prediction.tokens == 1
        assert sum(torch.tensor(prediction.scores).exp()) == pytest.approx(1, rel=1e-6)
        assert prediction.choice is not None
        assert prediction.label is not None
        assert prediction.output == prediction.options[prediction.choice]
        assert prediction.loss_sum == pytest.approx(-prediction.scores[prediction.label], rel=1e-5)
    scores = run.evaluate("test").by_task["sentiment"]
    right = [p.choice == p.label for p in found]
    assert scores.metrics["accuracy"] == pytest.approx(sum(right) / len(right))
    assert scores.loss == pytest.approx(sum(p.loss_sum for p in found) / len(found), rel=1e-6)


def test_rows_made_by_the_format_are_answered_by_the_head_too(run: Run) -> None:
    """As audits make them, with other words in the text."""
    task = run.task("sentiment")
    row = dict(task.test[0].fields)
    made = task.format.example(row, task="sentiment", index=0, tokenizer=run.tokenizer)
    assert not made.head
    (found,) = predict(run, task, [made])
    expected = run.predict("test", ["sentiment"])["sentiment"][0]
    assert found.scores == pytest.approx(expected.scores, rel=1e-5)


def test_a_loaded_run_scores_as_the_run_that_was_trained(run: Run) -> None:
    loaded = mtlcore.load(run.folder)
    assert loaded.model.heads.size(loaded.task("sentiment").index) == 2
    for before, after in zip(
        run.predict("test")["sentiment"], loaded.predict("test")["sentiment"], strict=True
    ):
        assert before.scores == pytest.approx(after.scores, rel=1e-5)


def test_a_task_with_a_head_generates_nothing(run: Run) -> None:
    with pytest.raises(UserError, match=r"tasks.sentiment.head: .*no text"):
        run.generate(["Review:"], "sentiment")
    assert run.generate(["Correct:"], "spelling", max_new_tokens=2)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_an_exported_head_gives_our_scores_without_mtlcore(
    pooling: str, run: Run, tiny_model: Path, tmp_path: Path
) -> None:
    """From a run that was loaded without its rows."""
    if pooling == "mean":
        run = trained(tmp_path / "mean", tiny_model, pooling)
    folder = mtlcore.load(run.folder).export(tmp_path / "out", task="sentiment")
    words = json.loads((folder / "head.json").read_text())
    assert words == {
        "task": "sentiment", "pooling": pooling, "hidden_size": 64,
        "options": ["negative", "positive"],
    }  # fmt: skip
    head = load_file(folder / "head.safetensors")
    stock = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), str(folder)
    ).eval()
    task = run.task("sentiment")
    assert task.test is not None
    for example, prediction in zip(task.test, run.predict("test")["sentiment"], strict=True):
        ids = torch.tensor([example.input_ids])
        with torch.no_grad():
            hidden = stock(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
            state = hidden[-1] if pooling == "last" else hidden.mean(0)
            scores = F.linear(state, head["weight"], head["bias"]).log_softmax(-1)
        assert scores.tolist() == pytest.approx(prediction.scores, rel=1e-4)


def test_tasks_without_a_head_export_none(run: Run, tmp_path: Path) -> None:
    folder = run.export(tmp_path / "spelling", task="spelling")
    assert not list(folder.glob("head*"))


def test_a_run_with_bottlenecks_resumes_exactly(tiny_model: Path, tmp_path: Path) -> None:
    """Dropout included: every mask is a function of the step."""
    whole = trained(tmp_path / "whole", tiny_model, "mean", **NARROW)
    names = whole.model.adapter_state().keys()
    assert sum("bottleneck" in name for name in names) == 2 * 4 * 4  # blocks, factors, adapters
    resumed = mtlcore.train(
        tmp_path / "whole/recipe.yaml", resume=whole.folder / "checkpoints/step-000004"
    )
    for name, value in resumed.model.adapter_state().items():
        assert torch.equal(value, whole.model.adapter_state()[name]), name
    loaded = mtlcore.load(whole.folder)
    assert loaded.evaluate("test").loss == pytest.approx(whole.evaluate("test").loss, rel=1e-5)
    for arguments in ({"task": "spelling"}, {"shared": True}, {"merged": True}):
        with pytest.raises(UserError, match=r"bottleneck: .*bottleneck:shared.* are no LoRA"):
            loaded.export(tmp_path / "out", **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [("a", "b", "c"), ("positive", "negative")])
def test_other_labels_than_those_of_the_head_are_refused(options: Any, run: Run) -> None:
    task = run.task("sentiment")
    row = replace(task.test[0], options=options)
    message = rf"tasks.sentiment.head: .*between negative, positive; row 0 .* {', '.join(options)}"
    with pytest.raises(UserError, match=message):
        predict(run, task, [row])


def test_a_head_on_a_format_without_options_is_an_error(tiny_model: Path, tmp_path: Path) -> None:
    tasks = TASKS.replace("    metrics: [exact_match]", "    head: classification")
    recipe = write_tiny_recipe(tmp_path, tiny_model, tasks=tasks)
    with pytest.raises(UserError, match=r"tasks.spelling.head: .*gives no options") as caught:
        mtlcore.train(recipe)
    assert "classification" in str(caught.value)


def test_options_of_one_task_win_over_those_of_the_run(tiny_model: Path, tmp_path: Path) -> None:
    tasks = TASKS.replace(
        "  spelling:", "  spelling:\n    lora_dropout: 0.3\n    label_smoothing_factor: 0.0"
    )
    recipe = write_tiny_recipe(tmp_path, tiny_model, tasks=tasks)
    changes = ["training.label_smoothing_factor=0.2", "training.max_steps=1"]
    model = mtlcore.train(recipe, changes).model
    assert model.routing.dropout == (0.1, 0.3, 0.1)
    assert model.smoothing == (0.2, 0.0, 0.2)


def test_a_run_may_have_bottlenecks_and_heads_alone(tiny_model: Path, tmp_path: Path) -> None:
    run = trained(tmp_path, tiny_model, sharing="{shared: 0, own: 0}", **NARROW)
    assert not run.model.layers
    with pytest.raises(UserError, match="nothing to train"):
        trained(tmp_path, tiny_model, sharing="{shared: 0, own: 0}", bottleneck="{shared: 0}")
