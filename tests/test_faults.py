"""A run that is ended at any moment goes on to the same bits."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import mtlcore
from mtlcore import stop_signals
from mtlcore.checkpoint_store import checkpoints, open_checkpoint
from mtlcore.stop_signals import RunStopped, StopSignals
from mtlcore.terminal import outliving_readers
from tests.faults import differences, end_after, recipe_in, seconds_of_a_run, train_in_process
from tests.helpers import torchrun

STOPPED = 75


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run that nobody disturbed, and how long one takes."""
    for name in ("first", "whole"):  # the first also starts the server that the others fork from
        folder = tmp_path_factory.mktemp(name)
        seconds = seconds_of_a_run(recipe_in(folder, tiny_model))
    return folder / "run", seconds


def end_at_random(
    number: signal.Signals, count: int, whole: tuple[Path, float], model: Path, folder: Path
) -> list[int]:
    """End a run at so many moments, go on each time, and compare; the exit codes of the ends."""
    reference, seconds = whole
    recipe = recipe_in(folder, model)
    draw = random.Random(0)
    codes: list[int] = []
    while len(codes) < count:
        moment = draw.uniform(0, seconds)
        code = end_after(recipe, moment, number)
        seconds_of_a_run(recipe)
        assert differences(folder / "run", reference) == [], f"{number.name} after {moment:.3f} s"
        shutil.rmtree(folder / "run")
        if code != 0:  # else it was at its end already
            codes.append(code)
    return codes


