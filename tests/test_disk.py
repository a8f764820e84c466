"""A disk, a lock or a memory that fails: told with what is kept, and nothing is lost."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import mtlcore
from mtlcore import api, files, manifest, system_errors, trainer
from mtlcore.checkpoint_store import (
    checkpoints,
    open_checkpoint,
)
from mtlcore.errors import UserError
from mtlcore.files import append_text, replace_text, sync
from mtlcore.recipe_file import read_recipe
from mtlcore.run_lock import RunLock
from mtlcore.system_errors import telling_system_errors
from tests.faults import differences
from tests.recipes import write_tiny_recipe


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
    finished_run: Path, small_disk: Path, tmp_path: Path
) -> None:
    copy = small_disk / "run"
    newest = checkpoints(finished_run)[-1]
    shutil.copytree(newest, copy / "checkpoints" / newest.name)
    recipe = [finished_run.parent / "recipe.yaml", [f"training.output_dir={copy}"]]
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


# -- two processes in one folder ------------------------------------------------------------------


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


def test_a_lock_is_given_back_when_a_run_cannot_be_prepared(
    finished_run: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(finished_run, tmp_path / "run"))
    with pytest.raises(UserError, match="already holds a run"):
        mtlcore.train(finished_run.parent / "recipe.yaml", [f"training.output_dir={copy}"])
    lock = RunLock(copy)
    lock.acquire()
    lock.release()


# -- memory ---------------------------------------------------------------------------------------


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
    error: Exception, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        raise error

    monkeypatch.setattr("mtlcore.run.load_backbone", load)
    for begin in (
        lambda: mtlcore.train(
            finished_run.parent / "recipe.yaml", [f"training.output_dir={tmp_path}/run"]
        ),
        lambda: mtlcore.load(finished_run),
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
