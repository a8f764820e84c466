"""Cross-validation: how rows are dealt, that folds are exact, and what cannot be dealt."""

from __future__ import annotations

import json
import shutil
import statistics
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mtlcore.data.tasks import load_tasks
from mtlcore.errors import UserError
from mtlcore.evaluation import folds
from mtlcore.plugins import PluginManager
from mtlcore.recipe_file import LoadedRecipe, read_recipe
from mtlcore.run import load_tokenizer
from tests.command_line import contents
from tests.helpers import write_jsonl
from tests.recipes import write_tiny_recipe

COUNTS = {"sentiment": 46, "spelling": 30, "definitions": 18}  # train and eval


@pytest.fixture
def tiny(tiny_model: Path, tmp_path: Path) -> LoadedRecipe:
    training = f"{{output_dir: {tmp_path / 'run'}, max_steps: 2, save_steps: 1, max_length: 96}}"
    return read_recipe(write_tiny_recipe(tmp_path, tiny_model, training=training))


def one_task(
    tiny_model: Path, folder: Path, rows: list[dict[str, Any]], **task: Any
) -> LoadedRecipe:
    """A recipe of one classification task with these rows."""
    write_jsonl(folder / "rows.jsonl", rows)
    given = {
        "train": "rows.jsonl",
        "split": {"eval": 0.2},
        "format": {"name": "classification", "template": "{{ text }} ->"},
        "metrics": ["accuracy"],
        **task,
    }
    path = folder / "recipe.yaml"
    path.write_text(
        json.dumps(
            {
                "model": {"name_or_path": str(tiny_model)},
                "tasks": {"one": given},
                "training": {"output_dir": str(folder / "run"), "max_steps": 1, "max_length": 64},
            }
        )
    )
    return read_recipe(path)


def rows_of(count: int, groups: int = 5) -> list[dict[str, Any]]:
    return [
        {"text": f"row {i}", "label": "good" if i % 3 else "bad", "patient": i % groups}
        for i in range(count)
    ]


# -- how rows are dealt ------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 5])
def test_every_row_is_in_one_fold_and_folds_are_of_like_size(
    count: int, tiny: LoadedRecipe
) -> None:
    for plan in folds.plan_folds(tiny.recipe, count):
        assert len(plan.rows) == len(plan.fold_of) == COUNTS[plan.task]
        sizes = Counter(plan.fold_of)
        assert set(sizes) == set(range(count))
        assert max(sizes.values()) - min(sizes.values()) <= (2 if plan.stratify else 1)
        assert len(plan.test) == 6
        test = {json.dumps(row) for row in plan.test}
        assert not test & {json.dumps(row) for row in plan.rows}


def test_labels_have_equal_shares_in_every_fold_unless_told_otherwise(tiny: LoadedRecipe) -> None:
    plan = folds.plan_folds(tiny.recipe, 4)[0]
    assert (plan.task, plan.stratify) == ("sentiment", "label")
    for label in {row["label"] for row in plan.rows}:
        counts = [sum(row["label"] == label for row in plan.rows_of(fold)) for fold in range(4)]
        assert max(counts) - min(counts) <= 1
    assert folds.plan_folds(tiny.recipe, 4, stratify="none")[0].stratify is None


def test_folds_depend_on_the_seed_alone(tiny: LoadedRecipe) -> None:
    first, again = (folds.plan_folds(tiny.recipe, 3)[0].fold_of for _ in range(2))
    assert first == again
    training = tiny.recipe.training.model_copy(update={"seed": 1})
    other = folds.plan_folds(tiny.recipe.model_copy(update={"training": training}), 3)
    assert other[0].fold_of != first


@pytest.mark.parametrize("stratify", [None, "none"])
@pytest.mark.parametrize("given", ["option", "recipe"])
def test_a_group_is_never_divided(
    stratify: str | None, given: str, tiny_model: Path, tmp_path: Path
) -> None:
    split = {"eval": 0.2, **({"by": "patient"} if given == "recipe" else {})}
    loaded = one_task(tiny_model, tmp_path, rows_of(60, groups=9), split=split)
    by = "patient" if given == "option" else None
    [plan] = folds.plan_folds(loaded.recipe, 3, by=by, stratify=stratify)
    assert plan.by == "patient"
    where = {(row["patient"], fold) for row, fold in zip(plan.rows, plan.fold_of, strict=True)}
    assert len(where) == 9


