"""`mtlcore train` and `mtlcore demo`."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mtlcore.checkpoint import checkpoints
from mtlcore.cli.train import complete_bare_resume
from mtlcore.recipe_file import read_recipe
from tests.command_line import CommandLine, contents
from tests.recipes import write_tiny_recipe

DEMO_TASKS = ("sentiment", "word_sense", "translation", "definitions", "spelling")


def losses(run: Path) -> list[tuple[int, float]]:
    """(step, loss) of every line of metrics.jsonl that is a step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def test_overrides_reach_the_run(cli: CommandLine, tiny_model: Path, tmp_path: Path) -> None:
    recipe = write_tiny_recipe(tmp_path, tiny_model)
    out = tmp_path / "elsewhere"
    overrides = ["training.max_steps=2", "sharing.own=0", f"training.output_dir={out}"]
    code, stdout, _ = cli("train", recipe, *overrides)
    assert code == 0
    assert stdout.splitlines()[-1] == f"run folder: {out}"
    resolved = read_recipe(out / "recipe.yaml").recipe
    assert resolved.sharing is not None
    assert (resolved.training.max_steps, resolved.sharing.own) == (2, 0)
    assert [step for step, _ in losses(out)] == [1, 2]
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def half(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and its run, stopped after step 4 of 6 and with step 2 kept."""
    import mtlcore

    folder = tmp_path_factory.mktemp("half")
    recipe = write_tiny_recipe(folder, tiny_model)
    mtlcore.train(recipe)
    shutil.rmtree(folder / "run" / "checkpoints" / "step-000006")
    return folder


@pytest.mark.parametrize(
    ("args", "start"),
    [
        (["--resume", "RECIPE"], 4),
        (["RECIPE", "--resume"], 4),
        (["RECIPE", "--resume", "auto"], 4),
        (["RECIPE", "--resume", "STEP_2"], 2),
        (["RECIPE", "--resume=STEP_2", "training.logging_steps=1"], 2),
    ],
)
def test_a_run_goes_on_from_the_newest_checkpoint_or_the_one_named(
    args: list[str], start: int, cli: CommandLine, half: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(half / "run", tmp_path / "run"))
    recipe = str(shutil.copy(half / "recipe.yaml", half / f"{tmp_path.name}.yaml"))
    step_2 = str(checkpoints(run)[0])
    filled = [arg.replace("RECIPE", recipe).replace("STEP_2", step_2) for arg in args]
    before = losses(run)
    code, out, _ = cli("train", *filled, f"training.output_dir={run}")
    assert code == 0
    assert f"resumed from {checkpoints(run)[start // 2 - 1]} at step {start}" in out
    assert losses(run) == before  # the steps done again, with the same losses, and logged once
    assert [path.name for path in checkpoints(run)] == [f"step-{n:06d}" for n in (2, 4, 6)]


def test_bare_resume_may_stand_anywhere() -> None:
    for rest in (["r.yaml"], ["r.yml"], ["a=1"], ["--debug"], []):
        completed = complete_bare_resume(["train", "--resume", *rest])
        assert completed == ["train", "--resume", "auto", *rest]


def test_the_log_of_a_process_holds_no_progress_bars(tiny_model: Path, tmp_path: Path) -> None:
    recipe = write_tiny_recipe(tmp_path, tiny_model)
    environ = {**os.environ}
    environ.pop("HF_HUB_DISABLE_PROGRESS_BARS")
    command = [sys.executable, "-m", "mtlcore.cli", "train", recipe, "training.max_steps=1"]
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stderr
    assert "%|" not in done.stderr
    assert "step 1/1" in done.stderr


def test_the_tiny_demo_trains_scores_and_exports(
    cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTLCORE_CACHE", str(tmp_path / "cache"))
    few = [f"tasks.{name}.max_rows=4" for name in DEMO_TASKS]
    steps = ["training.max_steps=2", "training.eval_max_rows=2"]
    folder = tmp_path / "demo"
    code, out, _ = cli("demo", "--tiny", *steps, *few, "--out", folder)
    assert code == 0
    assert f"run folder   {folder}" in out
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary["tasks"]) == set(DEMO_TASKS)
    assert all(task["rows"] == 4 for task in summary["tasks"].values())
    exported = {path.name for path in (folder / "adapters").iterdir()}
    assert exported == {*DEMO_TASKS, "shared"}
    assert [step for step, _ in losses(folder)][-1] == 2
    assert contents(folder / "predictions" / "after").keys() == {
        "scores.json",
        *(f"{name}.jsonl" for name in DEMO_TASKS),
    }


def test_a_stopped_demo_tells_how_its_training_goes_on(
    cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTLCORE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "stop.py").write_text(
        "import os, signal\nfrom mtlcore.hookspecs import hookimpl\n\n@hookimpl\n"
        "def mtlcore_step_end(run, record):\n"
        "    if run.step == 1:\n        os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    few = [f"tasks.{name}.max_rows=4" for name in DEMO_TASKS]
    steps = ["training.max_steps=2", "training.eval_max_rows=2"]
    plugin = f"plugins=[{tmp_path / 'stop.py'}]"
    code, _, error = cli("demo", "--tiny", *steps, *few, plugin, "--out", tmp_path / "demo")
    assert code == 75
    _, asked, rest = error.partition("with --resume (of the demo: mtlcore ")
    assert asked
    code, _, error = cli(*shlex.split(rest.partition(")")[0]))
    assert code == 0, error
    assert losses(tmp_path / "demo")[-1][0] == 2


def test_a_demo_needs_a_metric_of_each_task(
    cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTLCORE_CACHE", str(tmp_path / "cache"))
    elsewhere = f"training.output_dir={tmp_path / 'elsewhere'}"
    code, out, error = cli("demo", "--tiny", elsewhere, "tasks.spelling.metrics=[]")
    assert code == 2
    assert "tasks.spelling.metrics: the demo shows a metric of every task" in error
    assert "scoring" not in out


def test_a_demo_that_cannot_start_leaves_the_earlier_one_where_it_is(
    cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTLCORE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "summary.json").write_text("{}")
    wrong = "weighting={name: fixed, weights: {sentiment: 1}}"
    code, out, error = cli("demo", "--tiny", wrong, "--out", folder)
    assert code == 2
    assert "error: command line, weighting: weighting.weights must name every task" in error
    assert "scoring" not in out
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["demo"]
    assert contents(folder).keys() == {"summary.json"}
