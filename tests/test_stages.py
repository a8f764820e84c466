"""Stages: which tasks are trained when, resume across them, and early stopping of one task."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import mtlcore
from mtlcore import checkpoint
from mtlcore.api import prepare
from mtlcore.checkpoint_store import checkpoint_folder, checkpoints, step_of
from mtlcore.errors import RecipeError, UserError
from mtlcore.judge import Best
from mtlcore.progress import Progress
from mtlcore.recipe_file import read_recipe
from mtlcore.run import Run
from mtlcore.trainer import Trainer
from tests.recipes import TASKS, final_adapters, metrics, training_part, write_tiny_recipe

STAGES = (
    "[{name: first, tasks: [spelling, definitions], max_steps: 3, learning_rate: 1e-3},"
    " {name: second, tasks: [sentiment, spelling], max_steps: 3}]"
)


def staged(folder: Path, model: Path, stages: str = STAGES, **changes: str) -> Path:
    training = changes.pop("training", training_part(folder, max_steps="null"))
    return write_tiny_recipe(folder, model, stages=stages, training=training, **changes)


def test_a_stage_trains_its_tasks_alone_at_its_own_rate(tiny_model: Path, tmp_path: Path) -> None:
    run = mtlcore.train(staged(tmp_path, tiny_model))
    lines = metrics(run.folder)
    assert [line["stage"] for line in lines] == ["first"] * 3 + ["second"] * 3
    for line in lines:
        idle = "sentiment" if line["stage"] == "first" else "definitions"
        assert line["rows"][idle] == 0
        assert sum(line["rows"].values()) == 6
    assert lines[0]["learning_rate"] == 1e-3
    assert lines[3]["learning_rate"] == 5e-3, "a schedule of its own"


def test_own_weights_of_tasks_of_other_stages_do_not_move(tiny_model: Path, tmp_path: Path) -> None:
    run = mtlcore.train(staged(tmp_path, tiny_model))
    first, last = (checkpoint.read_adapters(checkpoint_folder(run.folder, step)) for step in (3, 6))
    for name in first:
        moved = not torch.equal(first[name], last[name])
        assert moved == (not name.endswith("own:definitions")), name


@pytest.mark.parametrize("kept", [2, 3, 4])
def test_a_run_with_stages_resumes_bit_identically(
    kept: int, tiny_model: Path, tmp_path: Path
) -> None:
    """In the first stage, at the seam, and in the second stage."""
    finals = []
    for name in ("whole", "resumed"):
        folder = tmp_path / name
        folder.mkdir()
        training = training_part(folder, max_steps="null", save_steps=1, warmup_steps=1)
        recipe = staged(folder, tiny_model, training=training)
        mtlcore.train(recipe)
        if name == "resumed":
            for later in checkpoints(folder / "run"):
                if step_of(later) > kept:
                    shutil.rmtree(later)
            mtlcore.train(recipe, resume=True)
        finals.append(final_adapters(folder / "run"))
    for name, value in finals[0].items():
        assert torch.equal(value, finals[1][name]), name


LOCAL = '''
from mtlcore.components import Monitor

class Stages(Monitor):
    """Counts the calls of the hooks of stages."""

    name = "stages_seen"

    def __init__(self):
        self.seen = []

    def mtlcore_stage_start(self, run, stage):
        self.seen.append(f"start {stage} {run.step}")

    def mtlcore_stage_end(self, run, stage):
        self.seen.append(f"end {stage} {run.step}")

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]
'''


def test_stage_hooks_are_called_once_each_and_their_state_is_saved(
    tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "stages.py").write_text(LOCAL)
    recipe = staged(tmp_path, tiny_model, monitoring="[stages_seen]", plugins="[./stages.py]")
    expected = ["start first 0", "end first 3", "start second 3", "end second 6"]
    run = mtlcore.train(recipe)
    (monitor,) = (c for c in run.components.values() if c.name == "stages_seen")
    assert vars(monitor)["seen"] == expected
    shutil.rmtree(checkpoint_folder(run.folder, 6))
    resumed = mtlcore.train(recipe, resume=True)
    (monitor,) = (c for c in resumed.components.values() if c.name == "stages_seen")
    assert vars(monitor)["seen"] == expected, "the end of the first stage was in its checkpoint"


def test_resuming_a_finished_run_says_so(tiny_model: Path, tmp_path: Path) -> None:
    recipe = staged(tmp_path, tiny_model)
    before = final_adapters(mtlcore.train(recipe).folder)
    again = mtlcore.train(recipe, resume=True)
    assert any("nothing left to train" in note for note in again.notes)
    after = final_adapters(again.folder)
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_finished_run_goes_on_with_more_steps(tiny_model: Path, tmp_path: Path) -> None:
    recipe = write_tiny_recipe(tmp_path, tiny_model)
    mtlcore.train(recipe)
    run = mtlcore.train(recipe, ["training.max_steps=8"], resume=True)
    assert run.step == 8
    assert any("goes on" in note for note in run.notes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": "[{name: a, tasks: []}]"}, "at least 1 item"),
        ({"stages": "[{name: a, tasks: [speling]}]"}, "did you mean 'spelling'"),
        ({"stages": "[{name: a, tasks: [spelling]}]"}, "no stage trains sentiment, definitions"),
        ({"stages": STAGES.replace("second", "first")}, "two stages are called 'first'"),
        ({"stages": STAGES, "training": "{max_steps: 5}"}, "no meaning in a run with stages"),
    ],
)
def test_bad_stages_are_told(
    changes: Mapping[str, str], message: str, tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        read_recipe(write_tiny_recipe(tmp_path, tiny_model, **changes))


# -- one task at a time ------------------------------------------------------------------------


def own_of(state: Mapping[str, torch.Tensor], task: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if name.endswith(f"own:{task}")}


@pytest.mark.parametrize("helps", [True, False])
def test_a_task_stops_by_itself_and_keeps_its_best_own_weights(
    helps: bool, tiny_model: Path, tmp_path: Path
) -> None:
    """Unless they are worse beside the others' best: which of the two depends on the start."""
    for seed in range(12):
        folder = tmp_path / str(seed)
        folder.mkdir()
        recipe = task_that_stops(folder, tiny_model, seed)
        run = mtlcore.train(recipe)
        lines = metrics(run.folder)
        found = [line for line in lines if "combined" in line]
        overall = {e["step"]: e["eval_loss"] for e in lines if "eval_loss" in e}
        of_stage = min(overall, key=overall.__getitem__)
        is_kept = bool(found) and found[0]["combined"]["eval_loss"] <= overall[of_stage]
        rows = {line["step"]: line["rows"] for line in lines if "rows" in line}
        stopped = max(step for step, counts in rows.items() if counts["spelling"])
        if found and is_kept == helps and stopped < 14:
            break
    else:
        raise AssertionError("no seed gives the case that this is about")
    losses = {e["step"]: e["eval_spelling_loss"] for e in lines if "eval_loss" in e}
    assert rows[14]["sentiment"] > 0
    seen = {step: loss for step, loss in losses.items() if step <= stopped}
    best = min(seen, key=seen.__getitem__)
    assert stopped == best + 2
    end = final_adapters(run.folder)
    [combined] = found
    assert combined["from_steps"] == {"train": of_stage, "spelling": best}
    source = best if is_kept else of_stage
    kept = checkpoint.read_adapters(checkpoint_folder(run.folder, source))
    for name, value in own_of(end, "spelling").items():
        assert torch.equal(value, kept[name]), name
    assert is_kept == any(f"spelling are those of step {best}" in note for note in run.notes)
    [told] = [note for note in run.notes if "scored together" in note]
    assert f"eval_loss {combined['combined']['eval_loss']:.4f}" in told
    assert f"step {of_stage} alone {overall[of_stage]:.4f}" in told
    assert json.loads((run.folder / "result.json").read_text())["own_steps"] == (
        {"spelling": best} if is_kept else {}
    )
    judged = checkpoint.read_state(checkpoints(run.folder)[-1])["progress"]["judge"]["tasks"]
    if not is_kept:  # what it goes on from is not what it had at its best
        assert judged["spelling"] == {"value": None, "step": of_stage, "stale": 2}
    score = run.evaluate("eval", outputs=False).loss
    assert score == (combined["combined"]["eval_loss"] if is_kept else overall[of_stage])
    shutil.rmtree(checkpoints(run.folder)[-1])
    mtlcore.train(recipe, resume=True)
    assert timeless(metrics(run.folder)) == timeless(lines)
    for name, value in final_adapters(run.folder).items():
        assert torch.equal(value, end[name]), name


