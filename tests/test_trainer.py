"""The loop: resume, evaluation, best checkpoint, early stopping, records and errors."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import mtlcore
from mtlcore.api import prepare
from mtlcore.checkpoint_store import checkpoint_folder, checkpoints
from mtlcore.data.batches import plan_rows
from mtlcore.demo.tiny import make_tiny_model
from mtlcore.errors import MtlcoreError, UserError
from mtlcore.recipe_file import read_recipe
from mtlcore.run import Run
from mtlcore.trainer import Trainer
from tests.recipes import TASKS, final_adapters, metrics, training_part, write_tiny_recipe

WEIGHTINGS = ["pcgrad", "equal", "uncertainty"]


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_run_is_bit_identical(
    weighting: str, accumulation: int, tiny_model: Path, tmp_path: Path
) -> None:
    """With dropout, a penalty with state, an evaluation in between, and two resumes."""
    finals, losses = [], []
    for name in ("whole", "resumed"):
        folder = tmp_path / name
        folder.mkdir()
        training = training_part(
            folder,
            gradient_accumulation_steps=accumulation,
            eval_steps=3,
            eval_max_rows=4,
            lr_scheduler_type="cosine",
        )
        recipe = write_tiny_recipe(folder, tiny_model, training=training, weighting=weighting)
        mtlcore.train(recipe)
        if name == "resumed":
            for step in (2, 4):
                for later in checkpoints(folder / "run"):
                    if int(later.name.removeprefix("step-")) > step:
                        shutil.rmtree(later)
                mtlcore.train(recipe, resume=True)
        finals.append(final_adapters(folder / "run"))
        last = [line for line in metrics(folder / "run") if "loss" in line]
        losses.append([(line["step"], line["loss"]) for line in last])
    assert losses[0] == losses[1]
    assert finals[0].keys() == finals[1].keys()
    for key, value in finals[0].items():
        assert torch.equal(value, finals[1][key]), key


def test_training_again_differs_only_by_seed(tiny_model: Path, tmp_path: Path) -> None:
    runs = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        folder = tmp_path / name
        folder.mkdir()
        recipe = write_tiny_recipe(folder, tiny_model)
        mtlcore.train(recipe, [f"training.seed={seed}", "training.max_steps=2"])
        runs.append(final_adapters(folder / "run"))
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])
    assert any(not torch.equal(runs[0][key], runs[2][key]) for key in runs[0])


@pytest.mark.parametrize("weighting", ["equal", "pcgrad"])
def test_accumulation_gives_the_weights_of_the_whole_batch(
    weighting: str, tiny_model: Path, tmp_path: Path
) -> None:
    finals = []
    for name, size, accumulation in (("1x12", 12, 1), ("4x3", 3, 4)):
        folder = tmp_path / name
        folder.mkdir()
        training = training_part(
            folder,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            max_steps=3,
            adam_epsilon=1e-3,  # else Adam turns rounding of zero gradients into full steps
        )
        recipe = write_tiny_recipe(
            folder, tiny_model, training=training, weighting=weighting, lora="{r: 4, lora_alpha: 8}"
        )
        mtlcore.train(recipe, ["model.dtype=float64"])
        finals.append(final_adapters(folder / "run"))
    for key, value in finals[0].items():
        torch.testing.assert_close(value, finals[1][key], rtol=1e-9, atol=1e-12)


def test_a_folder_that_holds_a_run_is_not_overwritten(tiny_model: Path, tmp_path: Path) -> None:
    recipe = write_tiny_recipe(tmp_path, tiny_model)
    mtlcore.train(recipe, ["training.max_steps=2"])
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="already holds a run"):
        mtlcore.train(recipe)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_resume_without_a_checkpoint_begins_and_says_so(tiny_model: Path, tmp_path: Path) -> None:
    recipe = write_tiny_recipe(tmp_path, tiny_model)
    with pytest.raises(UserError, match="is no checkpoint"):
        mtlcore.train(recipe, resume=tmp_path)
    run = mtlcore.train(recipe, ["training.max_steps=1"], resume=True)
    assert run.step == 1
    assert f"there is no checkpoint in {run.folder} yet: the run begins at step 0" in run.notes


def test_a_run_records_what_it_depended_on(tiny_run: Path) -> None:
    environment = json.loads((tiny_run / "environment.json").read_text())
    assert {"torch", "transformers", "peft", "mtlcore"} <= environment["versions"].keys()
    assert len(environment["data"]["sentiment"]["train"]["fingerprint"]) == 64
    assert any(plugin["name"] for plugin in environment["plugins"])
    assert environment["flat_batches"] is True
    assert read_recipe(tiny_run / "recipe.yaml").recipe.weighting.name == "pcgrad"


def test_every_step_records_losses_weights_tokens_and_time_per_task(tiny_run: Path) -> None:
    records = [line for line in metrics(tiny_run) if "loss" in line]
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    tasks = {"sentiment", "spelling", "definitions"}
    for record in records:
        assert record["losses"].keys() <= tasks
        assert record["weights"].keys() == record["tokens"].keys() == tasks
        assert sum(record["rows"].values()) == 6
        assert record["seconds"] > 0
        assert sum(record["task_seconds"].values()) == pytest.approx(record["seconds"], rel=1e-3)
        assert record["peak_memory_mb"] > 0
        assert record["penalties"]["l2_anchor"] >= 0
        assert "shared" in record["grad_norms"]
    evaluations = [line for line in metrics(tiny_run) if "eval_loss" in line]
    assert [line["step"] for line in evaluations] == [3, 6]
    assert {"eval_sentiment_loss", "eval_sentiment_accuracy", "eval_overall"} <= (
        evaluations[0].keys()
    )


def test_training_learns(tiny_model: Path, tmp_path: Path) -> None:
    recipe = write_tiny_recipe(tmp_path, tiny_model)
    run = mtlcore.train(recipe, ["training.max_steps=60", "training.learning_rate=0.02"])
    loss = run.evaluate("train", outputs=False).loss
    fresh = Run(run.recipe, tmp_path / "fresh").evaluate("train", outputs=False).loss
    assert loss < fresh - 0.3  # measured: 0.47


def test_a_loaded_run_needs_its_data_only_to_be_scored(tiny_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "moved"
    shutil.copytree(tiny_run, folder)
    text = (folder / "recipe.yaml").read_text().replace("sentiment.train", "gone")
    (folder / "recipe.yaml").write_text(text)
    run = mtlcore.load(folder)
    assert len(run.generate(["Correct: helo"], "spelling")) == 1
    with pytest.raises(UserError, match="gone"):
        run.evaluate("test")


def test_the_best_checkpoint_is_kept_and_loaded(tiny_model: Path, tmp_path: Path) -> None:
    training = training_part(
        tmp_path, eval_steps=1, eval_max_rows=4, metric_for_best_model="eval_loss",
        load_best_model_at_end="true", save_total_limit=1, save_steps=1, learning_rate=0.3,
    )  # fmt: skip
    recipe = write_tiny_recipe(tmp_path, tiny_model, training=training)
    for seed in range(10):  # one whose last evaluation is not the best
        run = mtlcore.train(
            recipe, [f"training.seed={seed}", f"training.output_dir={tmp_path}/{seed}"]
        )
        losses = {
            line["step"]: line["eval_loss"] for line in metrics(run.folder) if "eval_loss" in line
        }
        best = min(losses, key=losses.__getitem__)
        if best < 6:
            break
    assert best < 6
    assert run.step == mtlcore.load(run.folder).step == 6
    kept = [int(path.name.removeprefix("step-")) for path in checkpoints(run.folder)]
    assert set(kept) == {best, 6}
    again = mtlcore.load(run.folder).evaluate("eval", outputs=False, max_rows=4).loss
    assert again == pytest.approx(losses[best], rel=1e-6)


def test_early_stopping_stops(tiny_model: Path, tmp_path: Path) -> None:
    training = training_part(
        tmp_path, eval_steps=1, eval_max_rows=4, metric_for_best_model="eval_loss",
        early_stopping_patience=2, max_steps=30, learning_rate=1.0,
    )  # fmt: skip
    run = mtlcore.train(write_tiny_recipe(tmp_path, tiny_model, training=training))
    assert run.step < 30
    assert any("stopped early" in note for note in run.notes)
    assert checkpoints(run.folder)[-1].name == f"step-{run.step:06d}"


def test_epochs_count_the_rows_of_the_largest_task(tiny_model: Path, tmp_path: Path) -> None:
    training = training_part(tmp_path, max_steps="null", num_train_epochs=2)
    recipe = write_tiny_recipe(tmp_path, tiny_model, training=training, sampling="proportional")
    run = Run(read_recipe(recipe).recipe, tmp_path / "run")
    steps = Trainer(run).stages[0].steps
    assert steps == math.ceil(2 * 40 / (6 * 40 / 76))


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ("torch.ones(2)", r"gave weights of shape \[2\], not a tensor \[3\] for the 3 tasks"),
        ("torch.ones(())", r"gave weights of shape \[\], not"),
        ("[1, 2, 3]", r"gave \[1, 2, 3\], not a tensor \[3\]"),
        ("torch.ones(3) / 0", r"gave weights that are not finite: \[inf, inf, inf\]"),
    ],
)
def test_a_weighting_that_gives_wrong_weights_is_named(
    weights: str, told: str, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom mtlcore.components import Weighting\n\n"
        "class Mine(Weighting):\n    name = 'mine'\n\n"
        f"    def mtlcore_weigh_tasks(self):\n        return {weights}\n"
    )
    recipe = write_tiny_recipe(tmp_path, tiny_model, weighting="mine", plugins="[./mine.py]")
    told = (
        rf"recipe\.yaml:\d+, weighting: step 1: the weighting 'mine' {told}(.|\n)*fix: .*check_weig"
    )
    with pytest.raises(UserError, match=told):
        mtlcore.train(recipe)


def test_a_loss_that_is_not_finite_names_step_task_and_row(
    tiny_model: Path, tmp_path: Path
) -> None:
    run = Run(read_recipe(write_tiny_recipe(tmp_path, tiny_model)).recipe, tmp_path / "run")
    trainer = Trainer(run)
    with torch.no_grad():
        for up in run.model.adapter_parameters("own:spelling"):
            up.fill_(float("nan"))
    with pytest.raises(UserError, match=r"not finite at step 1 .*spelling row \d+"):
        trainer.train_step()


def test_the_plan_is_a_pure_function_of_seed_step_and_position(
    tiny_model: Path, tmp_path: Path
) -> None:
    recipe = read_recipe(write_tiny_recipe(tmp_path, tiny_model)).recipe
    first, second = Run(recipe, tmp_path / "a"), Run(recipe, tmp_path / "b")
    plans = []
    for step in range(12):
        plans.append([(e.task, e.row) for e in plan_rows(first, step)])
        torch.rand(3)  # global draws change nothing
    assert plans == [[(e.task, e.row) for e in plan_rows(second, step)] for step in range(12)]
    rows = [row for plan in plans for task, row in plan if task == "definitions"]
    epochs = [rows[start : start + 12] for start in range(0, len(rows) - 11, 12)]
    assert sorted(epochs[0]) == list(range(12))  # every row once an epoch
    assert epochs[0] != sorted(epochs[0])
    if len(epochs) > 1:
        assert epochs[1] != epochs[0]


def test_a_mixed_batch_generates_what_each_task_alone_does(tiny_run: Path) -> None:
    run = mtlcore.load(tiny_run)
    prompts = ["Correct: helo\nCorrected:", "Define a longer thing than that:", "Review: good\n"]
    tasks = ["spelling", "definitions", None]
    together = run.generate(prompts, tasks, max_new_tokens=8)
    alone = [
        run.generate([prompt], [task], max_new_tokens=8)[0]
        for prompt, task in zip(prompts, tasks, strict=True)
    ]
    assert together == alone
    assert any("shared adapter" in note for note in run.notes)


def test_generation_errors(tiny_run: Path) -> None:
    run = mtlcore.load(tiny_run)
    with pytest.raises(UserError, match="did you mean 'spelling'"):
        run.generate(["x"], "speling")
    with pytest.raises(UserError, match="2 prompts but 1 tasks"):
        run.generate(["x", "y"], ["spelling"])
    assert run.generate([]) == []


def test_predictions_and_scores_are_kept(tiny_run: Path, tmp_path: Path) -> None:
    run = mtlcore.load(tiny_run)
    run.folder = tmp_path
    scores = run.evaluate("test", save_as="test")
    lines = (tmp_path / "predictions/test/sentiment.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["row"] for row in rows] == list(range(6))
    for row in rows:
        assert row["output"] == row["options"][row["choice"]]
        assert row["choice"] == max(range(2), key=row["scores"].__getitem__)
    right = sum(row["choice"] == row["label"] for row in rows)
    assert scores.by_task["sentiment"].metrics["accuracy"] == pytest.approx(right / 6)
    kept = json.loads((tmp_path / "predictions/test/scores.json").read_text())
    assert kept["overall"] == pytest.approx(scores.overall)
    assert scores.overall == pytest.approx(
        sum(score.value for score in scores.by_task.values()) / 3  # type: ignore[misc]
    )


INDIFFERENT = """
import torch
from mtlcore.components import Weighting

