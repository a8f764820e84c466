"""Losses that are not finite, and the loss watchdog.

The model of these tests has an infinite embedding of one token: only rows that hold it are bad.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import mtlcore
from mtlcore import checkpoint
from mtlcore.checkpoint_store import checkpoints, step_of
from mtlcore.errors import UserError
from mtlcore.nonfinite import LONGEST
from mtlcore.run import Run
from tests.helpers import torchrun
from tests.recipes import final_adapters, metrics, training_part, write_tiny_recipe
from tests.test_distributed import assert_equal, train_both

TOKEN = 294  # " in": in rows of all three tasks, never their last token


def bad_model(good: Path, folder: Path, tokens: int | slice = TOKEN) -> Path:
    """A copy of a model that has no finite embedding of some tokens."""
    model: Any = AutoModelForCausalLM.from_pretrained(good)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with torch.no_grad():
        model.get_input_embeddings().weight[tokens] = torch.inf
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(good).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def inf_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bad_model(tiny_model, tmp_path_factory.mktemp("inf") / "model")


@pytest.fixture(scope="module")
def hopeless_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bad_model(tiny_model, tmp_path_factory.mktemp("hopeless") / "model", slice(None))


def recipe_in(folder: Path, model: Path, parts: dict[str, str] | None = None, **keys: Any) -> Path:
    """A tiny recipe in a new folder, with keys of `training` and other parts."""
    folder.mkdir(parents=True)
    return write_tiny_recipe(folder, model, training=training_part(folder, **keys), **parts or {})


def assert_same(one: Path, other: Path) -> None:
    """Final weights and losses are the same bits."""
    first, second = final_adapters(one), final_adapters(other)
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
    told = [[(line["step"], line["losses"]) for line in metrics(run)] for run in (one, other)]
    assert told[0] == told[1]


def forget_after(run: Path, step: int) -> None:
    """Delete the checkpoints after a step, as if the run had been cut off there."""
    for folder in checkpoints(run):
        if step_of(folder) > step:
            shutil.rmtree(folder)


WITHOUT = f"""
from mtlcore.hookspecs import hookimpl

@hookimpl
def mtlcore_add_rows(run, step, rows):
    rows[:] = [row for row in rows if {TOKEN} not in row.input_ids]
    return []
"""


@pytest.mark.parametrize("weighting", ["pcgrad", "equal", "uncertainty"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_skipping_rows_equals_a_run_that_never_had_them(
    weighting: str, accumulation: int, inf_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "without.py").write_text(WITHOUT)
    keys = {"on_nonfinite_loss": "skip_rows", "gradient_accumulation_steps": accumulation}
    parts = {"weighting": weighting, "regularization": "[l2_anchor, coral]"}
    run = mtlcore.train(recipe_in(tmp_path / "a", inf_model, parts, **keys))
    assert run.model.flat
    keys["on_nonfinite_loss"] = "stop"
    parts["plugins"] = f"[{tmp_path / 'without.py'}]"
    other = mtlcore.train(recipe_in(tmp_path / "b", inf_model, parts, **keys))
    assert_same(run.folder, other.folder)
    assert run.rows_drawn == other.rows_drawn
    lines = list(zip(metrics(run.folder), metrics(other.folder), strict=True))
    for mine, theirs in lines:
        for key in ("rows", "tokens", "weights", "penalties", "grad_norms", "learning_rate"):
            assert mine[key] == theirs[key]
    skipped = [sum(mine["skipped_rows"].values()) for mine, _ in lines]
    drawn = [
        sum(mine["rows"].values()) + left for (mine, _), left in zip(lines, skipped, strict=True)
    ]
    assert drawn == [6 * accumulation] * 6
    assert sum(skipped) > 2
    totals = json.loads((run.folder / "result.json").read_text())["totals"]
    assert sum(totals["skipped_rows"].values()) == sum(skipped)
    assert totals["skipped_steps"] == 0
    assert any("row" in note and "left out" in note for note in run.notes)


ASKED = """
import torch
from mtlcore.components import Weighting

class Asked(Weighting):
    \"\"\"Give all tasks the same weight, and keep the steps in which it was asked.\"\"\"

    name = "asked"
    needs = "NEEDS"

    def __init__(self):
        self.steps = []

    def mtlcore_weigh_tasks(self, run, losses, gradients):
        self.steps.append(run.step)
        return torch.ones(len(gradients.present), dtype=torch.float64)

    def state_dict(self):
        return {"steps": self.steps}