def task_that_stops(folder: Path, tiny_model: Path, seed: int = 0) -> Path:
    """A recipe in which one task is judged by itself and the stage ends with the best weights."""
    tasks = TASKS.replace("loss_weight: 2.0", "loss_weight: 2.0\n    early_stopping_patience: 2")
    training = training_part(
        folder, max_steps=14, learning_rate=0.2, eval_steps=1, save_steps=1, seed=seed,
        metric_for_best_model="eval_loss", load_best_model_at_end="true", save_total_limit=20,
    )  # fmt: skip
    return write_tiny_recipe(
        folder, tiny_model, tasks=tasks, training=training, sharing="{shared: 1, own: 6}"
    )


def test_a_task_keeps_its_best_when_only_the_stage_is_judged_anew(
    tiny_model: Path, tmp_path: Path
) -> None:
    """By a loss both times; by its metric later, the task begins anew too."""
    recipe = task_that_stops(tmp_path, tiny_model)
    folder = mtlcore.train(recipe).folder
    kept = checkpoint_folder(folder, 3)
    before = checkpoint.read_state(kept)["progress"]["judge"]["tasks"]["spelling"]
    for metric, expected in (("eval_sentiment_loss", before["step"]), ("eval_overall", None)):
        loaded = read_recipe(recipe, [f"training.metric_for_best_model={metric}"])
        trainer = prepare(loaded, resume=kept)
        told = " ".join(trainer.run.notes)
        assert f"the stage is judged by {metric} from now on, not eval_loss" in told
        assert ("task 'spelling' is judged by" in told) == (expected is None)
        assert trainer.judge.tasks["spelling"].step == expected
        assert trainer.judge.best.step is None
        trainer.run.lock.release()


