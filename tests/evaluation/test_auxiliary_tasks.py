"""Auxiliary tasks are scored and never counted: overall score, best model, folds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import mtlcore
from mtlcore.evaluation import folds
from mtlcore.evaluation.scores import Scores, TaskScore
from mtlcore.judge import Judge
from mtlcore.recipe_file import read_recipe
from tests.recipes import TASKS, metrics, training_part, write_tiny_recipe

HELPED = TASKS.replace("    loss_weight: 2.0", "    role: auxiliary")
MAIN = ("sentiment", "definitions")


def auxiliary_in(scores: Scores, task: str) -> Scores:
    """The same scores with one task made auxiliary."""
    changed = replace(scores.by_task[task], auxiliary=True)
    return replace(scores, by_task={**scores.by_task, task: changed})


def score(value: float, *, auxiliary: bool = False) -> TaskScore:
    return TaskScore(1 - value, 5, {"accuracy": value}, "accuracy", value, auxiliary)


def test_where_auxiliary_tasks_alone_are_scored_there_is_no_overall_score() -> None:
    alone = Scores("eval", {"helper": score(0.9, auxiliary=True)})
    assert alone.overall is None
    assert alone.worst is None
    assert "eval_overall" not in alone.flat()
    assert alone.loss == pytest.approx(0.1), "shown, as there is no other"


@pytest.mark.parametrize("metric", ["eval_overall", "eval_loss"])
def test_the_best_model_is_not_chosen_by_auxiliary_tasks(metric: str) -> None:
    training = SimpleNamespace(
        metric_for_best_model=metric,
        load_best_model_at_end=True,
        early_stopping_patience=2,
        greater_is_better=None,
    )
    tasks = {name: SimpleNamespace(early_stopping_patience=None) for name in ("a", "helper")}
    run: Any = SimpleNamespace(
        recipe=SimpleNamespace(training=training, tasks=tasks), step=0, evaluators={}
    )
    judge = Judge(run)
    seen = []
    for run.step, (main, helper) in enumerate([(0.5, 0.1), (0.4, 0.9), (0.6, 0.0)]):
        given = {"a": score(main), "helper": score(helper, auxiliary=True)}
        seen.append(judge.see(Scores("eval", given)))
    assert seen == [True, False, True]
    assert judge.best.step == 2


def test_a_run_is_judged_by_its_main_tasks(tiny_model: Path, tmp_path: Path) -> None:
    part = training_part(tmp_path, max_steps=2, eval_steps=1, load_best_model_at_end="true")
    run = mtlcore.train(write_tiny_recipe(tmp_path, tiny_model, tasks=HELPED, training=part))
    lines = [line for line in metrics(run.folder) if "eval_overall" in line]
    assert len(lines) == 2
    primary = {name: run.evaluators[name][0].name for name in MAIN}
    for line in lines:
        values = [
            run.evaluators[name][0].normalized(line[f"eval_{name}_{primary[name]}"])
            for name in MAIN
        ]
        assert line["eval_overall"] == pytest.approx(sum(values) / 2)
        assert line["eval_loss"] == pytest.approx(
            sum(line[f"eval_{name}_loss"] for name in MAIN) / 2
        )
        assert "eval_spelling_loss" in line


def test_folds_average_the_main_tasks(tiny_model: Path, tmp_path: Path) -> None:
    part = training_part(tmp_path, max_steps=1, save_steps=1)
    recipe = write_tiny_recipe(tmp_path, tiny_model, tasks=HELPED, training=part)
    found = folds.cross_validate(read_recipe(recipe), 2)
    assert set(found["tasks"]) == {*MAIN, "spelling"}
    for fold in range(2):
        losses = [found["tasks"][name]["loss"]["values"][fold] for name in MAIN]
        assert found["loss"]["values"][fold] == pytest.approx(sum(losses) / 2)
    assert found["overall"] is not None
    kept = folds.cross_validate(read_recipe(recipe), 2, resume=True)
    assert kept["overall"] == found["overall"], "scores that are read count the same tasks"
