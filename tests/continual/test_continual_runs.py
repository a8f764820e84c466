"""EWC and replay in real runs: stages, resume in the middle of them, and what is saved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import mtlcore
from mtlcore import checkpoint, checkpoint_store, manifest
from mtlcore.errors import UserError
from mtlcore.run import Run
from mtlcore_plugins.continual.ewc import EWC
from mtlcore_plugins.continual.reservoir import Reservoir
from tests.recipes import final_adapters, metrics, training_part, write_tiny_recipe

STAGES = (
    "[{name: first, tasks: [spelling, definitions], max_steps: 3},"
    " {name: second, tasks: [sentiment, spelling], max_steps: 3}]"
)
EWC_PART = "[{name: ewc, strength: 1000.0, rows: 8}]"
REPLAY_PART = "{name: reservoir, rows: 12, share: 0.5}"


def recipe(folder: Path, model: Path, **changes: str) -> Path:
    folder.mkdir(exist_ok=True)
    parts = {
        "stages": STAGES,
        "training": training_part(folder, max_steps="null", save_steps=1),
        "regularization": EWC_PART,
        "replay": REPLAY_PART,
    }
    return write_tiny_recipe(folder, model, **{**parts, **changes})


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return mtlcore.train(recipe(tmp_path_factory.mktemp("whole"), tiny_model))


def resume(whole: Run, copy: Path) -> Run:
    """Go on in a copy of the run's folder."""
    path = whole.folder.parent / "recipe.yaml"
    return mtlcore.train(path, [f"training.output_dir={copy}"], resume=True)


def component(run: Run, kind: type) -> Any:
    [found] = [c for c in run.components.values() if isinstance(c, kind)]
    return found


def test_earlier_tasks_are_replayed_and_held_in_the_second_stage(whole: Run) -> None:
    lines = metrics(whole.folder)
    assert [line["rows"]["definitions"] for line in lines[3:]] == [3, 3, 3], "half of 6"
    assert all(sum(line["rows"].values()) == 6 for line in lines[:3])
    assert all("ewc" not in line["penalties"] for line in lines[:3])
    penalties = [line["penalties"]["ewc"] for line in lines[3:]]
    assert penalties[0] == 0.0
    assert min(penalties[1:]) > 0
    kept = {name: len(rows) for name, rows in component(whole, Reservoir).memory.items()}
    assert kept == {"sentiment": 4, "spelling": 4, "definitions": 4}
    titles = [
        s["title"] for s in json.loads((whole.folder / "result.json").read_text())["sections"]
    ]
    assert {"Elastic weight consolidation", "Replay memory"} <= set(titles)


@pytest.mark.parametrize("kept", [2, 3, 4])
def test_a_resumed_run_is_bit_identical(kept: int, whole: Run, tmp_path: Path) -> None:
    """In the first stage, at the seam, and in the second stage."""
    shutil.copytree(whole.folder, tmp_path / "run")
    for later in checkpoint_store.checkpoints(tmp_path / "run"):
        if checkpoint_store.step_of(later) > kept:
            shutil.rmtree(later)
    resumed = resume(whole, tmp_path / "run")
    expected = final_adapters(whole.folder)
    for name, value in final_adapters(resumed.folder).items():
        assert torch.equal(value, expected[name]), name
    for kind in (EWC, Reservoir):
        mine, other = (component(run, kind).state_dict() for run in (whole, resumed))
        assert mine.keys() == other.keys()
        for name, value in mine.items():
            same = (
                torch.equal(value, other[name]) if hasattr(value, "dim") else value == other[name]
            )
            assert same, name


def test_ewc_keeps_the_shared_weights_nearer_to_where_they_were(
    whole: Run, tiny_model: Path, tmp_path: Path
) -> None:
    free = mtlcore.train(recipe(tmp_path, tiny_model, regularization="[]"))
    moved = []
    for run in (whole, free):
        first, last = (
            checkpoint.read_adapters(checkpoint_store.checkpoint_folder(run.folder, step))
            for step in (3, 6)
        )
        importance = component(whole, EWC).held
        moved.append(
            sum(
                float((f * (last[name] - first[name]) ** 2).sum())
                for name, (f, _) in importance.items()
            )
        )
    assert moved[0] < moved[1]


def test_a_memory_edited_by_hand_stops_the_resumed_run(whole: Run, tmp_path: Path) -> None:
    shutil.copytree(whole.folder, tmp_path / "run")
    last = checkpoint_store.checkpoints(tmp_path / "run")[-1]
    state = json.loads((last / checkpoint_store.STATE).read_text())
    state["components"]["replay:reservoir"]["memory"]["spelling"][0]["fields"]["text"] = "other"
    (last / checkpoint_store.STATE).write_text(json.dumps(state))
    (last / manifest.MANIFEST).unlink()
    manifest.seal(last)  # else the change is seen at once, and the checkpoint passed over
    with pytest.raises(UserError, match="the replay memory is not what the run had saved"):
        resume(whole, tmp_path / "run")


NEW_TASK = """
tasks:
  review:
    train: sentiment.train.jsonl
    eval: sentiment.dev.jsonl
    test: sentiment.test.jsonl
    format: {name: classification, labels: [negative, positive], template: "{{ text }}\\nGood?"}
"""


@pytest.mark.parametrize("had_them", [True, False])
def test_a_run_that_starts_from_another_has_or_makes_importances_and_memory(
    had_them: bool, whole: Run, tiny_run: Path, tiny_model: Path, tmp_path: Path
) -> None:
    start = whole.folder if had_them else tiny_run
    task = tmp_path / "task.yaml"
    task.write_text(NEW_TASK.replace(": sentiment.", f": {start.parent}/sentiment."))
    parts = [f"regularization={EWC_PART}", f"replay={REPLAY_PART}", "training.save_steps=1"]
    run = mtlcore.adapt(start, task, parts, max_steps=2, output_dir=tmp_path / "run")
    told = any("kept no" in note for note in run.notes)
    assert told != had_them
    for line in metrics(run.folder):
        assert line["rows"]["review"] == 6
        assert sum(line["rows"].values()) == 9, "half of 6 replayed"
        assert "ewc" in line["penalties"]
    ewc = component(run, EWC)
    assert all(not name.endswith(":review") for name in ewc.held)
    assert any(name.endswith(":review") for name in ewc.coming)
    if had_them:
        before = component(whole, EWC).coming
        assert all(torch.equal(f, before[name][0]) for name, (f, _) in ewc.held.items())