def test_a_task_that_has_stopped_keeps_its_best_whatever_it_is_judged_by(
    tiny_model: Path, tmp_path: Path
) -> None:
    recipe = task_that_stops(tmp_path, tiny_model)
    folder = mtlcore.train(recipe).folder
    kept = next(
        place
        for place in checkpoints(folder)
        if not all(checkpoint.read_state(place)["progress"]["active"])
    )
    best = checkpoint.read_state(kept)["progress"]["judge"]["tasks"]["spelling"]["step"]
    loaded = read_recipe(recipe, ["training.metric_for_best_model=eval_overall"])
    trainer = prepare(loaded, resume=kept)
    assert trainer.judge.tasks["spelling"].step == best is not None
    assert not any("task 'spelling' is judged by" in note for note in trainer.run.notes)
    trainer.run.lock.release()


def test_a_stage_that_is_ended_again_scores_its_weights_once(
    tiny_model: Path, tmp_path: Path
) -> None:
    """A run that was killed between the last step and the end of the stage."""
    recipe = task_that_stops(tmp_path, tiny_model)
    folder = mtlcore.train(recipe).folder
    lines, end = timeless(metrics(folder)), final_adapters(folder)
    trainer = prepare(read_recipe(recipe), resume=checkpoint_folder(folder, 13))
    trainer.recipe = trainer.recipe.model_copy(update={"load_best_model_at_end": False})
    trainer._train_stage(Progress(14, 13))
    trainer.save()  # as a checkpoint of the last step before the end of the stage is
    trainer.writer.wait()
    trainer.run.lock.release()
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 14, "stage": "train", "combined": {}}) + "\n")
    mtlcore.train(recipe, resume=True)
    assert timeless(metrics(folder)) == lines
    for name, value in final_adapters(folder).items():
        assert torch.equal(value, end[name]), name


def test_a_stage_ends_when_all_its_tasks_have_stopped(tiny_model: Path, tmp_path: Path) -> None:
    tasks = TASKS.replace("    metrics:", "    early_stopping_patience: 1\n    metrics:")
    training = training_part(
        tmp_path, max_steps=60, learning_rate=1.0, eval_steps=1, metric_for_best_model="eval_loss"
    )
    run = mtlcore.train(write_tiny_recipe(tmp_path, tiny_model, tasks=tasks, training=training))
    assert run.step < 60
    assert any("every task of the stage has stopped" in note for note in run.notes)


def test_weight_decay_of_a_task_acts_on_its_own_weights(tiny_model: Path, tmp_path: Path) -> None:
    tasks = TASKS.replace("loss_weight: 2.0", "weight_decay: 0.5")
    recipe = write_tiny_recipe(tmp_path, tiny_model, tasks=tasks)
    trainer = Trainer(Run(read_recipe(recipe).recipe, tmp_path / "run"))
    decays = {g["name"]: g["weight_decay"] for g in trainer.optimizer.param_groups}
    assert decays["own:spelling"] == 0.5
    assert {decays[name] for name in decays if name != "own:spelling"} == {0.0}


