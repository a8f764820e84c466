"""Checkpoints on the disk: whole or not there, verified before they are read."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import mtlcore
from mtlcore import api, checkpoint_store, files, manifest, system_errors, trainer
from mtlcore.api import prepare
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
from mtlcore.files import append_text, replace_text, sync
from mtlcore.manifest import MANIFEST, DamagedError, seal
from mtlcore.recipe_file import read_recipe
from mtlcore.run_lock import RunLock
from mtlcore.system_errors import telling_system_errors
from tests.faults import DAMAGES, FILES, differences, flip
from tests.recipes import metrics, write_tiny_recipe


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a recipe and its finished run, which tests may copy."""
    folder = tmp_path_factory.mktemp("checkpoints")
    mtlcore.train(write_tiny_recipe(folder, tiny_model, weighting="uncertainty"))
    return folder / "run"


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_checkpoint_is_passed_over_and_the_run_ends_with_the_same_bits(
    file: str, damage: Callable[[Path], None], run: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    newest = checkpoints(copy)[-1]
    damage(newest / file)
    with pytest.raises(DamagedError, match=file) as caught:
        open_checkpoint(newest)
    assert caught.value.problem.where == str(newest)
    recipe = [run.parent / "recipe.yaml", [f"training.output_dir={copy}"]]
    again = mtlcore.train(*recipe, resume=True)
    [told] = [note for note in again.notes if "passed over" in note]
    assert told.startswith(f"warning: {newest.name} is passed over: ")
    assert file in told
    assert differences(copy, run) == []
    assert (copy / "checkpoints" / f"superseded-1-{newest.name}").is_dir()  # nothing is deleted
    assert open_checkpoint(newest)


def test_a_link_and_a_folder_of_another_step_are_passed_over(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    newest = checkpoints(copy)[-1]
    (newest.parent / "step-000099").symlink_to(newest)
    shutil.copytree(newest, newest.parent / "step-000098")
    again = mtlcore.train(run.parent / "recipe.yaml", [f"training.output_dir={copy}"], resume=True)
    assert [note for note in again.notes if "passed over" in note] == [
        "warning: step-000099 is passed over: the folder is a link",
        "warning: step-000098 is passed over: it holds step 6, not that of its name",
    ]
    assert differences(copy, run) == []


@pytest.mark.parametrize("file", [OPTIMIZER, MANIFEST])
def test_a_checkpoint_that_cannot_be_read_is_passed_over(
    file: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    broken = checkpoints(copy)[-1] / file
    real_open = io.open

    def fake_open(path: object, *arguments: object, **options: object) -> object:
        if path == broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real_open(path, *arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(io, "open", fake_open)
    newest, told = checkpoint_store.newest_good(copy, with_best=False)
    assert newest is not None
    assert newest.folder.name == "step-000004"
    assert told == [f"step-000006 is passed over: {file} cannot be read: Input/output error"]


def test_with_all_checkpoints_damaged_nothing_is_begun(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    for folder in checkpoints(copy):
        flip(folder / OPTIMIZER)
    before = (copy / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="no checkpoint can be gone on from") as caught:
        mtlcore.train(run.parent / "recipe.yaml", [f"training.output_dir={copy}"], resume=True)
    for folder in checkpoints(copy):
        assert f"{folder.name} is passed over: {OPTIMIZER} was changed" in str(caught.value)
    assert (copy / "metrics.jsonl").read_bytes() == before


def test_a_damaged_checkpoint_is_not_scored_or_named_to_resume_from(
    run: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    newest = checkpoints(copy)[-1]
    flip(newest / ADAPTERS)
    with pytest.raises(DamagedError, match=ADAPTERS):
        mtlcore.load(copy)
    assert mtlcore.load(copy, step=4).step == 4
    with pytest.raises(DamagedError, match=ADAPTERS):
        mtlcore.train(run.parent / "recipe.yaml", [f"training.output_dir={copy}"], resume=newest)


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


def test_every_byte_of_a_manifest_counts(run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoints(run)[-1], tmp_path / "step"))
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


# -- writing -----------------------------------------------------------------------------------


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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 640 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=640k", "none", folder],
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_leaves_the_last_good_checkpoint(
    small_disk: Path, tiny_model: Path, tmp_path: Path
) -> None:
    recipe = write_tiny_recipe(tmp_path, tiny_model)
    whole = mtlcore.train(recipe).folder
    options = [f"training.output_dir={small_disk}/run", "training.save_total_limit=null"]
    size = sum(path.stat().st_size for path in checkpoints(whole)[0].iterdir())
    assert size < 640 * 1024 < 2 * size, "the disk is not full at the right moment"
    with pytest.raises(UserError, match="No space left on device") as caught:
        mtlcore.train(recipe, options)
    [good] = checkpoints(small_disk / "run")
    assert f"the newest checkpoint, {good.name}, is whole" in str(caught.value)
    assert "free some space" in caught.value.problem.fix
    assert open_checkpoint(good)
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    mtlcore.train(recipe, options, resume=True)
    assert differences(small_disk / "run", whole) == []


def test_a_folder_that_may_not_be_written_is_told(tiny_model: Path, small_disk: Path) -> None:
    recipe = write_tiny_recipe(small_disk.parent, tiny_model)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(UserError, match="Read-only file system") as caught:
        mtlcore.train(recipe, [f"training.output_dir={small_disk}/run"])
    assert "make the disk writable" in caught.value.problem.fix


def test_a_run_in_a_folder_that_may_not_be_written_is_told(
    run: Path, small_disk: Path, tmp_path: Path
) -> None:
    copy = small_disk / "run"
    newest = checkpoints(run)[-1]
    shutil.copytree(newest, copy / "checkpoints" / newest.name)
    recipe = [run.parent / "recipe.yaml", [f"training.output_dir={copy}"]]
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(UserError, match=r"Read-only file system: .*\.lock") as caught:
        mtlcore.train(*recipe, resume=True)
    assert f"the newest checkpoint, {newest.name}, is whole" in str(caught.value)
    assert "make the disk writable" in caught.value.problem.fix


def no_space(*_: object) -> None:
    """As write, close and fsync say it: without the name of a file."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_errors_of_writing_are_given_the_name_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Path("/dev/full")
    if full.exists():
        with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
            append_text(full, "x")
    file = tmp_path / "file"
    file.write_text("old")
    monkeypatch.setattr(os, "fsync", no_space)
    for write in (sync, lambda path: replace_text(path, "new"), lambda _: manifest.seal(tmp_path)):
        with pytest.raises(OSError, match="No space left on device") as caught:
            write(file)
        assert caught.value.filename in (str(file), str(tmp_path / ".file.partial"))
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_the_names_of_new_folders_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(files, "sync", synced.append)
    files.make_folder(tmp_path / "a" / "b")
    assert synced == [tmp_path, tmp_path / "a"]
    files.make_folder(tmp_path / "a" / "b")
    assert len(synced) == 2


@pytest.mark.parametrize("in_thread", [True, False])
def test_a_full_disk_that_names_no_file_is_told(
    in_thread: bool, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_tiny_recipe(tmp_path, tiny_model)
    if in_thread:
        place = "step-000004.partial/state.json"
        real_sync = files.sync
        monkeypatch.setattr(
            manifest,
            "sync",
            lambda path: no_space() if str(path).endswith(place) else real_sync(path),
        )
    else:
        real_append = files.append_text
        monkeypatch.setattr(
            trainer,
            "append_text",
            lambda path, text: no_space() if '"step": 4' in text else real_append(path, text),
        )
    with pytest.raises(UserError, match="No space left on device: the system did not say") as told:
        mtlcore.train(recipe)
    assert "the newest checkpoint, step-000002, is whole" in str(told.value)
    assert "free some space" in told.value.problem.fix
    monkeypatch.undo()
    assert mtlcore.train(recipe, resume=True).step == 6


def test_the_disk_is_told_even_if_the_checkpoints_cannot_be_seen(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = api.prepare(read_recipe(write_tiny_recipe(tmp_path, tiny_model))).run
    run.folder.mkdir()
    monkeypatch.setattr(system_errors, "newest_good", no_space)
    with pytest.raises(UserError, match="could not be seen"), telling_system_errors(run):
        no_space()
    with pytest.raises(ConnectionResetError), telling_system_errors(run):  # not of the disk
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")


# -- two processes in one folder ---------------------------------------------------------------


HOLD = """
import sys
from pathlib import Path
from mtlcore.run_lock import RunLock
RunLock(Path(sys.argv[1])).acquire()
"""


def test_a_second_process_is_kept_out_while_the_first_trains(
    tiny_model: Path, tmp_path: Path
) -> None:
    recipe = write_tiny_recipe(tmp_path, tiny_model)
    first = api.prepare(read_recipe(recipe, ["training.max_steps=2"]))
    first.run.folder.mkdir()
    first.run.lock.acquire()
    second = subprocess.run(
        [sys.executable, "-c", HOLD, first.run.folder], capture_output=True, text=True, check=False
    )
    assert f"another process trains in {first.run.folder}: process {os.getpid()} on" in (
        second.stderr
    )
    with pytest.raises(UserError, match=r"this process trains in .* already"):
        mtlcore.train(recipe, resume=True)
    first.train()  # gives it back at its end
    assert mtlcore.train(recipe, ["training.max_steps=3"], resume=True).step == 3


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(UserError, match="has no locks"):
        RunLock(tmp_path).acquire()


def test_a_lock_is_given_back_when_a_run_cannot_be_prepared(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    with pytest.raises(UserError, match="already holds a run"):
        mtlcore.train(run.parent / "recipe.yaml", [f"training.output_dir={copy}"])
    lock = RunLock(copy)
    lock.acquire()
    lock.release()


# -- what a resumed run depends on ---------------------------------------------------------------


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
    run: Path, tmp_path: Path, tiny_model: Path
) -> None:
    """Wherever it is: without the records of its run, or resumed into another folder."""
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    for record in ("recipe.yaml", "environment.json"):
        (copy / record).unlink()
    recipe = run.parent / "recipe.yaml"
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


def test_records_are_cut_at_ends_of_lines_alone(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    kept = '{"step": 1, "group": "a\u2028b\u0085c"}\n'
    (copy / "audits.jsonl").write_text(kept + '{"step": 2}\n\0\0\n{"step": 3}\n{"st', "utf-8")
    recipe = [run.parent / "recipe.yaml", [f"training.output_dir={copy}"]]
    again = mtlcore.train(*recipe, resume=checkpoints(copy)[0])
    assert (copy / "audits.jsonl").read_text("utf-8").startswith(kept)
    [told] = [note for note in again.notes if "is damaged" in note]
    assert "audits.jsonl:3 is damaged: it and what follows are dropped" in told
    assert differences(copy, run) == []


def test_what_is_half_renamed_does_not_outlive_a_resume_from_before_it(
    run: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    first, newest = checkpoints(copy)[0], checkpoints(copy)[-1]
    newest.rename(newest.with_name(f".{newest.name}.partial"))
    recipe, there = run.parent / "recipe.yaml", f"training.output_dir={copy}"
    mtlcore.train(recipe, [there, "training.max_steps=4"], resume=first)
    again = mtlcore.train(recipe, [there], resume=True)
    assert any(note.endswith("at step 4") for note in again.notes if "resumed from" in note)
    assert [line["step"] for line in metrics(copy) if "losses" in line] == [1, 2, 3, 4, 5, 6]


def test_without_its_checkpoints_a_run_is_not_begun_again(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    recipe, there = run.parent / "recipe.yaml", f"training.output_dir={copy}"
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


def test_a_manifest_without_one_of_the_files_is_refused(run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoints(run)[-1], tmp_path / "step-000006"))
    (folder / MANIFEST).unlink()
    (folder / OPTIMIZER).unlink()
    seal(folder)
    with pytest.raises(DamagedError, match=f"does not name {OPTIMIZER}"):
        open_checkpoint(folder)


def test_old_checkpoints_that_are_links_go_without_what_they_lead_to(
    run: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    first = checkpoints(copy)[0]
    elsewhere = Path(shutil.move(first, tmp_path / "elsewhere"))
    first.symlink_to(elsewhere)
    (first.parent / f".{first.name}.old").mkdir()
    prune(copy, 1, set())
    assert len(checkpoints(copy)) == 1
    assert (elsewhere / STATE).is_file()


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


def test_fewer_steps_than_a_run_has_behind_it_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    recipe = write_tiny_recipe(tmp_path, tiny_model)
    run = mtlcore.train(recipe)
    before = (run.folder / "result.json").read_bytes()
    with pytest.raises(UserError, match="at step 6 already, past the 4 that it is to have"):
        mtlcore.train(recipe, ["training.max_steps=4"], resume=True)
    assert (run.folder / "result.json").read_bytes() == before


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


def test_no_memory_is_told_with_what_to_change(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "greedy.py").write_text(GREEDY)
    recipe = write_tiny_recipe(
        tmp_path, tiny_model, plugins="[./greedy.py]", regularization="[greedy]"
    )
    with pytest.raises(UserError, match="out of memory after step 3") as caught:
        mtlcore.train(recipe)
    assert "the newest checkpoint, step-000002, is whole" in str(caught.value)
    assert "gradient_accumulation_steps" in caught.value.problem.fix


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory.")])
def test_no_memory_for_the_model_is_told_with_what_to_change(
    error: Exception, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        raise error

    monkeypatch.setattr("mtlcore.run.load_backbone", load)
    for begin in (
        lambda: mtlcore.train(run.parent / "recipe.yaml", [f"training.output_dir={tmp_path}/run"]),
        lambda: mtlcore.load(run),
    ):
        with pytest.raises(UserError, match="out of memory while the model") as caught:
            begin()
        assert "model.dtype" in caught.value.problem.fix


GREEDY = """
import torch
from mtlcore.components import Regularizer

class Greedy(Regularizer):
    '''Ask for 4 exabytes in the fourth step.'''

    name = "greedy"
    acts_on = "weights"

    def mtlcore_penalties(self, run, batch, outputs):
        if run.step == 3:
            torch.empty(2**60)
        return []
"""
