"""`GroupMetrics`, against fairlearn itself and by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fairlearn.metrics import MetricFrame, selection_rate, true_positive_rate
from sklearn.metrics import accuracy_score

import mtlcore
from mtlcore.components import Evaluator, Finding
from mtlcore.errors import UserError
from mtlcore.evaluation.predictions import Prediction
from mtlcore.recipe import TaskRecipe
from mtlcore.run import Run
from mtlcore.testing import stand_in_run
from mtlcore_plugins.auditing.group_metrics import GroupMetrics
from mtlcore_plugins.evaluation.accuracy import Accuracy
from mtlcore_plugins.evaluation.macro_f1 import MacroF1
from tests.auditing.planted import planted_recipe, planted_rows, write

LABELS = ("no", "yes", "so")


def answers(count: int, seed: int = 0, groups: str = "aab") -> list[Prediction]:
    """Rows with a label, a choice that is mostly right, and a group."""
    draw = np.random.default_rng(seed)
    made = []
    for row in range(count):
        label = int(draw.integers(3))
        choice = label if draw.random() < 0.7 else int(draw.integers(3))
        fields = {"group": groups[row % len(groups)], "text": "x"}
        made.append(
            Prediction("task", row, "x", LABELS[label], LABELS[choice], float(draw.random()), 2,
                       label=label, choice=choice, options=LABELS, fields=fields)
        )  # fmt: skip
    return made


def run_with(*evaluators: Evaluator, eval_rows: Sequence[Prediction] = ()) -> Any:
    """A run of one task with these metrics."""
    run = stand_in_run({"task": 10}, evaluators={"task": list(evaluators)})
    form = {"train": "a.jsonl", "format": "text", "columns": {"prompt": "text"}}
    run.recipe.tasks["task"] = TaskRecipe.model_validate(form)
    run.tasks[0].eval = list(eval_rows)
    run.task = lambda name: run.tasks[0]
    return run


def audit(rows: Sequence[Prediction], *metrics: Evaluator, **options: Any) -> dict[str, Finding]:
    """Findings by quantity."""
    found = GroupMetrics(column="group", **options).audit(run_with(*metrics), {"task": rows})
    return {finding.name.partition(".")[2]: finding for finding in found}


def values(finding: Mapping[str, Any]) -> dict[str, float]:
    return {group: facts["value"] for group, facts in finding["by_group"].items()}


def test_equal_groups_are_both_named() -> None:
    [right, *_] = [row for row in answers(20) if row.choice == row.label]
    rows = [replace(right, row=row, fields={"group": "ab"[row % 2]}) for row in range(40)]
    finding = audit(rows, Accuracy())["accuracy"]
    assert finding.value == 0
    assert "'a' 1.000 (n = 20), 'b' 1.000 (n = 20)" in finding.message


@pytest.mark.parametrize("groups", ["ab", "aabc", "abbbbbb"])
def test_numbers_are_those_of_fairlearn(groups: str) -> None:
    rows = answers(210, groups=groups)
    found = audit(rows, Accuracy())
    truth, chosen = [row.label for row in rows], [row.choice for row in rows]
    sensitive = [row.fields["group"] for row in rows]

    def frame(metric: Any, label: int | None = None) -> MetricFrame:
        one, other = (
            values if label is None else [int(v == label) for v in values]
            for values in (truth, chosen)
        )
        return MetricFrame(metrics=metric, y_true=one, y_pred=other, sensitive_features=sensitive)

    oracle = frame(accuracy_score)
    assert found["accuracy"].value == pytest.approx(oracle.difference(), abs=1e-12)
    assert found["accuracy"].details["ratio"] == pytest.approx(oracle.ratio(), abs=1e-12)
    assert found["accuracy"].details["overall"] == pytest.approx(oracle.overall, abs=1e-12)
    assert values(found["accuracy"].details) == pytest.approx(oracle.by_group.to_dict())
    for name, metric in (
        ("selection_rate", selection_rate),
        ("true_positive_rate", lambda y, z: true_positive_rate(y, z, pos_label=1)),
    ):
        frames = [frame(metric, label) for label in range(3)]
        largest = max(frame.difference() for frame in frames)
        assert found[name].value == pytest.approx(largest, abs=1e-12)
        for label, oracle in zip(LABELS, frames, strict=True):
            mine = values(found[name].details["labels"][label])
            assert mine == pytest.approx(oracle.by_group.to_dict())


def test_numbers_are_those_by_hand() -> None:
    def row(group: str, label: int, choice: int) -> Prediction:
        return Prediction("task", 0, "", "", "", 1.0, 1, label, choice, ("no", "yes"), (),
                          {"group": group})  # fmt: skip

    rows = [row("a", 1, 1), row("a", 1, 1), row("a", 0, 0), row("a", 0, 1)]
    rows += [row("b", 1, 0), row("b", 1, 1), row("b", 0, 0), row("b", 0, 0)]
    found = audit(rows, Accuracy(), min_group=4)
    assert values(found["accuracy"].details) == {"a": 0.75, "b": 0.75}
    assert found["accuracy"].value == 0.0
    assert values(found["selection_rate"].details["labels"]["yes"]) == {"a": 0.75, "b": 0.25}
    assert found["selection_rate"].value == 0.5
    assert values(found["true_positive_rate"].details["labels"]["yes"]) == {"a": 1.0, "b": 0.5}
    assert found["true_positive_rate"].details["labels"]["yes"]["ratio"] == 0.5
    assert found["accuracy"].details["by_group"]["a"]["n"] == 4


def test_intervals_hold_the_values_and_alike_groups_have_large_p_values() -> None:
    rows = answers(400, groups="ab")
    finding = audit(rows, Accuracy())["accuracy"]
    for facts in finding.details["by_group"].values():
        assert facts["low"] < facts["value"] < facts["high"]
    assert finding.details["p"] > 0.05
    assert finding.details["low"] >= 0
    worse = [
        Prediction(**{**vars(row), "choice": (row.label + 1) % 3})
        if row.fields["group"] == "b" and row.row % 4 == 1
        else row
        for row in rows
    ]
    assert audit(worse, Accuracy())["accuracy"].details["p"] < 0.02


def test_only_the_limited_metric_can_fail() -> None:
    rows = answers(300, groups="ab")
    found = audit(rows, MacroF1(), Accuracy(), fail_above=0.0)
    assert next(iter(found)) == "macro_f1"
    assert [name for name, finding in found.items() if finding.failed] == ["macro_f1"]
    assert "macro_f1 differs by" in found["macro_f1"].message
    chosen = audit(rows, MacroF1(), fail_above=0.0, metric="selection_rate")
    assert [name for name, finding in chosen.items() if finding.failed] == ["selection_rate"]
    assert not any(f.failed for f in audit(rows, Accuracy(), fail_above=1.0).values())


def test_a_task_without_a_metric_is_compared_by_its_loss() -> None:
    rows = [Prediction(**{**vars(r), "options": (), "label": None}) for r in answers(60)]
    found = audit(rows)
    assert list(found) == ["loss"]
    mine = [row.loss_sum for row in rows if row.fields["group"] == "b"]
    assert values(found["loss"].details)["b"] == pytest.approx(sum(mine) / (2 * len(mine)))


def test_rows_with_options_of_their_own_have_no_rates() -> None:
    rows = [Prediction(**{**vars(row), "options": (*LABELS, str(row.row))}) for row in answers(60)]
    assert list(audit(rows, Accuracy())) == ["accuracy"]


def test_a_limit_that_cannot_be_looked_at_is_not_kept() -> None:
    own = [Prediction(**{**vars(row), "options": (*LABELS, str(row.row))}) for row in answers(60)]
    options = {"metric": "selection_rate", "fail_above": 0.01}
    found = audit(own, Accuracy(), **options)["selection_rate"]
    assert found.failed
    assert math.isnan(found.value)
    assert "rows have options of their own, so the limit 0.01 is not kept" in found.message
    one_each = [  # no label stands in both groups
        row for row in answers(90, groups="ab") if row.label == (row.fields["group"] == "a")
    ]
    found = audit(one_each, Accuracy(), metric="true_positive_rate", fail_above=0.1)
    assert found["true_positive_rate"].failed
    assert not audit(own, Accuracy(), metric="selection_rate")["selection_rate"].failed


def test_the_worst_of_many_labels_is_not_found_by_chance() -> None:
    labels = tuple(f"label {number}" for number in range(10))
    found = []
    for seed in range(40):
        draw = np.random.default_rng(seed)
        rows = [
            Prediction(**{**vars(row), "options": labels, "label": int(draw.integers(10)),
                          "choice": int(draw.integers(10))})
            for row in answers(120, seed, groups="ab")
        ]  # fmt: skip
        found.append(audit(rows, Accuracy())["selection_rate"].details)
    # Of one label alone, 40% or so: the least of ten p-values.
    assert sum(details["p"] < 0.05 for details in found) <= 4
    least = [min(one["p"] for one in details["labels"].values()) for details in found]
    assert sum(p < 0.05 for p in least) > 8


def test_a_label_that_a_group_lacks_has_no_true_positive_rate() -> None:
    rows = [row for row in answers(300) if row.fields["group"] == "a" or row.label != 2]
    found = audit(rows, Accuracy())
    assert set(found["true_positive_rate"].details["labels"]) == {"no", "yes"}
    assert found["true_positive_rate"].details["labels_without_value"] == ["so"]
    assert set(found["selection_rate"].details["labels"]) == set(LABELS)


def test_small_groups_and_rows_without_a_value_are_left_out_and_counted() -> None:
    rows = answers(120, groups="ab")
    odd = [("c", 3), (None, 4), (" ", 2)]
    for value, count in odd:
        rows += [
            Prediction(**{**vars(row), "fields": {"group": value}}) for row in answers(count, 1)
        ]
    finding = audit(rows, Accuracy(), fail_above=0.0)["accuracy"]
    assert finding.details["small_groups"] == {"c": 3}
    assert finding.details["rows_without_value"] == 6
    assert set(finding.details["by_group"]) == {"a", "b"}
    [nothing] = audit(rows, Accuracy(), fail_above=0.0, min_group=100).values()
    assert math.isnan(nothing.value)
    assert not nothing.failed
    assert "not enough data" in nothing.message


def test_the_same_rows_give_the_same_findings() -> None:
    assert audit(answers(90), Accuracy()) == audit(answers(90), Accuracy())


# -- what is refused ---------------------------------------------------------------------------


def check(auditor: GroupMetrics, run: Any) -> None:
    """Before the start of a run."""
    components = {}
    for task, evaluators in run.evaluators.items():
        for evaluator in evaluators:
            evaluator.tasks = (task,)
            components[evaluator.name] = evaluator
    assert auditor.mtlcore_check(run.recipe, run.tasks, components) == []


def refused(rows: Sequence[Prediction], **options: Any) -> str:
    """The message at the start of a run whose eval rows are these."""
    run = run_with(Accuracy(), eval_rows=rows)
    with pytest.raises(UserError) as caught:
        check(GroupMetrics(**{"column": "group", **options}), run)
    return str(caught.value)


def test_a_missing_column_names_the_columns_and_the_nearest() -> None:
    message = refused(answers(30), column="gruop")
    assert "task 'task' has no column 'gruop'; columns of 'task': group, text" in message
    assert "did you mean 'group'?" in message
    assert "auditing.column" in message


def test_a_group_of_three_rows_is_refused_before_training() -> None:
    rows = answers(40, groups="ab") + answers(3, groups="c")
    message = refused(rows)
    assert "1 of 3 groups of 'group' have fewer than 10 eval rows: 'c' has 3" in message
    assert "set min_group" in message
    check(GroupMetrics(column="group", min_group=3), run_with(Accuracy(), eval_rows=rows))


def test_a_column_with_one_value_has_no_groups() -> None:
    assert "has the one value 'a'" in refused(answers(40, groups="a"))


def test_unknown_tasks_and_metrics_are_refused() -> None:
    assert "did you mean 'task'?" in refused(answers(40, groups="ab"), tasks=["tasks"])
    assert "did you mean 'accuracy'?" in refused(answers(40, groups="ab"), metric="acuracy")


def test_a_run_with_a_bad_column_ends_before_anything_is_written(
    planted: Path, tmp_path: Path
) -> None:
    recipe = planted_recipe(planted, mend=False)
    recipe["training"] |= {"output_dir": str(tmp_path / "run"), "max_steps": 1}
    recipe["auditing"] = [{"name": "group_metrics", "column": "sexs"}]
    with pytest.raises(UserError, match="did you mean 'sex'"):
        mtlcore.train(recipe)
    rows = planted_rows(40, 5, biased=False)
    rows += [{**row, "sex": "x"} for row in planted_rows(3, 6, biased=False)]
    recipe["tasks"]["people"]["eval"] = write(tmp_path / "eval.jsonl", rows)
    recipe["auditing"][0]["column"] = "sex"
    with pytest.raises(UserError, match="'x' has 3"):
        mtlcore.train(recipe)
    assert not (tmp_path / "run").exists()
    recipe["auditing"][0]["min_group"] = 3
    run = mtlcore.train(recipe)
    assert {finding.name for finding in run.findings} == {
        "group_metrics.accuracy",
        "group_metrics.selection_rate",
        "group_metrics.true_positive_rate",
    }
    line = json.loads((run.folder / "audits.jsonl").read_text())
    assert set(line["findings"][0]["details"]["by_group"]) == {"f", "m", "x"}


def test_a_part_of_the_rows_during_training_is_no_error(planted: Path, tmp_path: Path) -> None:
    recipe = planted_recipe(planted, mend=False)
    recipe["training"] |= {"output_dir": str(tmp_path / "run"), "max_steps": 2, "eval_max_rows": 12}
    recipe["auditing"] = [{"name": "group_metrics", "column": "sex", "every_n_steps": 1}]
    run = mtlcore.train(recipe)
    lines = [json.loads(text) for text in (run.folder / "audits.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    enough = [[finding["details"]["enough"] for finding in line["findings"]] for line in lines]
    assert enough == [[False], [True] * 3]
    assert lines[0]["findings"][0]["value"] is None


def test_a_planted_bias_shows_as_a_difference_of_selection_rates(biased: Run, mended: Run) -> None:
    auditor = GroupMetrics(column="sex")
    rates = {}
    for name, run in (("biased", biased), ("mended", mended)):
        found = {f.name: f for f in auditor.audit(run, run.predict("test"))}
        rates[name] = found["group_metrics.selection_rate"].value
    assert rates["biased"] > 0.8
    assert rates["mended"] < 0.4