def timeless(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines without what a clock or the machine says."""

    def is_number(key: str) -> bool:
        return not key.endswith(("seconds", "memory_mb"))

    return [
        {
            key: {k: v for k, v in value.items() if is_number(k)} if key == "combined" else value
            for key, value in line.items()
            if is_number(key)
        }
        for line in lines
    ]


# -- what a resumed run does not do twice --------------------------------------------------------


def test_a_stage_whose_tasks_all_stopped_is_ended_once(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "stages.py").write_text(LOCAL)
    tasks = TASKS.replace("    metrics:", "    early_stopping_patience: 1\n    metrics:")
    training = training_part(
        tmp_path, max_steps="null", learning_rate=1.0, eval_steps=1, save_steps=1,
        metric_for_best_model="eval_loss",
    )  # fmt: skip
    stages = STAGES.replace("learning_rate: 1e-3", "learning_rate: 1.0").replace(
        "max_steps: 3", "max_steps: 40", 1
    )
    recipe = staged(
        tmp_path, tiny_model, stages, tasks=tasks, training=training,
        monitoring="[stages_seen]", plugins="[./stages.py]",
    )  # fmt: skip
    run = mtlcore.train(recipe)
    [monitor] = [c for c in run.components.values() if c.name == "stages_seen"]
    seen = list(vars(monitor)["seen"])
    seam = int(seen[1].split()[-1])
    assert seam < 40, "the case must stop early"
    for later in checkpoints(run.folder):
        if step_of(later) > seam:
            shutil.rmtree(later)
    resumed = mtlcore.train(recipe, resume=True)
    [monitor] = [c for c in resumed.components.values() if c.name == "stages_seen"]
    assert vars(monitor)["seen"] == seen
    assert not any("goes on" in note for note in resumed.notes)


AUDITOR = '''
from mtlcore.components import Auditor, Finding

class Always(Auditor):
    """Finds something each time."""

    name = "always"
    every_n_steps = 2

    def audit(self, run, predictions):
        return [Finding(self.name, task, 0.0, "") for task in predictions]
'''


def audited_steps(run: Run) -> list[int]:
    text = (run.folder / "audits.jsonl").read_text()
    return [json.loads(line)["step"] for line in text.splitlines()]


def test_audits_of_steps_that_are_run_again_are_told_once(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "always.py").write_text(AUDITOR)
    recipe = staged(tmp_path, tiny_model, auditing="[always]", plugins="[./always.py]")
    run = mtlcore.train(recipe)
    assert audited_steps(run) == [2, 4, 6]
    shutil.rmtree(checkpoint_folder(run.folder, 6))
    shutil.rmtree(checkpoint_folder(run.folder, 4))
    assert audited_steps(mtlcore.train(recipe, resume=True)) == [2, 4, 6]


def test_an_auditor_without_eval_rows_is_refused_before_the_training(
    tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "always.py").write_text(AUDITOR)
    lines = [line for line in TASKS.splitlines() if "eval:" not in line]
    tasks = "\n".join(lines).replace("    test:", "    split: {eval: 0.0}\n    test:")
    recipe = write_tiny_recipe(
        tmp_path, tiny_model, tasks=tasks, auditing="[always]", plugins="[./always.py]"
    )
    with pytest.raises(UserError, match="has no eval rows"):
        mtlcore.train(recipe)
    assert not (tmp_path / "run").exists()


def test_the_best_checkpoint_must_be_there_to_resume(tiny_model: Path, tmp_path: Path) -> None:
    training = training_part(
        tmp_path, eval_steps=1, save_steps=1, learning_rate=0.3, load_best_model_at_end="true",
        metric_for_best_model="eval_loss", max_steps=4,
    )  # fmt: skip
    recipe = write_tiny_recipe(tmp_path, tiny_model, training=training)
    run = mtlcore.train(recipe)
    chosen = checkpoint_folder(run.folder, 3)
    best = json.loads((chosen / "state.json").read_text())["progress"]["judge"]["best"]["step"]
    shutil.copytree(chosen, tmp_path / "elsewhere" / "step-000003")
    with pytest.raises(UserError, match=f"the best checkpoint so far, that of step {best}"):
        mtlcore.train(
            recipe,
            [f"training.output_dir={tmp_path / 'other'}"],
            resume=tmp_path / "elsewhere" / "step-000003",
        )


# -- judging -----------------------------------------------------------------------------------


def test_a_value_that_is_no_number_is_never_the_best() -> None:
    best = Best()
    assert not best.see(float("nan"), 1, greater_is_better=True)
    assert best.see(0.5, 2, greater_is_better=True)
    assert not best.see(float("nan"), 3, greater_is_better=True)
    assert (best.value, best.step, best.stale) == (0.5, 2, 1)


def test_another_metric_judges_afresh(tiny_model: Path, tmp_path: Path) -> None:
    training = training_part(
        tmp_path, eval_steps=1, load_best_model_at_end="true", save_steps=1, max_steps=2
    )
    recipe = write_tiny_recipe(tmp_path, tiny_model, training=training)
    mtlcore.train(recipe)
    changes = ["training.metric_for_best_model=eval_loss", "training.max_steps=4"]
    run = mtlcore.train(recipe, changes, resume=True)
    assert any("judged by eval_loss from now on" in note for note in run.notes)
    result = json.loads((run.folder / "result.json").read_text())
    assert result["best_step"] > 2
    assert result["best_value"] > 1, "a loss, not a score"
