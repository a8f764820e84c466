"""Checkpoints on the disk: whole or not there, verified before they are read."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import mtlcore
from mtlcore import checkpoint_store, manifest
from mtlcore.checkpoint_store import (
    ADAPTERS,
    COMPONENTS,
    OPTIMIZER,
    STATE,
    Snapshot,
    checkpoint_folder,
    checkpoints,
    open_checkpoint,
    prune,
)
from mtlcore.errors import UserError
from mtlcore.manifest import MANIFEST, DamagedError, seal
from tests.faults import DAMAGES, FILES, differences, flip
from tests.recipes import write_tiny_recipe


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_checkpoint_is_passed_over_and_the_run_ends_with_the_same_bits(
    file: str, damage: Callable[[Path], None], finished_run: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(finished_run, tmp_path / "run"))
    newest = checkpoints(copy)[-1]
    damage(newest / file)
    with pytest.raises(DamagedError, match=file) as caught:
        open_checkpoint(newest)
    assert caught.value.problem.where == str(newest)
    recipe = [finished_run.parent / "recipe.yaml", [f"training.output_dir={copy}"]]
    again = mtlcore.train(*recipe, resume=True)
    [told] = [note for note in again.notes if "passed over" in note]
    assert told.startswith(f"warning: {newest.name} is passed over: ")
    assert file in told
    assert differences(copy, finished_run) == []
    assert (copy / "checkpoints" / f"superseded-1-{newest.name}").is_dir()  # nothing is deleted
    assert open_checkpoint(newest)


def test_a_link_and_a_folder_of_another_step_are_passed_over(
    finished_run: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(finished_run, tmp_path / "run"))
    newest = checkpoints(copy)[-1]
    (newest.parent / "step-000099").symlink_to(newest)
    shutil.copytree(newest, newest.parent / "step-000098")
    again = mtlcore.train(
        finished_run.parent / "recipe.yaml", [f"training.output_dir={copy}"], resume=True
    )
    assert [note for note in again.notes if "passed over" in note] == [
        "warning: step-000099 is passed over: the folder is a link",
        "warning: step-000098 is passed over: it holds step 6, not that of its name",
    ]
    assert differences(copy, finished_run) == []


@pytest.mark.parametrize("file", [OPTIMIZER, MANIFEST])
def test_a_checkpoint_that_cannot_be_read_is_passed_over(
    file: str, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(finished_run, tmp_path / "run"))
    broken = checkpoints(copy)[-1] / file
    real_open = io.open

    def fake_open(path: object, *arguments: object, **options: object) -> object:
        if path == broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real_open(path, *arguments, **options)

    monkeypatch.setattr(io, "open", fake_open)
    newest, told = checkpoint_store.newest_good(copy, with_best=False)
    assert newest is not None
    assert newest.folder.name == "step-000004"
    assert told == [f"step-000006 is passed over: {file} cannot be read: Input/output error"]


def test_with_all_checkpoints_damaged_nothing_is_begun(finished_run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished_run, tmp_path / "run"))
    for folder in checkpoints(copy):
        flip(folder / OPTIMIZER)
    before = (copy / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="no checkpoint can be gone on from") as caught:
        mtlcore.train(
            finished_run.parent / "recipe.yaml", [f"training.output_dir={copy}"], resume=True
        )
    for folder in checkpoints(copy):
        assert f"{folder.name} is passed over: {OPTIMIZER} was changed" in str(caught.value)
    assert (copy / "metrics.jsonl").read_bytes() == before


def test_a_damaged_checkpoint_is_not_scored_or_named_to_resume_from(
    finished_run: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(finished_run, tmp_path / "run"))
    newest = checkpoints(copy)[-1]
    flip(newest / ADAPTERS)
    with pytest.raises(DamagedError, match=ADAPTERS):
        mtlcore.load(copy)
    assert mtlcore.load(copy, step=4).step == 4
    with pytest.raises(DamagedError, match=ADAPTERS):
        mtlcore.train(
            finished_run.parent / "recipe.yaml", [f"training.output_dir={copy}"], resume=newest
        )


def test_damaged_best_weights_are_passed_over_too(tiny_model: Path, tmp_path: Path) -> None:
    """The newest checkpoint is good, but a run that ends with its best weights needs those too."""
    recipe = write_tiny_recipe(tmp_path, tiny_model)
    options = [
        "training.eval_steps=2", "training.eval_max_rows=4", "training.eval_metrics=false",
        "training.metric_for_best_model=eval_loss", "training.load_best_model_at_end=true",
        "training.learning_rate=0.3", "training.max_steps=8",
    ]  # fmt: skip
    whole = mtlcore.train(recipe, [*options, f"training.output_dir={tmp_path}/whole"]).folder
    run = mtlcore.train(recipe, options).folder
    state = open_checkpoint(checkpoint_folder(run, 6)).state()
    [best] = checkpoint_store.best_steps(state)
    shutil.rmtree(checkpoint_folder(run, 8))
    flip(checkpoint_folder(run, best) / ADAPTERS)
    again = mtlcore.train(recipe, options, resume=True)
    assert any(f"step-{best:06d}" in note for note in again.notes if "passed over" in note)
    assert differences(run, whole) == []


def test_every_byte_of_a_manifest_counts(finished_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoints(finished_run)[-1], tmp_path / "step"))
    data = (folder / MANIFEST).read_bytes()
    manifest.verify(folder)
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1
        (folder / MANIFEST).write_bytes(changed)
        with pytest.raises(DamagedError):
            manifest.verify(folder)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "..", ".", "a/b", ""])
def test_a_manifest_cannot_name_files_elsewhere(name: str, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("x")
    folder = tmp_path / "step"
    folder.mkdir()
    files = {name: {"bytes": 1, "sha256": "0" * 64}}
    (folder / MANIFEST).write_bytes(manifest._spelled({"format": 1, "files": files}))
    with pytest.raises(DamagedError):
        manifest.verify(folder)


@pytest.mark.parametrize(
    "entry", [3, None, [], {}, {"bytes": 1}, {"sha256": "0"}, {"bytes": "1", "sha256": "0"}]
)
def test_an_entry_of_a_manifest_has_bytes_and_sha256(entry: object, tmp_path: Path) -> None:
    content = {"format": 1, "files": {"state.json": entry}}
    (tmp_path / MANIFEST).write_bytes(manifest._spelled(content))
    (tmp_path / "state.json").write_text("1")
    with pytest.raises(DamagedError, match=r"does not tell the bytes and sha256 of state\.json"):
        manifest.verify(tmp_path)


@pytest.mark.parametrize("content", [{"format": 2, "files": {}}, {"format": 1}, {}, {"files": 3}])
def test_a_manifest_of_another_form_is_refused(content: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes(manifest._spelled(content))
    with pytest.raises(DamagedError):
        manifest.verify(tmp_path)


def test_a_manifest_without_one_of_the_files_is_refused(finished_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoints(finished_run)[-1], tmp_path / "step-000006"))
    (folder / MANIFEST).unlink()
    (folder / OPTIMIZER).unlink()
    seal(folder)
    with pytest.raises(DamagedError, match=f"does not name {OPTIMIZER}"):
        open_checkpoint(folder)


# -- writing --------------------------------------------------------------------------------------


def snapshot(step: int, value: float = 0.0) -> Snapshot:
    tensors = {"a": torch.full((1000,), value)}
    return Snapshot(
        step, {ADAPTERS: tensors, OPTIMIZER: {}, COMPONENTS: {}}, json.dumps({"step": step})
    )


def test_what_a_killed_process_began_to_write_is_finished_or_removed(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoint_store.write(tmp_path, snapshot(step))
    folder = tmp_path / "checkpoints"
    checkpoint_folder(tmp_path, 2).rename(folder / ".step-000002.partial")  # all but the rename
    shutil.copytree(checkpoint_folder(tmp_path, 1), folder / ".step-000003.partial")
    (folder / ".step-000003.partial" / MANIFEST).unlink()  # in the middle
    shutil.copytree(checkpoint_folder(tmp_path, 1), folder / ".step-000001.old")
    checkpoint_store.finish_interrupted_write(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["step-000001", "step-000002"]
    assert open_checkpoint(checkpoint_folder(tmp_path, 2))


def test_a_checkpoint_of_the_same_step_takes_the_place_of_the_first(tmp_path: Path) -> None:
    checkpoint_store.write(tmp_path, snapshot(1, 1.0))
    final = checkpoint_store.write(tmp_path, snapshot(1, 2.0))
    assert [path.name for path in final.parent.iterdir()] == ["step-000001"]
    assert open_checkpoint(final).tensors(ADAPTERS)["a"].eq(2.0).all()


def test_old_checkpoints_that_are_links_go_without_what_they_lead_to(
    finished_run: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(finished_run, tmp_path / "run"))
    first = checkpoints(copy)[0]
    elsewhere = Path(shutil.move(first, tmp_path / "elsewhere"))
    first.symlink_to(elsewhere)
    (first.parent / f".{first.name}.old").mkdir()
    prune(copy, 1, set())
    assert len(checkpoints(copy)) == 1
    assert (elsewhere / STATE).is_file()
