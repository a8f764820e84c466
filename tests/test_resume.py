"""What a run goes on from: its recipe, rows, model and records, or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import mtlcore
from mtlcore.api import prepare
from mtlcore.checkpoint_store import (
    STATE,
    checkpoints,
)
from mtlcore.errors import UserError
from mtlcore.manifest import MANIFEST, seal
from mtlcore.recipe_file import read_recipe
from tests.faults import differences
from tests.recipes import metrics, write_tiny_recipe


def test_other_rows_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    recipe = write_tiny_recipe(tmp_path, tiny_model)
    mtlcore.train(recipe, ["training.max_steps=2"])
    file = tmp_path / "spelling.train.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines[1:], lines[0]]))
    with pytest.raises(UserError, match="the train rows of 'spelling' are not those") as caught:
        mtlcore.train(recipe, resume=True)
    assert caught.value.problem.where.endswith("tasks.spelling.train")
    file.write_text("".join(lines))
    test = tmp_path / "spelling.test.jsonl"
    test.write_text(test.read_text() * 2)  # is not trained on
    assert mtlcore.train(recipe, resume=True).step == 6


def test_a_checkpoint_knows_its_recipe_and_its_base_model(
    finished_run: Path, tmp_path: Path, tiny_model: Path
) -> None:
    """Wherever it is: without the records of its run, or resumed into another folder."""
    copy = Path(shutil.copytree(finished_run, tmp_path / "run"))
    for record in ("recipe.yaml", "environment.json"):
        (copy / record).unlink()
    recipe = finished_run.parent / "recipe.yaml"
    there = f"training.output_dir={copy}"
    elsewhere = f"training.output_dir={tmp_path / 'elsewhere'}"
    newest = checkpoints(copy)[-1]
    for place, resume in ((there, True), (elsewhere, newest)):
        with pytest.raises(UserError, match=r"resumed:\n  training.seed: 0 -> 7"):
            mtlcore.train(recipe, [place, "training.seed=7"], resume=resume)
    other = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    state = json.loads((newest / STATE).read_text())
    state["recipe"]["model"]["name_or_path"] = str(other)
    (newest / STATE).write_text(json.dumps(state))
    (newest / MANIFEST).unlink()
    seal(newest)
    with pytest.raises(UserError, match="the base model is not the one"):
        mtlcore.train(recipe, [there, f"model.name_or_path={other}"], resume=True)


def test_a_changed_recipe_is_shown_whole(tiny_model: Path, tmp_path: Path) -> None:
    recipe = write_tiny_recipe(tmp_path, tiny_model)
    mtlcore.train(recipe, ["training.max_steps=2"])
    changes = ["training.seed=3", "lora.r=2", "weighting=equal", "training.max_steps=4"]
    with pytest.raises(UserError) as caught:
        mtlcore.train(recipe, changes, resume=True)
    assert caught.value.problem.message.splitlines()[1:] == [
        "  lora.r: 4 -> 2",
        "  training.seed: 0 -> 3",
        "  weighting: pcgrad -> equal",
    ]
    run = mtlcore.train(recipe, changes[-1:], resume=True)
    assert "changed since the run was begun: training.max_steps: 2 -> 4" in run.notes


def test_fewer_steps_than_a_run_has_behind_it_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    recipe = write_tiny_recipe(tmp_path, tiny_model)
    run = mtlcore.train(recipe)
    before = (run.folder / "result.json").read_bytes()
    with pytest.raises(UserError, match="at step 6 already, past the 4 that it is to have"):
        mtlcore.train(recipe, ["training.max_steps=4"], resume=True)
    assert (run.folder / "result.json").read_bytes() == before


def test_without_its_checkpoints_a_run_is_not_begun_again(
    finished_run: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(finished_run, tmp_path / "run"))
    recipe, there = finished_run.parent / "recipe.yaml", f"training.output_dir={copy}"
    before = (copy / "metrics.jsonl").read_bytes()
    shutil.move(checkpoints(copy)[-1], copy / "checkpoints" / "superseded-1-step-000006")
    for folder in checkpoints(copy):
        shutil.rmtree(folder)
    with pytest.raises(UserError, match="no checkpoint any more") as caught:
        mtlcore.train(recipe, [there], resume=True)
    assert caught.value.problem.fix.endswith("checkpoints/superseded-1-step-000006)")
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(UserError, match="no checkpoint any more"):
        mtlcore.train(recipe, [there], resume=True)
    assert (copy / "metrics.jsonl").read_bytes() == before


def test_a_run_that_another_process_began_first_is_not_trained_over(
    tiny_model: Path, tmp_path: Path
) -> None:
    recipe = read_recipe(write_tiny_recipe(tmp_path, tiny_model))
    first, second = prepare(recipe), prepare(recipe)  # the folder is not there yet
    first.train()
    before = (first.run.folder / "metrics.jsonl").read_bytes()
    for _ in range(2):  # and the lock was given back
        with pytest.raises(UserError, match="already holds a run"):
            second.train()
    assert (first.run.folder / "metrics.jsonl").read_bytes() == before


def test_records_are_cut_at_ends_of_lines_alone(finished_run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished_run, tmp_path / "run"))
    kept = '{"step": 1, "group": "a\u2028b\u0085c"}\n'
    (copy / "audits.jsonl").write_text(kept + '{"step": 2}\n\0\0\n{"step": 3}\n{"st', "utf-8")
    recipe = [finished_run.parent / "recipe.yaml", [f"training.output_dir={copy}"]]
    again = mtlcore.train(*recipe, resume=checkpoints(copy)[0])
    assert (copy / "audits.jsonl").read_text("utf-8").startswith(kept)
    [told] = [note for note in again.notes if "damaged" in note]
    assert "damaged lines are left out:" in told
    assert "audits.jsonl:3; the file as it was is" in told
    assert (copy / "audits.jsonl.damaged").read_text("utf-8").endswith('{"step": 3}\n{"st')


def test_a_record_that_is_gone_is_told(finished_run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished_run, tmp_path / "run"))
    (copy / "metrics.jsonl").unlink()
    recipe = [finished_run.parent / "recipe.yaml", [f"training.output_dir={copy}"]]
    again = mtlcore.train(*recipe, resume=checkpoints(copy)[0])
    assert any("metrics.jsonl is missing: the record begins anew" in note for note in again.notes)


def test_damaged_lines_of_the_record_cost_no_others(finished_run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished_run, tmp_path / "run"))
    path = copy / "metrics.jsonl"
    lines = path.read_text("utf-8").splitlines(keepends=True)
    path.write_text("".join(["[1]\n", *lines]), "utf-8")
    recipe = [finished_run.parent / "recipe.yaml", [f"training.output_dir={copy}"]]
    mtlcore.train(*recipe, resume=checkpoints(copy)[-1])
    assert path.read_text("utf-8").splitlines(keepends=True)[: len(lines) - 1] == lines[:-1]
    assert differences(copy, finished_run) == []


def test_what_is_half_renamed_does_not_outlive_a_resume_from_before_it(
    finished_run: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(finished_run, tmp_path / "run"))
    first, newest = checkpoints(copy)[0], checkpoints(copy)[-1]
    newest.rename(newest.with_name(f".{newest.name}.partial"))
    recipe, there = finished_run.parent / "recipe.yaml", f"training.output_dir={copy}"
    mtlcore.train(recipe, [there, "training.max_steps=4"], resume=first)
    again = mtlcore.train(recipe, [there], resume=True)
    assert any(note.endswith("at step 4") for note in again.notes if "resumed from" in note)
    assert [line["step"] for line in metrics(copy) if "losses" in line] == [1, 2, 3, 4, 5, 6]


SLASHED = """
import torch
from mtlcore.components import Monitor
from mtlcore.hookspecs import hookimpl