class Indifferent(Weighting):
    \"\"\"Look at the losses and give every task the same weight.\"\"\"

    name = "indifferent"
    needs = "losses"

    def mtlcore_weigh_tasks(self, run, losses, gradients):
        return torch.full_like(losses, 0.5)
"""


@pytest.mark.parametrize(("weighting", "warned"), [("indifferent", True), ("pcgrad", False)])
def test_a_weighting_without_effect_is_reported(
    weighting: str, warned: bool, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "indifferent.py").write_text(INDIFFERENT)
    recipe = write_tiny_recipe(
        tmp_path, tiny_model, weighting=weighting, plugins="[./indifferent.py]"
    )
    run = mtlcore.train(recipe)
    assert any("changed nothing" in note for note in run.notes) == warned


def test_a_weighting_with_nothing_to_weigh_is_told(tiny_model: Path, tmp_path: Path) -> None:
    told = []
    for name in ("upgrad", "equal"):
        folder = tmp_path / name
        folder.mkdir()
        recipe = write_tiny_recipe(
            folder, tiny_model, weighting=name, sharing="{shared: 0, own: 2}"
        )
        run = mtlcore.train(recipe, ["training.max_steps=2"])
        told += [note for note in run.notes if "no trained weight is shared" in note]
    assert [note.split("'")[1] for note in told] == ["upgrad"]


def test_losses_only_weightings_build_no_rows(tiny_model: Path, tmp_path: Path) -> None:
    recipe = write_tiny_recipe(tmp_path, tiny_model, weighting="equal")
    run = Run(read_recipe(recipe).recipe, tmp_path / "run")
    trainer = Trainer(run)
    run.plugins.hook.mtlcore_run_start(run=run)
    trainer.train_step()
    assert trainer.gradients.arena.rows.shape[0] == 1


@pytest.mark.parametrize("target", ["shared", "merged", "task"])
def test_exports_of_a_run_load(target: str, tiny_run: Path, tmp_path: Path) -> None:
    run = mtlcore.load(tiny_run)
    choices: dict[str, dict[str, Any]] = {
        "shared": {"shared": True},
        "merged": {"merged": True, "task": "spelling"},
        "task": {"task": "spelling"},
    }
    folder = run.export(tmp_path / target, **choices[target])
    names = {path.name for path in folder.iterdir()}
    assert "config.json" in names if target == "merged" else "adapter_config.json" in names
    with pytest.raises(UserError, match="nothing chosen"):
        run.export(tmp_path / "none")


def test_tensorboard_gets_the_numbers_and_a_missing_tracker_is_an_error(
    tiny_model: Path, tmp_path: Path
) -> None:
    recipe = write_tiny_recipe(tmp_path, tiny_model)
    mtlcore.train(recipe, ["training.report_to=[tensorboard]", "training.max_steps=2"])
    events = list((tmp_path / "run").rglob("events.out.tfevents.*"))
    assert any(b"train/sentiment/losses" in event.read_bytes() for event in events)
    other = ["training.output_dir=elsewhere"]
    with pytest.raises(UserError, match=r"'wandb' is not installed\n.*mtlcore\[wandb\]"):
        mtlcore.train(recipe, ["training.report_to=[wandb]", *other])
    with pytest.raises(UserError, match=r"unknown\n.*did you mean 'tensorboard'"):
        mtlcore.train(recipe, ["training.report_to=[tensorbord]", *other])


def test_bf16_trains_beside_fp32_in_one_process(tiny_model: Path, tmp_path: Path) -> None:
    losses = []
    for name, bf16 in (("a", "false"), ("b", "true")):
        folder = tmp_path / name
        folder.mkdir()
        recipe = write_tiny_recipe(folder, tiny_model)
        mtlcore.train(recipe, [f"training.bf16={bf16}", "training.max_steps=2"])
        losses.append([line["loss"] for line in metrics(folder / "run")])
        assert all(v.dtype == torch.float32 for v in final_adapters(folder / "run").values())
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[0] != losses[1]


def test_resuming_from_an_earlier_checkpoint_keeps_later_ones_aside(
    tiny_model: Path, tmp_path: Path
) -> None:
    recipe = write_tiny_recipe(tmp_path, tiny_model)
    run = mtlcore.train(recipe, ["training.save_total_limit=1"], resume=False)
    assert [path.name for path in checkpoints(run.folder)] == ["step-000006"]
    shutil.rmtree(run.folder)
    mtlcore.train(recipe)
    start = run.folder / "checkpoints" / "step-000002"
    again = mtlcore.train(recipe, ["training.max_steps=4"], resume=start)
    names = sorted(path.name for path in (run.folder / "checkpoints").iterdir())
    assert names == [
        "step-000002", "step-000004", "superseded-1-step-000004", "superseded-1-step-000006",
    ]  # fmt: skip
    assert sum("superseded" in note for note in again.notes) == 2


def test_a_resumed_run_is_unfinished_until_it_ends_again(tiny_model: Path, tmp_path: Path) -> None:
    recipe = write_tiny_recipe(tmp_path, tiny_model)
    folder = mtlcore.train(recipe).folder
    trainer = prepare(read_recipe(recipe), resume=checkpoint_folder(folder, 2))
    assert not (folder / "result.json").exists()
    trainer.train()
    assert json.loads((folder / "result.json").read_text())["step"] == 6


def test_resuming_with_other_tasks_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    recipe = write_tiny_recipe(tmp_path, tiny_model, sharing="{shared: 4, own: 0}")
    mtlcore.train(recipe, ["training.max_steps=2"])
    text = recipe.read_text().replace("sentiment:\n", "mood:\n")
    recipe.write_text(text)
    with pytest.raises(UserError, match=r"not that of the run to be resumed:\n  tasks.mood"):
        mtlcore.train(recipe, resume=True)
    (tmp_path / "run" / "recipe.yaml").unlink()  # the checkpoint knows it, too
    with pytest.raises(UserError, match=r"not that of the run to be resumed:\n  tasks.mood"):
        mtlcore.train(recipe, resume=True)


@pytest.mark.parametrize("change", ["training.seed=1", "lora.r=2", "weighting=equal"])
def test_resuming_with_another_recipe_is_refused(
    change: str, tiny_model: Path, tmp_path: Path
) -> None:
    recipe = write_tiny_recipe(tmp_path, tiny_model)
    mtlcore.train(recipe, ["training.max_steps=2"])
    with pytest.raises(UserError, match=f"resumed:\n  {change.partition('=')[0]}.*: .* -> "):
        mtlcore.train(recipe, [change, "training.max_steps=4"], resume=True)
    assert mtlcore.train(recipe, ["training.max_steps=4"], resume=True).step == 4


def test_a_task_penalty_is_added_to_its_loss(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "extra.py").write_text(PENALTY)
    recipe = write_tiny_recipe(
        tmp_path, tiny_model, plugins="[./extra.py]", regularization="[twice]",
        training=training_part(tmp_path, max_steps=1),
    )  # fmt: skip
    doubled = mtlcore.train(recipe)
    plain = tmp_path / "plain"
    plain.mkdir()
    recipe = write_tiny_recipe(
        plain, tiny_model, regularization="[]", training=training_part(plain, max_steps=1)
    )
    mtlcore.train(recipe)
    with_penalty, without = metrics(doubled.folder)[0], metrics(plain / "run")[0]
    for task, loss in without["losses"].items():
        assert with_penalty["losses"][task] == pytest.approx(2 * loss, rel=1e-5)


PENALTY = """
from mtlcore.components import Penalty, Regularizer

