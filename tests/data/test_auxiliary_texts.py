"""Texts without labels for an auxiliary task: inputs of the main tasks, or a file; no leaks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mtlcore
from mtlcore.data.tasks import Task
from mtlcore.errors import RecipeError, UserError
from mtlcore.evaluation import baseline, folds
from mtlcore.recipe_file import read_recipe, recipe_from_mapping, write_recipe
from tests.helpers import load, write_jsonl
from tests.recipes import TASKS, metrics, training_part, write_tiny_recipe

TEXTS = {"format": "text", "role": "auxiliary", "split": {"eval": 0}}
REVIEWS = {
    "split": {"eval": 0.2, "test": 0.2},
    "format": {"name": "classification", "labels": ["yes", "no"], "template": "Good? {{ text }} :"},
}


def reviews(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [
        {"text": f"The film number {i} was long", "label": "no" if i % 2 else "yes"}
        for i in range(first, first + count)
    ]


@pytest.fixture
def main(tmp_path: Path) -> dict[str, Any]:
    path = write_jsonl(tmp_path / "reviews.jsonl", reviews(40))
    return {"reviews": {**REVIEWS, "train": str(path)}}


def learned(task: Task) -> list[str]:
    return [example.target for example in task.train]


def texts_of(rows: Any) -> set[str]:
    return {example.fields["text"] for example in rows}


# -- inputs of the main tasks -----------------------------------------------------------------


def test_the_texts_are_the_train_prompts_and_hold_nothing_of_eval_and_test(
    main: dict[str, Any],
) -> None:
    found, texts = load({**main, "texts": {**TEXTS, "train": {"inputs_of": "all"}}})
    assert found.eval is not None
    assert found.test is not None
    assert len(found.train) == 24
    assert learned(texts) == [example.prompt for example in found.train]
    assert not any(text in one for text in texts_of(found.eval) for one in learned(texts))
    assert not any(text in one for text in texts_of(found.test) for one in learned(texts))
    assert all("yes" not in text and ": no" not in text for text in learned(texts)), "no answer"


def test_texts_that_another_task_is_scored_on_are_left_out_whatever_its_template(
    main: dict[str, Any], tmp_path: Path
) -> None:
    scored = [{"text": "  the FILM number 3 was long", "label": "yes"}, *reviews(2, first=90)]
    other = {
        "train": str(write_jsonl(tmp_path / "other.jsonl", reviews(5, first=60))),
        "test": str(write_jsonl(tmp_path / "scored.jsonl", scored)),
        "split": {"eval": 0},
        "format": {"name": "classification", "labels": ["yes", "no"], "template": "{{ text }} ="},
    }
    main["reviews"]["split"] = {"eval": 0}
    tasks = {**main, "other": other, "texts": {**TEXTS, "train": {"inputs_of": ["reviews"]}}}
    texts = load(tasks)[2]
    assert len(texts.train) == 39
    assert not any("number 3 " in text for text in learned(texts))
    assert (texts.train.report.rows, texts.train.report.leaked) == (40, 1)


def test_a_prompt_is_learned_once(main: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"text": "always the same words", "label": label} for label in ("yes", "no", "yes")]
    main["twice"] = {
        **REVIEWS,
        "split": {"eval": 0},
        "train": str(write_jsonl(tmp_path / "twice.jsonl", rows)),
    }
    texts = load({**main, "texts": {**TEXTS, "train": {"inputs_of": ["twice"]}}})[2]
    assert learned(texts) == ["Good? always the same words :"]


def test_it_is_written_and_read_again(main: dict[str, Any], tmp_path: Path) -> None:
    data = {"model": "m", "tasks": {**main, "texts": {**TEXTS, "train": {"inputs_of": "all"}}}}
    recipe = recipe_from_mapping(data).recipe
    write_recipe(recipe, tmp_path / "again.yaml")
    assert read_recipe(tmp_path / "again.yaml").recipe == recipe
    assert recipe.tasks["texts"].train.model_dump() == {"inputs_of": "all"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {"inputs_of": ["review"]}}, "no task 'review'\n  fix: did you mean 'reviews'?"),
        ({"train": {"inputs_of": ["texts"]}}, "'texts' is an auxiliary task"),
        ({"train": {"inputs_of": []}}, "path"),
        ({"train": {"inputs_of": "all"}, "role": "main"}, "set tasks.texts.role to auxiliary"),
        ({"train": {"inputs_of": "all", "path": "a.jsonl"}}, "no meaning beside inputs_of"),
        ({"train": {"inputs_of": "all", "split": "train"}}, "no meaning beside inputs_of"),
        ({"eval": {"inputs_of": "all"}}, "is for train rows alone"),
        ({"train": {}}, "`path` is missing"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    change: dict[str, Any], message: str, main: dict[str, Any]
) -> None:
    texts = {**TEXTS, "train": {"inputs_of": "all"}, **change}
    with pytest.raises(RecipeError) as caught:
        recipe_from_mapping({"model": "m", "tasks": {**main, "texts": texts}})
    assert message in str(caught.value)


def test_tasks_without_prompts_have_no_inputs(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "plain.jsonl", reviews(10))
    tasks = {
        "plain": {"train": str(path), "format": "text"},
        "texts": {**TEXTS, "train": {"inputs_of": "all"}},
    }
    with pytest.raises(UserError, match="inputs of all give no text to learn") as caught:
        load(tasks)
    assert caught.value.problem.where == "tasks.texts.train"


# -- a file -----------------------------------------------------------------------------------


def test_leaked_texts_are_dropped_from_an_auxiliary_tasks_file(
    main: dict[str, Any], tmp_path: Path
) -> None:
    rows = [{"text": f"the film  number {i} was LONG"} for i in range(40)] + [{"text": "more"}]
    corpus = {**TEXTS, "train": str(write_jsonl(tmp_path / "corpus.jsonl", rows))}
    found, kept = load({**main, "corpus": corpus})
    assert len(kept.train) == 41
    found, texts = load({**main, "corpus": {**corpus, "cleaning": {"leakage": "drop"}}})
    assert found.eval is not None
    assert found.test is not None
    assert texts.train.report.leaked == len(found.eval) + len(found.test) == 16
    scored = {text.lower() for text in texts_of(found.eval) | texts_of(found.test)}
    assert not scored & {" ".join(text.lower().split()) for text in learned(texts)}
    assert len(texts.train) == 25


def test_a_main_task_is_compared_with_its_own_rows_alone(
    main: dict[str, Any], tmp_path: Path
) -> None:
    other = {
        **REVIEWS,
        "train": str(write_jsonl(tmp_path / "same.jsonl", reviews(40))),
        "split": {"eval": 0},
        "cleaning": {"leakage": "drop"},
    }
    assert len(load({**main, "other": other})[1].train) == 40


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no usable row: it is empty"),
        ('{"text": "  "}\n', "column 'text' is empty"),
        (None, "no such file"),
    ],
)
def test_an_empty_or_missing_file_is_refused(
    content: str | None, message: str, main: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "corpus.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError) as caught:
        load({**main, "corpus": {**TEXTS, "train": str(path)}})
    assert message in str(caught.value)
    assert "tasks.corpus.train" in str(caught.value)


# -- the rest of the framework ----------------------------------------------------------------

AUXILIARY = """
  texts:
    train: {inputs_of: all}
    format: text
    role: auxiliary
    split: {eval: 0}
    loss_weight: 0.1
    max_share: 0.2