"""


@pytest.mark.parametrize("needs", ["nothing", "losses", "gramian"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_weighting_is_asked_once_a_step(
    needs: str, accumulation: int, inf_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "asked.py").write_text(ASKED.replace("NEEDS", needs))
    parts = {
        "weighting": "asked", "plugins": f"[{tmp_path / 'asked.py'}]", "sampling": "equal",
    }  # fmt: skip
    keys = {
        "on_nonfinite_loss": "skip_rows", "gradient_accumulation_steps": accumulation,
        "per_device_train_batch_size": 12, "max_steps": 5,  # no task loses all its rows
    }  # fmt: skip
    run = mtlcore.train(recipe_in(tmp_path / "a", inf_model, parts, **keys))
    assert sum(bool(line["skipped_rows"]) for line in metrics(run.folder)) > 2
    assert all(len(line["losses"]) == 3 for line in metrics(run.folder))
    assert run.weighting.steps == list(range(5))


@pytest.mark.parametrize("policy", ["skip_rows", "lower_learning_rate"])
def test_a_resumed_run_is_bit_identical(policy: str, inf_model: Path, tmp_path: Path) -> None:
    keys = {
        "on_nonfinite_loss": policy,
        "save_steps": 1,
        "per_device_train_batch_size": 3,
        "seed": 2,
    }
    runs = []
    for name in ("whole", "resumed"):
        recipe = recipe_in(tmp_path / name, inf_model, **keys)
        runs.append(mtlcore.train(recipe).folder)
    for step in (2, 4):
        forget_after(runs[1], step)
        mtlcore.train(recipe, resume=True)
    assert_same(*runs)
    lines = [metrics(run) for run in runs]
    for key in ("learning_rate", "skipped_rows", "skipped_steps"):
        assert [line[key] for line in lines[0]] == [line[key] for line in lines[1]]
    results = [json.loads((run / "result.json").read_text()) for run in runs]
    for key in ("skipped_rows", "skipped_steps"):
        assert results[0]["totals"][key] == results[1]["totals"][key]
    told = [bool(line["skipped_rows"]) for line in lines[0]]
    assert any(told[:2]), "no row was skipped before the run was resumed"
    assert any(told[2:]), "no row was skipped afterwards"


def test_a_run_that_stopped_goes_on_with_another_policy(inf_model: Path, tmp_path: Path) -> None:
    """And ends as one that had the policy from the start."""
    keys = {"save_steps": 1, "per_device_train_batch_size": 2, "seed": 3}
    recipe = recipe_in(tmp_path / "stopped", inf_model, **keys)
    with pytest.raises(UserError, match=r"loss is not finite at step [2-6] for .* row \d+"):
        mtlcore.train(recipe)
    resumed = mtlcore.train(recipe, ["training.on_nonfinite_loss=skip_rows"], resume=True)
    whole = recipe_in(tmp_path / "whole", inf_model, on_nonfinite_loss="skip_rows", **keys)
    assert_same(resumed.folder, mtlcore.train(whole).folder)


def test_the_learning_rate_is_halved_by_every_step_with_a_bad_row(
    inf_model: Path, tmp_path: Path
) -> None:
    """And the weights are those of before that step; a second stage keeps the factor."""
    stages = (
        "[{name: one, tasks: [sentiment, spelling], max_steps: 4}, "
        "{name: two, tasks: [definitions, sentiment], max_steps: 4}]"
    )
    keys = {
        "on_nonfinite_loss": "lower_learning_rate", "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 3, "save_steps": 1, "max_steps": "null", "seed": 2,
    }  # fmt: skip
    run = mtlcore.train(recipe_in(tmp_path / "a", inf_model, {"stages": stages}, **keys))
    factor, bad = 1.0, []
    for line in metrics(run.folder):
        if line["skipped_steps"]:
            factor /= 2
            bad.append(line["step"])
            assert line["loss"] is None
            assert line["losses"] == line["grad_norms"] == line["penalties"] == {}
            assert sum(line["skipped_rows"].values()) > 0
            assert sum(line["rows"].values()) == 0
        else:
            assert line["skipped_rows"] == {}
        assert line["learning_rate"] == 5e-3 * factor
    assert 0 < sum(step <= 4 for step in bad) < len(bad) < 8
    folders = {step_of(f): f for f in checkpoints(run.folder)}
    for step in bad:
        if step > 1:
            before, after = (checkpoint.read_adapters(folders[s]) for s in (step - 1, step))
            assert all(torch.equal(before[key], after[key]) for key in before)


def strictly(line: str) -> Any:
    """JSON as the standard has it: no NaN."""
    return json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} in {line}"))


@pytest.mark.parametrize("policy", ["skip_rows", "lower_learning_rate"])
def test_a_step_without_a_good_row_counts_and_moves_nothing(
    policy: str, hopeless_model: Path, tmp_path: Path
) -> None:
    keys = {"on_nonfinite_loss": policy, "max_steps": 3, "weight_decay": 0.1, "eval_steps": 1}
    recipe = recipe_in(tmp_path / "a", hopeless_model, **keys)
    run = mtlcore.train(recipe)
    fresh = Run(run.recipe, tmp_path / "fresh").model.adapter_state()
    for key, value in run.model.adapter_state().items():
        assert torch.equal(value, fresh[key])
    lines = [strictly(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "losses" in line]
    assert [line["step"] for line in steps] == [1, 2, 3]
    assert all(line["loss"] is None and line["skipped_steps"] == 1 for line in steps)
    assert all(line["eval_loss"] is None for line in lines if "losses" not in line)
    totals = json.loads((run.folder / "result.json").read_text())["totals"]
    assert totals["skipped_steps"] == 3
    assert sum(totals["skipped_rows"].values()) == 18
    assert sum(run.rows_drawn) == 18


@pytest.mark.parametrize("policy", ["skip_rows", "lower_learning_rate"])
def test_too_many_steps_in_a_row_without_an_update_stop_the_run(
    policy: str, hopeless_model: Path, tmp_path: Path
) -> None:
    keys = {"on_nonfinite_loss": policy, "max_steps": 30, "save_steps": LONGEST - 2}
    recipe = recipe_in(tmp_path / "a", hopeless_model, **keys)
    for resume in (False, True):  # the count is in the checkpoint
        with pytest.raises(
            UserError, match=f"step 11 .* the {LONGEST} steps before made no update"
        ):
            mtlcore.train(recipe, resume=resume)
    rates = [line["learning_rate"] for line in metrics(tmp_path / "a/run")]
    assert len(rates) == LONGEST
    halved = 2.0**-LONGEST if policy == "lower_learning_rate" else 1.0
    assert rates[-1] == 5e-3 * (1 - (LONGEST - 1) / 30) * halved


PENALTY = """
import torch
from mtlcore.components import Penalty, Regularizer