class Twice(Regularizer):
    '''Add each task's loss to itself.'''

    name = "twice"
    acts_on = "task"

    def mtlcore_penalties(self, run, batch, outputs):
        return [Penalty("twice", "task", outputs.loss_sums)] if batch else []
"""


def test_generation_options_are_checked(tiny_run: Path) -> None:
    run = mtlcore.load(tiny_run)
    with pytest.raises(UserError, match="did you mean 'max_new_tokens'"):
        run.generate(["x"], "spelling", max_newtokens=5)
    with pytest.raises(UserError, match=r"generation.max_new_tokens: .* found 0"):
        run.generate(["x"], "spelling", max_new_tokens=0)


def test_a_recipe_may_be_a_mapping(tiny_model: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a long day"}\n{"text": "a short day"}\n' * 6)
    run = mtlcore.train(
        {
            "model": {"name_or_path": str(tiny_model)},
            "tasks": {"days": {"train": str(rows), "format": "text"}},
            "training": {"output_dir": str(tmp_path / "run"), "per_device_train_batch_size": 2},
        },
        ["training.max_steps=2"],
    )
    assert run.step == 2
    assert run.evaluate("eval").overall is None


DIRECTION = """
import torch
from mtlcore.components import Weighting
from mtlcore.gradients import Direction