def test_only_rows_that_are_used_are_dealt(tiny_model: Path, tmp_path: Path) -> None:
    rows = [*rows_of(20), {"text": "no label"}]
    loaded = one_task(
        tiny_model, tmp_path, rows, on_bad_row="skip", split={"eval": 0.2, "test": 0.2}
    )
    [plan] = folds.plan_folds(loaded.recipe, 2)
    assert len(plan.rows) + len(plan.test) == 20
    assert plan.test
    assert {"text": "no label"} not in plan.rows


# -- folds are exact ---------------------------------------------------------------------------


def test_the_examples_of_a_fold_are_those_of_the_rows(tiny: LoadedRecipe, tmp_path: Path) -> None:
    plans = folds.plan_folds(tiny.recipe, 3)
    folds.write_folds(plans, 3, tmp_path / "cv" / "data")
    tokenizer, plugins = load_tokenizer(tiny.recipe), PluginManager.load(environ={})

    def ids(recipe: Any, *splits: str) -> dict[str, Counter[Any]]:
        tasks = load_tasks(recipe, tokenizer, plugins)
        return {
            task.name: Counter(e.input_ids for split in splits for e in getattr(task, split))
            for task in tasks
        }

    whole, test = ids(tiny.recipe, "train", "eval"), ids(tiny.recipe, "test")
    held_out: dict[str, Counter[Any]] = {name: Counter() for name in whole}
    for fold in range(3):
        recipe = folds.fold_recipe(tiny.recipe, plans, fold, 3, tmp_path / "cv")
        assert ids(recipe, "train", "eval") == whole
        assert ids(recipe, "test") == test
        for name, rows in ids(recipe, "eval").items():
            held_out[name] += rows
    assert held_out == whole


def test_cross_validation_trains_k_runs_and_summarises_them(tiny: LoadedRecipe) -> None:
    found = folds.cross_validate(tiny, 2)
    for fold in (1, 2):
        folder = tiny.output_dir / "cv" / f"fold-{fold}"
        scores = json.loads((folder / "predictions" / "eval" / "scores.json").read_text())
        for name, task in found["tasks"].items():
            assert scores["tasks"][name]["loss"] == task["loss"]["values"][fold - 1]
            assert scores["tasks"][name][task["metric"]] == task["values"][fold - 1]
        assert scores["overall"] == found["overall"]["values"][fold - 1]
    values = found["overall"]["values"]
    assert found["overall"]["mean"] == pytest.approx(sum(values) / 2)
    assert found["overall"]["std"] == pytest.approx(statistics.stdev(values))
    assert list(found["tasks"]["sentiment"]["metrics"]) == ["accuracy", "macro_f1"]
    assert json.loads((tiny.output_dir / folds.RESULT).read_text()) == found
    with pytest.raises(UserError, match="already holds a cross-validation"):
        folds.cross_validate(tiny, 2)


@pytest.mark.parametrize("left", ["no checkpoint", "a checkpoint", "all but the score"])
def test_an_interrupted_cross_validation_goes_on_to_the_same_result(
    left: str, tiny: LoadedRecipe
) -> None:
    """Whatever was left of the second fold; the first is not touched, the third had not begun."""
    whole = folds.cross_validate(tiny, 3)
    folder = tiny.output_dir / "cv"
    (tiny.output_dir / folds.RESULT).unlink()
    shutil.rmtree(folder / "fold-3")
    second = folder / "fold-2"
    shutil.rmtree(second / "predictions")
    if left != "all but the score":
        (second / "result.json").unlink()
        shutil.rmtree(second / "checkpoints" / "step-000002")
    if left == "no checkpoint":
        shutil.rmtree(second / "checkpoints" / "step-000001")
    before = contents(folder / "fold-1")
    assert folds.cross_validate(tiny, 3, resume=True) == whole
    assert contents(folder / "fold-1") == before
    assert json.loads((tiny.output_dir / folds.RESULT).read_text()) == whole