"""


def tiny(model: Path, folder: Path, **training: object) -> Path:
    return write_tiny_recipe(
        folder,
        model,
        tasks=TASKS.rstrip() + AUXILIARY,
        training=training_part(folder, **{"max_steps": 3, "save_steps": 3, **training}),
    )


def test_a_run_learns_the_texts_and_scores_none_of_them(tiny_model: Path, tmp_path: Path) -> None:
    run = mtlcore.train(tiny(tiny_model, tmp_path))
    texts = run.task("texts")
    assert len(texts.train) > 50
    assert 0 < run.rows_drawn[texts.index] <= 0.2 * sum(run.rows_drawn) + 1
    assert {"texts", "sentiment"} <= set(metrics(run.folder)[-1]["weights"])
    again = mtlcore.load(run.folder)
    assert set(again.evaluate("test").by_task) == {"sentiment", "spelling", "definitions"}
    assert again.rows("texts", "train").fingerprint == texts.train.fingerprint


def test_a_check_reads_them_too(tiny_model: Path, tmp_path: Path, run_cli: Any) -> None:
    code, out, _ = run_cli("check", str(tiny(tiny_model, tmp_path)), "--json")
    found = json.loads(out)
    assert code == 0, found
    assert found["tasks"]["texts"]["splits"]["train"]["used"] > 50


def test_baselines_are_of_the_main_tasks(tiny_model: Path, tmp_path: Path) -> None:
    loaded = baseline.prepare(tiny(tiny_model, tmp_path))
    assert list(loaded.recipe.tasks) == ["sentiment", "spelling", "definitions"]


def test_there_is_no_baseline_of_inputs_of_other_tasks(tiny_model: Path, tmp_path: Path) -> None:
    recipe = tiny(tiny_model, tmp_path)
    assert "texts" not in baseline.prepare(recipe, auxiliary=True).recipe.tasks
    with pytest.raises(UserError, match="'texts' learns the inputs of other tasks"):
        baseline.prepare(recipe, tasks=["texts"])


def test_every_fold_learns_the_inputs_of_its_own_train_rows(
    tiny_model: Path, tmp_path: Path
) -> None:
    loaded = read_recipe(tiny(tiny_model, tmp_path))
    found = folds.cross_validate(loaded, 2)
    assert set(found["tasks"]) == {"sentiment", "spelling", "definitions"}
    counts = set()
    for fold in (1, 2):
        run = mtlcore.load(tmp_path / "run" / "cv" / f"fold-{fold}")
        texts = "\n".join(example.target for example in run.rows("texts", "train"))
        for name in found["tasks"]:
            assert not any(row.prompt in texts.split("\n") for row in run.rows(name, "eval"))
        counts.add(texts)
    assert len(counts) == 2
