"""`Counterfactual`: rows with swapped words, on runs with a planted bias."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import mtlcore
from mtlcore.components import Finding
from mtlcore.errors import UserError
from mtlcore.evaluation.predictions import Prediction, predict
from mtlcore.recipe import ComponentSpec
from mtlcore.run import Run
from mtlcore_plugins.auditing.counterfactual import Counterfactual, Pair
from tests.auditing.planted import planted_recipe
from tests.helpers import load, small_tokenizer, write_jsonl


def audit(run: Run, *, max_rows: int | None = None, **options: Any) -> dict[str, Finding]:
    """Findings by name of an auditor with these options."""
    auditor = Counterfactual(**options)
    predictions = run.predict("eval", max_rows=max_rows)
    return {finding.name: finding for finding in auditor.audit(run, predictions)}


def test_a_planted_shortcut_is_found_and_balanced_rows_mend_it(biased: Run, mended: Run) -> None:
    before, after = biased.findings[0], mended.findings[0]
    assert before.name == after.name == "counterfactual.flip_rate"
    assert before.value > 0.8
    assert after.value < 0.25
    assert before.details["low"] > after.details["high"]
    assert (before.failed, after.failed) == (True, False)
    by_probability = biased.findings[1]
    assert by_probability.value < -0.5
    assert by_probability.details["p"] < 0.01
    assert by_probability.details["difference"] == "female - male"
    assert "'yes' is" in by_probability.message
    assert "lower with female" in by_probability.message


def test_the_numbers_are_those_of_the_models_own_answers(biased: Run) -> None:
    found = audit(biased)
    flip, chance = found["counterfactual.flip_rate"], found["counterfactual.probability"]
    task, rows = biased.task("people"), biased.predict("eval")["people"]
    words = {"he": "she", "she": "he", "his": "her", "her": "his"}
    swapped = [
        {**row.fields, "text": " ".join(words.get(w, w) for w in row.fields["text"].split())}
        for row in rows
    ]
    examples = [
        task.format.example(row, task="people", index=0, tokenizer=biased.tokenizer)
        for row in swapped
    ]
    flips, differences = [], []
    for row, other in zip(rows, predict(biased, task, examples), strict=True):
        flips.append(other.choice != row.choice)
        p, q = (torch.tensor(one.scores).double().softmax(0)[0] for one in (row, other))
        differences.append(float(q - p if row.fields["sex"] == "m" else p - q))
    assert flip.value == sum(flips) / len(flips)
    assert chance.value == pytest.approx(sum(differences) / len(differences), abs=1e-5)
    yes, no = (chance.details["labels"][label] for label in ("yes", "no"))
    assert yes["probability"]["mean"] == pytest.approx(-no["probability"]["mean"], abs=1e-9)
    assert yes["log_odds"]["mean"] == pytest.approx(-no["log_odds"]["mean"], abs=1e-6)


def test_two_audits_of_one_run_find_the_same(biased: Run) -> None:
    assert audit(biased, rows=20) == audit(biased, rows=20)
    assert audit(biased, rows=20)["counterfactual.flip_rate"].details["pairs"] == 20


def test_the_audit_of_a_run_is_kept_and_written(biased: Run) -> None:
    line = json.loads((biased.folder / "audits.jsonl").read_text().splitlines()[0])
    assert (line["step"], line["split"]) == (80, "eval")
    assert line["findings"][0] == json.loads(json.dumps(biased.findings[0].to_json()))
    example = line["findings"][0]["details"]["examples"][0]
    assert example["prompt"] != example["swapped"]
    assert example["output"] != example["output_swapped"]


def test_too_few_pairs_give_a_word_and_no_number(biased: Run) -> None:
    [finding] = audit(biased, max_rows=9, fail_above=0.0).values()
    assert math.isnan(finding.value)
    assert not finding.failed
    assert finding.details["enough"] is False
    assert "not enough data: 9 pairs" in finding.message
    assert finding.to_json()["value"] is None
    [nothing] = audit(biased, lexicon="religion", fail_above=0.0).values()
    assert "0 of 60 rows have words of christian or muslim" in nothing.message
    assert not nothing.failed


def test_rows_whose_answer_has_such_a_word_are_skipped_and_counted(biased: Run) -> None:
    predictions = biased.predict("eval")["people"]
    told = [replace(row, target="she did") if row.row % 2 else row for row in predictions]
    pairs, counts = Counterfactual().pairs(biased, biased.task("people"), told)
    assert counts["skipped: the answer has such a word"] == 30
    assert counts["pairs"] == len(pairs) == 30
    options = [replace(row, options=("he", "it")) for row in predictions]
    assert Counterfactual().pairs(biased, biased.task("people"), options)[0] == []


def pairs_of(
    tmp_path: Path, rows: list[dict[str, Any]], max_length: int = 200, **task: Any
) -> tuple[list[Pair], dict[str, int]]:
    """The pairs of a task that is loaded, but not trained."""
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    [loaded] = load({"any": {"train": str(path), **task}}, splits=["train"])
    run: Any = SimpleNamespace(
        seed=0,
        tokenizer=small_tokenizer(),
        recipe=SimpleNamespace(training=SimpleNamespace(max_length=max_length)),
    )
    answers = [
        Prediction("any", e.row, e.prompt, e.target, "", 1.0, 1, options=e.options, fields=e.fields)
        for e in loaded.train
    ]
    return Counterfactual().pairs(run, loaded, answers)


def test_conversations_and_renamed_columns_are_swapped(tmp_path: Path) -> None:
    talk = [
        {"role": "user", "content": "Who is he?"},
        {"role": "assistant", "content": "Nobody."},
    ]
    [pair], _ = pairs_of(tmp_path, [{"messages": talk}], format="messages", split={"eval": 0.0})
    assert "<|user|>\nWho is he?" in pair.original.prompt
    assert pair.example.prompt == pair.original.prompt.replace("he?", "she?")
    assert pair.direction == 1
    rows = [{"review": "her film", "sex": "female", "label": n} for n in ("good", "bad")]
    pairs, counts = pairs_of(
        tmp_path, rows, format="classification", columns={"text": "review"}, split={"eval": 0.0}
    )
    assert [pair.example.prompt for pair in pairs] == ["his film\nLabel:"] * 2
    assert counts == {"rows": 2, "rows_with_words": 2, "pairs": 2}


def test_rows_whose_label_would_change_or_that_grow_too_long_are_counted(tmp_path: Path) -> None:
    form = {"name": "classification", "labels": {"male": "a", "female": "b"}}
    rows = [{"text": "he is", "label": "male"}, {"text": "she is", "label": "female"}]
    common = {"format": form, "split": {"eval": 0.0}}
    assert pairs_of(tmp_path, rows, **common)[1]["skipped: the answer would change"] == 2
    form["labels"] = ["c", "d"]
    rows = [{"text": "he is", "label": "c"}, {"text": "x", "label": "d"}]
    assert len(pairs_of(tmp_path, rows, **common)[0]) == 1
    example = load({"any": {"train": str(tmp_path / "rows.jsonl"), **common}}, splits=["train"])
    length = len(example[0].train[0].input_ids)
    _, counts = pairs_of(tmp_path, rows, max_length=length, overlong="drop", **common)
    assert counts["skipped: the swapped row is too long"] == 1
    only_group = [{"text": "it is", "label": "c", "sex": "male"}]
    assert pairs_of(tmp_path, only_group, **common)[1]["rows_with_words"] == 0


def test_a_row_with_as_many_words_of_both_groups_has_no_direction(biased: Run) -> None:
    rows = biased.predict("eval")["people"]
    mixed = [replace(row, prompt="he saw her =") for row in rows]
    pairs, _ = Counterfactual().pairs(biased, biased.task("people"), mixed)
    assert {pair.direction for pair in pairs} == {0}
    found = Counterfactual().audit(biased, {"people": mixed})
    assert [finding.details["enough"] for finding in found] == [True, False]
    assert "0 pairs have more words of one group" in found[1].message


def test_answers_that_are_texts_are_compared_by_text_loss_and_length(
    planted: Path, tmp_path: Path, biased: Run
) -> None:
    recipe = planted_recipe(planted, mend=False)
    text = {**recipe["tasks"]["people"], "metrics": ["exact_match"]}
    text["format"] = {"name": "prompt_completion", "template": "{{ text }} ="}
    text |= {"columns": {"completion": "label"}, "generation": {"max_new_tokens": 2}}
    choice = {**recipe["tasks"]["people"], "head": {"name": "classification", "pooling": "mean"}}
    recipe["tasks"] = {"text": text, "headed": choice}
    recipe["training"] |= {"output_dir": str(tmp_path / "run"), "max_steps": 60}
    recipe["auditing"] = []
    run = mtlcore.train(recipe)
    found = Counterfactual(fail_above=0.5).audit(run, run.predict("eval"))
    names = [(finding.task, finding.name.partition(".")[2]) for finding in found]
    assert names == [
        ("text", "output_changed"),
        ("text", "loss"),
        ("text", "length"),
        ("headed", "flip_rate"),
        ("headed", "probability"),
    ]
    assert all(finding.details["enough"] for finding in found)
    assert found[0].value > 0.8
    assert found[0].failed
    assert found[3].value > 0.8
    task = run.task("text")
    sampling = task.recipe.generation.model_copy(update={"do_sample": True})
    task.recipe = task.recipe.model_copy(update={"generation": sampling})
    sampled = Counterfactual(tasks=["text"], fail_above=0.0).audit(run, run.predict("eval"))
    assert [finding.details["enough"] for finding in sampled] == [False, True]
    assert "sampled differ by chance" in sampled[0].message
    assert not sampled[0].failed


def test_a_task_that_is_not_there_is_refused_before_training(planted: Path, tmp_path: Path) -> None:
    recipe = planted_recipe(planted, mend=False)
    recipe["auditing"] = [{"name": "counterfactual", "tasks": ["peopel"]}]
    recipe["training"]["output_dir"] = str(tmp_path / "run")
    with pytest.raises(UserError, match="did you mean 'people'"):
        mtlcore.train(recipe)
    assert not (tmp_path / "run").exists()


def test_a_bad_lexicon_is_an_error_of_the_recipe(biased: Run) -> None:
    spec = ComponentSpec(name="counterfactual", options={"lexicon": "gendr"})
    with pytest.raises(UserError, match=r"auditing\[0\]: .*did you mean 'gender'"):
        biased.plugins.create("auditing", spec, "auditing[0]")


def test_a_lexicon_file_is_found_beside_the_recipe(planted: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("- [he, she]\n- [his, her]\n")
    recipe = planted_recipe(planted, mend=False)
    recipe["auditing"] = [{"name": "counterfactual", "lexicon": "./mine.yaml"}]
    recipe["training"]["output_dir"] = str(tmp_path / "run")
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    run = mtlcore.train(path, ["training.max_steps=1"])
    assert run.findings[0].details["pairs"] == 60
    assert mtlcore.load(run.folder).auditors[0].lexicon.groups == ("first", "second")
    recipe["auditing"][0]["lexicon"] = "./mien.yaml"
    path.write_text(json.dumps(recipe))
    with pytest.raises(UserError, match=r"no such file: \./mien\.yaml"):
        mtlcore.train(path)
