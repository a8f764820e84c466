"""Row choosers in a real run: they are named by a recipe, draw, and are resumed."""

import json

import pytest
import torch

import mtlcore
from mtlcore.errors import UserError
from tests.recipes import TASKS, final_adapters, metrics, training_part, write_tiny_recipe

ROWS = {
    "accuracy, macro_f1": "class_balanced",
    "exact_match": "{name: curriculum, difficulty: loss, start: 0.2}",
    "rouge_l": "{name: stratified, by: cluster, clusters: 3, emphasis: 0.5}",
}
"""Metrics of a task of the tiny recipe -> its row chooser."""


def tasks_with(rows):
    tasks = TASKS
    for metric, chooser in rows.items():
        tasks = tasks.replace(
            f"    metrics: [{metric}]\n", f"    metrics: [{metric}]\n    rows: {chooser}\n"
        )
    return tasks


def test_a_resumed_run_is_bit_identical_with_every_chooser(tiny_model, tmp_path):
    recipe = write_tiny_recipe(tmp_path, tiny_model, tasks=tasks_with(ROWS), sampling="equal")
    few = "training.max_steps=4"
    whole = mtlcore.train(recipe, [few, f"training.output_dir={tmp_path / 'whole'}"])
    mtlcore.train(recipe, [few])
    start = tmp_path / "run" / "checkpoints" / "step-000002"
    resumed = mtlcore.train(recipe, [few], resume=start)
    expected = final_adapters(whole.folder)
    for name, value in final_adapters(resumed.folder).items():
        assert torch.equal(value, expected[name]), name
    for line in metrics(whole.folder):
        assert set(line["rows"].values()) == {2}
    notes = json.loads((tmp_path / "whole" / "result.json").read_text())["notes"]
    for words in ("class_balanced by label: 2", "curriculum by loss", "stratified by cluster: 3"):
        assert any(f"rows {words}" in note for note in notes), notes


def test_rows_that_do_not_fit_are_an_error_before_any_file(tiny_model, tmp_path):
    rows = {"accuracy, macro_f1": "{name: group_balanced, column: label, min_group: 30}"}
    training = training_part(tmp_path, max_steps=1)
    recipe = write_tiny_recipe(tmp_path, tiny_model, tasks=tasks_with(rows), training=training)
    with pytest.raises(UserError, match=r"tasks\.sentiment\.rows: column 'label' has groups of"):
        mtlcore.train(recipe)
    assert not (tmp_path / "run").exists()