class Hasty(Weighting):
    '''Give a direction without having asked for the rows.'''

    name = "hasty"
    needs = "losses"

    def mtlcore_weigh_tasks(self, run, losses, gradients):
        return Direction(torch.zeros(gradients.arena.shared_size))
"""


def test_a_direction_needs_the_rows(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "hasty.py").write_text(DIRECTION)
    recipe = write_tiny_recipe(tmp_path, tiny_model, weighting="hasty", plugins="[./hasty.py]")
    with pytest.raises(MtlcoreError, match="set needs = 'rows'"):
        mtlcore.train(recipe)


def test_a_swapped_base_model_is_refused_by_every_load(tiny_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "base")
    recipe = write_tiny_recipe(tmp_path, model)
    run = mtlcore.train(recipe, ["training.max_steps=2"])
    shutil.rmtree(model)
    make_tiny_model(model, seed=1)
    with pytest.raises(UserError, match="base model is not the one"):
        mtlcore.load(run.folder)
    with pytest.raises(UserError, match="base model is not the one"):
        mtlcore.train(recipe, ["training.max_steps=4"], resume=True)


def test_a_metric_on_labels_is_refused_before_the_training(
    tiny_model: Path, tmp_path: Path
) -> None:
    tasks = TASKS.replace("[exact_match]", "[accuracy]")
    with pytest.raises(UserError, match="rows of 'spelling' have none"):
        mtlcore.train(write_tiny_recipe(tmp_path, tiny_model, tasks=tasks))
    assert not (tmp_path / "run").exists()


def test_a_prompt_without_tokens_is_refused(tiny_run: Path) -> None:
    with pytest.raises(UserError, match="prompt 1 has no tokens"):
        mtlcore.load(tiny_run).generate(["Define", ""], "definitions")