class Rough(Regularizer):
    \"\"\"A penalty that is 0 with a gradient that is not a number, or infinite, at step 2.\"\"\"

    name = "rough"

    def __init__(self, *, on: str, infinite: bool = False):
        self.on, self.infinite = on, infinite

    def mtlcore_penalties(self, run, batch, outputs):
        if run.step != 1 or (batch is None) != (self.on == "weights"):
            return []
        if batch is None:
            zero = sum(p.sum() for _, p in run.model.trainable_parameters()) * 0
        else:
            zero = outputs.loss_sums * 0 if self.on == "task" else outputs.token_losses.sum() * 0
        return [Penalty("rough", self.on, zero + torch.inf if self.infinite else zero.sqrt())]
"""


@pytest.mark.parametrize("infinite", [False, True])
@pytest.mark.parametrize("on", ["task", "batch", "weights"])
def test_gradients_and_penalties_that_are_not_finite(
    on: str, infinite: bool, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "rough.py").write_text(PENALTY)
    penalty = f"[{{name: rough, on: {on}, infinite: {str(infinite).lower()}}}]"
    parts = {"regularization": penalty, "plugins": f"[{tmp_path / 'rough.py'}]"}
    found = "the penalty 'rough' is" if infinite else "the gradient of .* is"
    with pytest.raises(UserError, match=f"{found} not finite at step 2, though the losses are"):
        mtlcore.train(recipe_in(tmp_path / "stop", tiny_model, parts))
    for policy, factor in (("skip_rows", 1.0), ("lower_learning_rate", 0.5)):
        keys = {"on_nonfinite_loss": policy, "lr_scheduler_type": "constant", "max_steps": 3}
        run = mtlcore.train(recipe_in(tmp_path / policy, tiny_model, parts, **keys))
        lines = [strictly(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
        assert [line["skipped_steps"] for line in lines] == [0, 1, 0]
        assert [line["learning_rate"] for line in lines] == [5e-3, 5e-3 * factor, 5e-3 * factor]
        assert [line["skipped_rows"] for line in lines] == [{}] * 3
        assert lines[2]["loss"] > 0
        assert any("step 2; the step made no update" in note for note in run.notes)


@pytest.mark.parametrize(
    ("weighting", "told"),
    [
        ("{name: cagrad, c: 1.0e+300}", r"'cagrad' gave weights up to .*e\+\d+, too large for"),
        (
            "{name: cagrad, c: 1.0e+38}",
            r"\(the weights of 'cagrad' go up to .*e\+37\) is not finite",
        ),
        (
            "{name: fixed, weights: ALL}",
            r"\(the weights of 'fixed' go up to 3e\+38\) is not finite",
        ),
    ],
)
def test_weights_that_are_too_large_are_named(
    weighting: str, told: str, tiny_model: Path, tmp_path: Path
) -> None:
    every = "{sentiment: 3.0e+38, spelling: 3.0e+38, definitions: 3.0e+38}"
    parts = {"weighting": weighting.replace("ALL", every)}
    with pytest.raises(UserError, match=told):
        mtlcore.train(recipe_in(tmp_path / "run", tiny_model, parts))


@pytest.mark.parametrize(("weighting", "total"), [("equal", 2), ("pcgrad", 2), ("pcgrad", 6)])
def test_two_processes_skip_the_rows_of_both(
    weighting: str, total: int, inf_model: Path, tmp_path: Path
) -> None:
    """Of 2 rows one is left, so that a process has none; both; and none."""
    records, finals = train_both(
        tmp_path,
        inf_model,
        total=total,
        more="on_nonfinite_loss: skip_rows, seed: 2",
        weighting=weighting,
        lora="{r: 4, lora_alpha: 8}",
    )
    for one, two in zip(*records, strict=True):
        for key in ("rows", "tokens", "skipped_rows", "skipped_steps"):
            assert one[key] == two[key]
        assert one["losses"] == pytest.approx(two["losses"], rel=1e-9)
    rows = [sum(line["rows"].values()) for line in records[0]]
    assert min(rows) < total
    assert total > 2 or rows == [1, 2, 0]
    assert_equal(finals)


EVERY_RANK = """
import os, sys
import mtlcore
from mtlcore.errors import UserError
try:
    mtlcore.train(sys.argv[1])