def test_only_the_same_folds_can_be_resumed(tiny: LoadedRecipe) -> None:
    with pytest.raises(UserError, match="there is no cross-validation in"):
        folds.cross_validate(tiny, 2, resume=True)
    folds.cross_validate(tiny, 2)
    with pytest.raises(UserError, match=r"the folds are not those .*fold-1.jsonl differs"):
        folds.cross_validate(tiny, 3, resume=True)
    lora = tiny.recipe.lora.model_copy(update={"r": 3})
    other = replace(tiny, recipe=tiny.recipe.model_copy(update={"lora": lora}))
    with pytest.raises(UserError, match=r"lora.r: 4 -> 3"):
        folds.cross_validate(other, 2, resume=True)
    shutil.rmtree(tiny.output_dir / "cv" / "fold-2")
    training = tiny.recipe.training.model_copy(update={"max_steps": 5})
    longer = replace(tiny, recipe=tiny.recipe.model_copy(update={"training": training}))
    with pytest.raises(UserError, match=r"training.max_steps: 2 -> 5"):  # a run alone may
        folds.cross_validate(longer, 2, resume=True)


def test_folds_that_runs_have_begun_on_are_not_written_again(tiny: LoadedRecipe) -> None:
    plans = folds.plan_folds(tiny.recipe, 2)
    data = tiny.output_dir / "cv" / "data"
    folds.write_folds(plans, 2, data)
    written = {path: path.stat().st_ino for path in data.rglob("*.jsonl")}
    folds.write_folds(plans, 2, data, keep=True)
    assert written == {path: path.stat().st_ino for path in data.rglob("*.jsonl")}


# -- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "options", "said"),
    [
        (1, {}, "--folds: 1 folds leave nothing to learn"),
        (21, {"stratify": "none"}, "has 20 rows, too few for 21 folds"),
        (6, {"by": "patient"}, "has 5 values of 'patient', too few for 6 folds"),
        (8, {}, 'has 7 rows with label = "bad", too few for 8 folds'),
        (2, {"by": "patint"}, "did you mean 'patient'"),
        (2, {"stratify": "lable"}, "did you mean 'label'"),
    ],
)
def test_what_cannot_be_dealt_is_refused_before_anything_is_written(
    count: int, options: dict[str, str], said: str, tiny_model: Path, tmp_path: Path
) -> None:
    loaded = one_task(tiny_model, tmp_path, rows_of(20))
    with pytest.raises(UserError) as caught:
        folds.cross_validate(loaded, count, **options)
    assert said in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_fold_that_cannot_be_read_is_found_before_any_training(
    tiny_model: Path, tmp_path: Path
) -> None:
    rows = [{"text": f"row {i}", "label": "ab"[i == 7], "patient": i % 4} for i in range(20)]
    loaded = one_task(tiny_model, tmp_path, rows)
    with pytest.raises(UserError):  # the label b is in one fold only
        folds.cross_validate(loaded, 2, by="patient", stratify="none")
    assert not (tmp_path / "run" / "cv").exists()


def test_values_that_json_cannot_hold_are_refused_with_their_column(
    tiny_model: Path, tmp_path: Path
) -> None:
    import datetime

    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    loaded = one_task(tiny_model, tmp_path, rows_of(8))
    rows = [{**row, "day": datetime.date(2026, 1, 1)} for row in rows_of(8)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (tmp_path / "recipe.yaml").write_text(
        (tmp_path / "recipe.yaml").read_text().replace("rows.jsonl", "rows.parquet")
    )
    loaded = read_recipe(tmp_path / "recipe.yaml")
    with pytest.raises(UserError, match="column 'day' of task 'one' holds date"):
        folds.cross_validate(loaded, 2)
    assert not (tmp_path / "run").exists()