class Slashed(Monitor):
    \"\"\"Keeps tensors under names like paths.\"\"\"

    name = "slashed"

    def __init__(self):
        self.kept = {"a": torch.zeros(()), "layer/a": torch.zeros(())}

    @hookimpl
    def mtlcore_step_end(self, run, record):
        self.kept = {name: value + 1 for name, value in self.kept.items()}

    def state_dict(self):
        return dict(self.kept)

    def load_state_dict(self, state):
        self.kept = dict(state)
"""


def test_tensors_of_a_component_come_back_under_their_names(
    tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "slashed.py").write_text(SLASHED)
    parts = {"monitoring": "[slashed]", "plugins": f"[{tmp_path / 'slashed.py'}]"}
    recipe = write_tiny_recipe(tmp_path, tiny_model, **parts)
    mtlcore.train(recipe, ["training.max_steps=2"])
    run = mtlcore.train(recipe, ["training.max_steps=3"], resume=True)
    [component] = [one for key, one in run.components.items() if key.endswith("slashed")]
    assert {name: float(value) for name, value in component.kept.items()} == {
        "a": 3.0,
        "layer/a": 3.0,
    }


def test_what_was_told_is_told_by_the_resumed_run_too(tiny_model: Path, tmp_path: Path) -> None:
    recipe = write_tiny_recipe(tmp_path, tiny_model)
    trainer = prepare(read_recipe(recipe, ["training.max_steps=2"]))
    trainer.run.note("a thing of the past")
    trainer.train()
    run = mtlcore.train(recipe, resume=True)
    assert json.loads((run.folder / "result.json").read_text())["notes"] == run.notes
    assert run.notes.count("a thing of the past") == 1


@pytest.mark.parametrize("ended", [True, False])
def test_other_files_that_are_gone_are_told(
    finished_run: Path, tmp_path: Path, ended: bool
) -> None:
    copy = Path(shutil.copytree(finished_run, tmp_path / "run"))
    names = ["recipe.yaml", "environment.json", "result.json"]
    for name in names:
        (copy / name).unlink()
    recipe = [finished_run.parent / "recipe.yaml", [f"training.output_dir={copy}"]]
    again = mtlcore.train(*recipe, resume=True if ended else checkpoints(copy)[0])
    told = [note for note in again.notes if "it is written anew" in note]
    expected = names if ended else names[:2]
    assert len(told) == len(expected)
    for name, note in zip(expected, told, strict=True):
        assert note.startswith(f"warning: {copy / name} is missing (")
    assert all((copy / name).is_file() for name in names)


def test_a_result_that_an_earlier_try_to_go_on_took_away_is_not_missed(
    finished_run: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(finished_run, tmp_path / "run"))
    (copy / "result.json").unlink()
    more = [f"training.output_dir={copy}", "training.max_steps=8"]
    run = mtlcore.train(finished_run.parent / "recipe.yaml", more, resume=True)
    assert run.step == 8
    assert not any("is missing" in note for note in run.notes)