except UserError as error:
    from pathlib import Path
    Path(sys.argv[2], os.environ["RANK"]).write_text(str(error))
"""


def test_every_process_stops_with_the_same_message(inf_model: Path, tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path / "a", inf_model, per_device_train_batch_size=2, seed=3)
    script = tmp_path / "script.py"
    script.write_text(EVERY_RANK)
    torchrun(script, recipe, tmp_path)
    first, second = ((tmp_path / name).read_text() for name in "01")
    assert first == second
    assert "the loss is not finite at step" in first


SURGE = """
import torch
from mtlcore.components import Penalty, Regularizer

class Surge(Regularizer):
    \"\"\"Raise the losses by 100 from step 4 on.\"\"\"

    name = "surge"
    acts_on = "task"

    def mtlcore_penalties(self, run, batch, outputs):
        if batch is None or run.step < 3:
            return []
        return [Penalty("surge", "task", 100.0 * torch.tensor(batch.counts))]
"""


def test_the_watchdog_names_step_losses_and_the_last_good_checkpoint(
    tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "surge.py").write_text(SURGE)
    parts = {"regularization": "[surge]", "plugins": f"[{tmp_path / 'surge.py'}]"}
    keys = {"loss_watchdog_threshold": 50, "loss_watchdog_patience": 2, "save_steps": 1}
    # Only the newest is kept, but none makes room for one whose weights may be spoilt.
    keys["save_total_limit"] = 1
    recipe = recipe_in(tmp_path / "a", tiny_model, parts, **keys)
    for resume in (False, True):  # from step 4, where one step was above: the count is kept
        with pytest.raises(UserError) as caught:
            mtlcore.train(recipe, resume=resume)
        problem = caught.value.problem
        assert "above 50 for 2 steps in a row, up to step 5: 10" in problem.message
        assert "spelling 10" in problem.message
        assert "checkpoints/step-000003: start: " in problem.fix
        assert problem.where.endswith(", training.loss_watchdog_threshold")
    # What the fix says works.
    start = re.search(r"start: (\{.*\}); or", problem.fix)[1]
    keys = {"learning_rate": 1e-5, "max_steps": 2}
    anew = recipe_in(tmp_path / "b", tiny_model, {"start": start}, **keys)
    assert mtlcore.train(anew).step == 2


def test_the_watchdog_lets_low_losses_and_short_rises_pass(
    tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "surge.py").write_text(SURGE)
    parts = {"regularization": "[surge]", "plugins": f"[{tmp_path / 'surge.py'}]"}
    keys = {"loss_watchdog_threshold": 50, "loss_watchdog_patience": 4}
    assert mtlcore.train(recipe_in(tmp_path / "a", tiny_model, parts, **keys)).step == 6
    keys = {"loss_watchdog_threshold": 5, "save_steps": 2}
    with pytest.raises(UserError, match="no checkpoint of step 0") as caught:
        mtlcore.train(recipe_in(tmp_path / "b", tiny_model, **keys))
    assert "up to step 3" in caught.value.problem.message  # 3 steps by default
