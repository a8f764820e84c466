"""What docs/security.md promises: no way out of a run folder, no network, no code unasked."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mtlcore
from mtlcore.errors import UserError
from mtlcore.plugins import changed_plugins
from mtlcore.run import ENVIRONMENT
from tests.command_line import CommandLine
from tests.recipes import training_part, write_tiny_recipe

# -- no network --------------------------------------------------------------------------------

NO_NETWORK = """\
import os, sys

def refuse(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        with open(os.environ["NETWORK_LOG"], "a") as log:
            log.write(f"{event} {args[1:]}\\n")
        raise OSError(f"the network is blocked: {event}")

sys.addaudithook(refuse)
"""
ASK_THE_NETWORK = "import socket\ntry: socket.getaddrinfo('localhost', 80)\nexcept OSError: pass"


@pytest.fixture
def offline(tmp_path: Path) -> tuple[dict[str, str], Path]:
    """An environment whose processes cannot use the network, and the log of what they tried."""
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(NO_NETWORK)
    log = tmp_path / "network.log"
    paths = [str(hook), os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]
    environ = {k: v for k, v in os.environ.items() if not k.endswith("_OFFLINE")}
    environ |= {"PYTHONPATH": os.pathsep.join(paths), "NETWORK_LOG": str(log)}
    return environ, log


def test_the_block_blocks(offline: tuple[dict[str, str], Path]) -> None:
    environ, log = offline
    subprocess.run([sys.executable, "-c", ASK_THE_NETWORK], env=environ, check=True)
    assert log.read_text().startswith("socket.getaddrinfo")


def test_local_models_and_files_need_no_network(
    offline: tuple[dict[str, str], Path], tiny_model: Path, tmp_path: Path
) -> None:
    environ, log = offline
    recipe = write_tiny_recipe(tmp_path, tiny_model, training=training_part(tmp_path, max_steps=1))
    for args in (["check", recipe], ["train", recipe], ["evaluate", "run"], ["report", "run"]):
        command = [sys.executable, "-m", "mtlcore.cli", *map(str, args)]
        done = subprocess.run(command, capture_output=True, text=True, env=environ, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert not log.exists(), log.read_text()


# -- a model's own code ------------------------------------------------------------------------

MODEL_CODE = """\
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path({mark!r}).write_text("the code was run")

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def own_code(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe whose model has code that writes the file `mark`."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (model / "own.py").write_text(MODEL_CODE.format(mark=str(tmp_path / "mark")))
    config = json.loads((model / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},
    }
    (model / "config.json").write_text(json.dumps(config))
    return write_tiny_recipe(tmp_path, model, training=training_part(tmp_path, max_steps=1))


def test_a_models_code_is_not_run_unasked(
    own_code: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    code, _, err = CommandLine(capfd, monkeypatch)("train", own_code)
    assert code == 2
    assert "model.trust_remote_code: " in err
    assert "comes with Python code of its own" in err
    assert "fix: read that code" in err
    assert not (tmp_path / "mark").exists()


def test_a_models_code_that_is_asked_for_is_told(own_code: Path, tmp_path: Path) -> None:
    text = own_code.read_text()
    own_code.write_text(text.replace("{name_or_path:", "{trust_remote_code: true, name_or_path:"))
    run = mtlcore.train(own_code)
    assert (tmp_path / "mark").exists()
    told = f"model.trust_remote_code: Python code that comes with {tmp_path / 'model'} is run"
    notes = json.loads((run.folder / ENVIRONMENT).read_text())["notes"]
    assert [note for note in notes if note.startswith(told)]


# -- plugins -----------------------------------------------------------------------------------

PLUGIN = '''\
from mtlcore.hookspecs import hookimpl

@hookimpl
def mtlcore_step_end(run, record):
    """{word}"""
'''


def test_changed_code_of_a_plugin_is_told_on_resume(tiny_model: Path, tmp_path: Path) -> None:
    recipe = write_tiny_recipe(
        tmp_path, tiny_model, plugins="[mine.py]", training=training_part(tmp_path, max_steps=2)
    )
    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN.format(word="one"))
    run = mtlcore.train(recipe)
    (record,) = (
        row
        for row in json.loads((run.folder / ENVIRONMENT).read_text())["plugins"]
        if row["name"] == str(plugin)
    )
    assert record["distribution"] == str(plugin)
    assert len(record["sha256"]) == 64
    again = mtlcore.train(recipe, ["training.max_steps=3"], resume=True)
    assert not [note for note in again.notes if "since the run was started" in note]
    plugin.write_text(PLUGIN.format(word="two"))
    again = mtlcore.train(recipe, ["training.max_steps=4"], resume=True)
    told = f"warning: since the run was started, the code of {plugin} is another one now"
    assert [note for note in again.notes if note.startswith(told)]


def test_a_plugin_that_lies_beside_the_recipe_is_not_loaded(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_tiny_recipe(tmp_path, tiny_model, training=training_part(tmp_path, max_steps=1))
    for name in ("mine.py", "plugins.py", "mtlcore_mine.py"):
        (tmp_path / name).write_text("raise SystemExit('this was run')")
    monkeypatch.chdir(tmp_path)
    assert mtlcore.train(recipe).step == 1


def test_changed_plugins_says_what_came_went_and_changed() -> None:
    def row(name: str, version: str = "1", sha256: str = "a") -> dict[str, str]:
        return {"name": name, "version": version, "sha256": sha256, "file": f"/{name}.py"}

    before = [row("gone"), row("same"), row("newer"), row("edited")]
    now = [row("same"), row("newer", "2", "b"), row("edited", sha256="b"), row("added")]
    assert changed_plugins(before, now) == [
        "gone is no longer there",
        "added is new",
        "the code of edited is another one now (/edited.py)",
        "newer is version 2 now, was 1",
    ]
    assert changed_plugins(now, now) == []


# -- no pickles --------------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["mtlcore", "plugins"])
def test_nothing_is_read_from_pickles(package: str) -> None:
    unsafe = re.compile(
        r"\b(import (pickle|marshal|shelve|joblib|dill)|torch\.load\(|allow_pickle=True)"
    )
    files = [*Path(package).rglob("*.py")]
    assert len(files) > 20
    assert not [str(path) for path in files if unsafe.search(path.read_text(encoding="utf-8"))]


# -- inside the run folder ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "", "..", "a\0b"])
def test_predictions_stay_in_the_run_folder(name: str, tiny_run: Path) -> None:
    run = mtlcore.load(tiny_run)
    with pytest.raises(UserError, match="the name of a folder inside the run's"):
        run.evaluate("test", save_as=name)


def test_names_of_stages_and_runs_are_no_paths(tiny_model: Path, tmp_path: Path) -> None:
    """They are free text: nothing is written under them."""
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    recipe = write_tiny_recipe(
        inside,
        tiny_model,
        stages='[{name: "../../stage", tasks: [sentiment, spelling, definitions], max_steps: 1}]',
        training="{output_dir: %s, run_name: ../../name, save_steps: 1, max_length: 96}"
        % (inside / "run"),
    )
    mtlcore.train(recipe).evaluate("test", save_as="test")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    assert not list(tmp_path.rglob("*stage*"))