@pytest.mark.parametrize("count", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_goes_on_to_the_same_bits(
    count: int, whole: tuple[Path, float], tiny_model: Path, tmp_path: Path
) -> None:
    codes = end_at_random(signal.SIGKILL, count, whole, tiny_model, tmp_path)
    assert set(codes) == {-signal.SIGKILL}


@pytest.mark.parametrize("count", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_a_run_that_is_stopped_goes_on_to_the_same_bits(
    count: int, whole: tuple[Path, float], tiny_model: Path, tmp_path: Path
) -> None:
    codes = end_at_random(signal.SIGTERM, count, whole, tiny_model, tmp_path)
    assert STOPPED in codes
    assert set(codes) <= {STOPPED, -signal.SIGTERM}  # the latter before the training began


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_each_of_many_kills_leaves_what_the_next_start_goes_on_from(
    number: signal.Signals, whole: tuple[Path, float], tiny_model: Path, tmp_path: Path
) -> None:
    """One run in small pieces, some of them ended by a second signal or by SIGKILL."""
    reference, seconds = whole
    recipe = recipe_in(tmp_path, tiny_model)
    for piece in range(6):
        end_after(recipe, seconds * 0.6, signal.SIGKILL if piece % 2 else number)
    seconds_of_a_run(recipe)
    assert differences(tmp_path / "run", reference) == []
    assert checkpoints(tmp_path / "run")


# -- signals at chosen moments ------------------------------------------------------------------

SIGNALLER = '''
import os
from mtlcore.distributed import rank
from mtlcore.hookspecs import hookimpl

def send(moment):
    """A signal to this process, at the moment and in the rank that MOMENT names."""
    if os.environ.get("MOMENT") == f"{moment} {rank()}":
        for _ in range(TIMES):
            os.kill(os.getpid(), NUMBER)

@hookimpl
def mtlcore_step_end(run, record):
    send(f"step {run.step}")

@hookimpl
def mtlcore_stage_end(run, stage):
    send(f"end of {stage}")

@hookimpl
def mtlcore_run_start(run):
    def before(model, arguments):
        if not model.training:
            send(f"evaluation {run.step}")
    run.model.register_forward_pre_hook(before)
'''


def signalled(
    folder: Path, model: Path, *, number: signal.Signals = signal.SIGTERM, times: int = 1
) -> Path:
    constants = f"NUMBER, TIMES = {int(number)}, {times}\n"
    (folder / "signaller.py").write_text(constants + SIGNALLER)
    recipe = recipe_in(folder, model)
    recipe.write_text(recipe.read_text() + "plugins: [./signaller.py]\n")
    return recipe


MOMENTS = {
    "step 1 0": (1, []),
    "step 2 0": (2, ["eval"]),
    "evaluation 2 0": (2, ["eval"]),
    "step 3 0": (3, ["audit"]),
    "evaluation 3 0": (3, ["audit"]),  # the auditor's
    "end of first 0": (5, []),
    "evaluation 9 0": (9, []),  # the last audit, of the whole run
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_ends_the_run_with_what_is_still_to_be_done(
    moment: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = signalled(tmp_path, tiny_model)
    whole = mtlcore.train(recipe, [f"training.output_dir={tmp_path}/whole"]).folder
    monkeypatch.setenv("MOMENT", moment)
    with pytest.raises(RunStopped, match="stopped by SIGTERM after step") as caught:
        mtlcore.train(recipe)
    assert caught.value.exit_code == STOPPED
    monkeypatch.delenv("MOMENT")
    newest = checkpoints(tmp_path / "run")[-1]
    step, due = MOMENTS[moment]
    state = open_checkpoint(newest).state()
    assert state["step"] == step
    assert [what for what in state["progress"]["due"] if what != "save"] == due
    mtlcore.train(recipe, resume=True)
    assert differences(tmp_path / "run", whole) == []
    audits = [(folder / "audits.jsonl").read_text() for folder in (tmp_path / "run", whole)]
    assert audits[0] == audits[1]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_second_signal_ends_a_process_at_once(tiny_model: Path, tmp_path: Path) -> None:
    """It writes no checkpoint of its own; one that was under way may be lost."""
    recipe = signalled(tmp_path, tiny_model, times=2)
    whole = mtlcore.train(recipe, [f"training.output_dir={tmp_path}/whole"]).folder
    process = train_in_process(recipe, MOMENT="step 3 0")
    process.join()
    assert process.exitcode == -signal.SIGTERM
    left = [path.name for path in checkpoints(tmp_path / "run")]
    assert left in (["step-000001"], ["step-000001", "step-000002"])
    mtlcore.train(recipe, resume=True)
    assert differences(tmp_path / "run", whole) == []


def test_a_run_ends_with_its_checkpoint_when_nobody_reads_what_it_tells(
    tiny_model: Path, tmp_path: Path
) -> None:
    """As with `mtlcore train RECIPE 2>&1 | tee log`, when Ctrl-C ends `tee` too."""
    recipe = signalled(tmp_path, tiny_model, number=signal.SIGINT)
    command = [sys.executable, "-m", "mtlcore.cli", "train", str(recipe), "--resume"]
    reader, writer = os.pipe()
    os.close(reader)
    environ = {**os.environ, "MOMENT": "step 3 0"}
    done = subprocess.run(command, stdout=writer, stderr=writer, env=environ, check=False)
    os.close(writer)
    assert done.returncode == STOPPED
    assert checkpoints(tmp_path / "run")[-1].name == "step-000003"
    seconds_of_a_run(recipe)


def test_what_is_told_goes_nowhere_once_nobody_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with outliving_readers():
            print("one", flush=True)
            assert os.read(reader, 9) == b"one\n"
            os.close(reader)
            print("two", flush=True)
            print("three")  # stays in the buffer
        assert sys.stdout is stream
        print("four", flush=True)  # by another writer


@pytest.mark.parametrize("again", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("launched", [False, True])
def test_a_signal_that_a_launcher_passes_on_is_no_second_one(
    launched: bool, again: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if launched:
        monkeypatch.setenv("WORLD_SIZE", "1")
    ended: list[int] = []
    monkeypatch.setattr(os, "kill", lambda process, number: ended.append(number))
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(again)
        passed_on = launched and again == signal.SIGTERM
        assert ended == ([] if passed_on else [again])
        assert signals.asked()


def test_after_a_while_a_second_signal_ends_a_launched_process_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(stop_signals, "GRACE", 0.0)
    ended: list[int] = []
    monkeypatch.setattr(os, "kill", lambda process, number: ended.append(number))
    with StopSignals():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    assert ended == [signal.SIGTERM]


SCRIPT = """
import os
import sys
from mtlcore.cli import main
try:
    main(["train", sys.argv[1], "--resume"])
except SystemExit as end:
    open(f"{sys.argv[1]}.{os.environ['RANK']}", "w").write(str(end.code or 0))
    raise
"""


def test_a_signal_to_one_of_two_processes_ends_both_after_the_same_step(
    tiny_model: Path, tmp_path: Path
) -> None:
    """It comes twice, as if torchrun had been signalled too, which passes it on."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    codes = []
    for name, moment in (("whole", None), ("run", "step 3 1"), ("run", None)):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        recipe = signalled(folder, tiny_model, times=2)
        done = torchrun(script, recipe, check=False, MOMENT=str(moment))
        codes.append([Path(f"{recipe}.{rank}").read_text() for rank in (0, 1)])
        assert done.returncode == (1 if moment else 0)  # torchrun knows no other failure
        if moment:
            assert checkpoints(folder / "run")[-1].name == "step-000003"
    assert codes == [["0", "0"], ["75", "75"], ["0", "0"]]
    assert differences(tmp_path / "run" / "run", tmp_path / "whole" / "run") == []
