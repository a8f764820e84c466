from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from mtlcore import plugin_sources
from mtlcore.cli import VERBS, main, take_global_flags
from mtlcore.cli.train import complete_bare_resume
from mtlcore.errors import MtlcoreError, UserError

HEAVY = ("torch", "transformers", "datasets", "pydantic")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("MTLCORE_NO_PLUGINS", "MTLCORE_LOAD_PLUGINS", "MTLCORE_DISABLE_PLUGINS"):
        monkeypatch.setenv(variable, "x")  # so that it is restored even when it was not set
        monkeypatch.delenv(variable)
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command line; gives exit code, stdout and stderr."""

    def run(*args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(args)
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return run


class FakeRun:
    """Stands in for mtlcore.run.Run and keeps what it was asked for."""

    folder = Path("runs/fake")
    recipe = types.SimpleNamespace(tasks={"a": None, "b": None})

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def evaluate(self, split: str, tasks: Any = None, *, save_as: str) -> Any:
        assert save_as == split
        self.calls.append((split, tasks))
        return types.SimpleNamespace(to_json=lambda: {"overall": 1.0}, table=lambda: "the table")

    def generate(self, prompts: list[str], tasks: Any) -> list[str]:
        self.calls.append((prompts, tasks))
        return [prompt.upper() for prompt in prompts]

    def export(self, folder: Path, **what: Any) -> Path:
        self.calls.append((str(folder), what))
        return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> FakeRun:
    """Replace mtlcore.api, which imports torch."""
    fake = FakeRun()

    def train(recipe: str, overrides: Any, *, resume: Any) -> FakeRun:
        fake.calls.append((recipe, overrides, resume))
        return fake

    api = types.SimpleNamespace(train=train, load=lambda folder: fake)
    monkeypatch.setitem(sys.modules, "mtlcore.api", api)  # type: ignore[arg-type]
    return fake


# -- help, versions, exit codes ----------------------------------------------------------------


def test_help_lists_every_verb(cli: Any) -> None:
    code, out, err = cli("--help")
    assert code == 0
    assert err == ""
    for verb in VERBS:
        assert f" {verb} " in out


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_help(verb: str, cli: Any) -> None:
    code, out, _ = cli(verb, "--help")
    assert code == 0
    assert f"mtlcore {verb}" in out


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom mtlcore.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_schema_imports_no_torch() -> None:
    code = (
        "import sys\nfrom mtlcore.cli import main\n"
        "try: main(['schema'])\nexcept SystemExit: pass\n"
        f"print([name for name in {HEAVY[:3]} if name in sys.modules], file=sys.stderr)"
    )
    for _ in range(2):  # the first may fill the cache of components, which takes torch
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
    assert done.stderr.strip() == "[]"


def test_version(cli: Any) -> None:
    from mtlcore import __version__

    assert cli("--version") == (0, f"mtlcore {__version__}\n", "")


def test_no_arguments_print_help() -> None:
    done = subprocess.run([sys.executable, "-m", "mtlcore.cli"], capture_output=True, text=True)
    assert "Commands" in done.stdout + done.stderr


def test_an_unknown_verb_exits_with_2_and_names_the_nearest(cli: Any) -> None:
    code, _, err = cli("trainn")
    assert code == 2
    assert "'train'" in err


def test_an_unknown_flag_exits_with_2(cli: Any) -> None:
    assert cli("train", "x.yaml", "--nonsense")[0] == 2


# -- errors ------------------------------------------------------------------------------------


def test_user_errors_have_no_traceback_and_exit_with_2(
    cli: Any, run: FakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(folder: Path) -> None:
        raise UserError("it is broken", where="runs/x", fix="mend it")

    monkeypatch.setattr(sys.modules["mtlcore.api"], "load", load)
    code, out, err = cli("evaluate", "runs/x")
    assert (code, out) == (2, "")
    assert err == "error: runs/x: it is broken\n  fix: mend it\n"


def test_debug_shows_the_traceback(run: FakeRun) -> None:
    with pytest.raises(UserError):
        main(["evaluate", "runs/x", "--split", "tset", "--debug"])


def test_other_errors_of_ours_exit_with_1(
    cli: Any, run: FakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(folder: Path) -> None:
        raise MtlcoreError("the disk is full")

    monkeypatch.setattr(sys.modules["mtlcore.api"], "load", load)
    assert cli("evaluate", "runs/x") == (1, "", "error: the disk is full\n")


def test_an_interrupt_exits_with_130(
    cli: Any, run: FakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["mtlcore.api"], "load", load)
    assert cli("evaluate", "runs/x")[0] == 130


def test_a_newcomer_is_told_all_ten_faults_at_once(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sentiment.jsonl").touch()
    (tmp_path / "recipe.yaml").write_text(
        "model: {name_or_path: tiny, dtype: flot32}\n"
        "tasks:\n"
        "  sentiment:\n"
        "    train: data/sentimnt.jsonl\n"
        "    format: classification\n"
        "    los_weight: 2\n"
        "  my task: {train: imdb, metrics: [accuracy]}\n"
        "lora: {r: sixteen}\n"
        "sharing: {groups: {g: {tasks: [sentimant], r: 4}}}\n"
        "load_in_4bit: true\n"
        "training: {max_steps: -5, early_stopping_patience: 3}\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mtlcore.cli", "train", "recipe.yaml"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert lines[-1] == "10 problems"
    assert sum(line.startswith("error: recipe.yaml:") for line in lines) == 10
    assert "error: recipe.yaml:4, tasks.sentiment.train: no such file: data/sentimnt.jsonl" in lines
    assert "  fix: did you mean 'data/sentiment.jsonl'?" in lines
    assert not (tmp_path / "runs").exists()


# -- verbs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "resume"),
    [
        ([], False),
        (["--resume"], True),
        (["--resume", "auto"], True),
        (["--resume", "runs/x"], "runs/x"),
        (["--resume=runs/x"], "runs/x"),
    ],
)
def test_train_passes_overrides_and_resume(
    args: list[str],
    resume: Any,
    cli: Any,
    run: FakeRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text("model: tiny\ntasks: {a: {train: imdb, format: text}}\n")
    code, out, _ = cli("train", "r.yaml", "training.seed=1", "lora.r=2", *args)
    assert code == 0
    assert run.calls == [("r.yaml", ("training.seed=1", "lora.r=2"), resume)]
    assert "runs/fake" in out


def test_bare_resume_may_stand_anywhere() -> None:
    for rest in (["r.yaml"], ["r.yml"], ["a=1"], ["--debug"], []):
        assert complete_bare_resume(["train", "--resume", *rest]) == [
            "train",
            "--resume",
            "auto",
            *rest,
        ]


def test_evaluate_prints_a_table_or_json(cli: Any, run: FakeRun) -> None:
    assert cli("evaluate", "runs/x")[:2] == (0, "the table\n")
    code, out, _ = cli("evaluate", "runs/x", "--split", "eval", "--task", "a", "--json")
    assert code == 0
    assert json.loads(out) == {"overall": 1.0}
    assert run.calls == [("test", None), ("eval", ["a"])]
    code, _, err = cli("evaluate", "runs/x", "--split", "tset")
    assert code == 2
    assert "did you mean 'test'?" in err


def test_generate_takes_prompts_and_tasks(cli: Any, run: FakeRun) -> None:
    assert cli("generate", "runs/x", "one", "two")[1] == "ONE\nTWO\n"
    cli("generate", "runs/x", "--task", "a", "one", "two")
    cli("generate", "runs/x", "--task", "a", "--task", "b", "one", "two")
    prompts = ["one", "two"]
    assert run.calls == [
        (prompts, [None, None]),
        (prompts, ["a", "a"]),
        (prompts, ["a", "b"]),
    ]
    code, _, err = cli("generate", "runs/x", "--task", "a", "--task", "b", "one")
    assert code == 2
    assert "1 prompts, but --task is given 2 times" in err


def test_generate_reads_prompts_from_stdin(
    cli: Any, run: FakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\ntwo\n"))
    out = cli("generate", "runs/x", "--task", "a", "--json")[1]
    assert [json.loads(line) for line in out.splitlines()] == [
        {"task": "a", "prompt": "one", "output": "ONE"},
        {"task": "a", "prompt": "two", "output": "TWO"},
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert cli("generate", "runs/x")[0] == 2


@pytest.mark.parametrize(
    ("args", "calls"),
    [
        ([], [("runs/x/adapters/a", {"task": "a"}), ("runs/x/adapters/b", {"task": "b"})]),
        (["--task", "a"], [("runs/x/adapters/a", {"task": "a"})]),
        (["--task", "a", "--out", "y"], [("y", {"task": "a"})]),
        (["--shared"], [("runs/x/shared", {"shared": True})]),
        (["--merged"], [("runs/x/merged", {"task": None, "merged": True})]),
        (["--merged", "--task", "a"], [("runs/x/merged/a", {"task": "a", "merged": True})]),
    ],
)
def test_export_chooses_what_and_where(
    args: list[str], calls: list[Any], cli: Any, run: FakeRun
) -> None:
    code, out, _ = cli("export", "runs/x", *args)
    assert code == 0
    assert run.calls == calls
    assert out.split() == [folder for folder, _ in calls]


def test_export_refuses_contradictions(cli: Any, run: FakeRun) -> None:
    assert cli("export", "runs/x", "--shared", "--merged")[0] == 2
    assert cli("export", "runs/x", "--shared", "--task", "a")[0] == 2
    assert run.calls == []


def test_demo_passes_its_arguments(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    fake = types.SimpleNamespace(run_demo=lambda *args: calls.append(args))
    monkeypatch.setitem(sys.modules, "mtlcore.demo.run", fake)  # type: ignore[arg-type]
    assert cli("demo", "--tiny", "training.seed=1", "--out", "x")[0] == 0
    assert calls == [(True, ("training.seed=1",), Path("x"))]


def test_schema_prints_json(cli: Any) -> None:
    code, out, _ = cli("schema")
    assert code == 0
    assert "tasks" in json.loads(out)["properties"]
    assert json.loads(cli("schema", "--field", "lora.r")[1])["default"] == 16
    code, _, err = cli("schema", "--field", "lora.rr")
    assert code == 2
    assert "'r'" in err


def test_env_and_ops_print_facts(cli: Any) -> None:
    facts = json.loads(cli("env", "--json")[1])
    assert facts["versions"]["torch"]
    assert facts["cores"] > 0
    assert "torch threads" in cli("env")[1]
    cells = json.loads(cli("ops", "--json")[1])
    assert {"gramian"} <= {cell["op"] for cell in cells}
    assert "gramian" in cli("ops")[1]


# -- plugins -----------------------------------------------------------------------------------


def test_plugin_flags_are_taken_anywhere_and_become_variables() -> None:
    flags = ["--debug", "--no-plugins", "--disable-plugin", "a", "--disable-plugin=b"]
    args, debug = take_global_flags(["train", *flags, "r.yaml", "--", "--debug"])
    assert (args, debug) == (["train", "r.yaml", "--", "--debug"], True)
    assert os.environ["MTLCORE_NO_PLUGINS"] == "1"
    assert os.environ["MTLCORE_DISABLE_PLUGINS"] == "a,b"


def test_the_verbs_of_plugins_are_mounted(cli: Any) -> None:
    assert cli("plugins", "list")[0] == 0


@pytest.fixture
def third_party(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A plugin with a verb, and a broken one; gives the names of those that were loaded."""
    loaded: list[str] = []

    def mtlcore_commands(cli: Any) -> None:
        cli.command("hello", help="Say hello.")(lambda: print("hello from the plugin"))

    def good() -> Any:
        loaded.append("good")
        return types.SimpleNamespace(mtlcore_commands=mtlcore_commands)

    def broken() -> Any:
        loaded.append("broken")
        raise ImportError("no module\nfoo")

    plugins = [
        plugin_sources.Plugin(load.__name__, f"mtlcore-{load.__name__}", "1.0", "installed", load)
        for load in (good, broken)
    ]
    monkeypatch.setattr(plugin_sources, "installed", lambda: iter(plugins))
    return loaded


def test_plugins_add_verbs_and_a_broken_one_is_one_line(cli: Any, third_party: list[str]) -> None:
    code, out, err = cli("--help")
    assert code == 0
    assert "Say hello." in out
    assert err == (
        "warning: plugin 'broken' of mtlcore-broken 1.0 adds no verbs: ImportError: no module foo\n"
    )
    assert cli("hello")[:2] == (0, "hello from the plugin\n")


def test_our_own_verbs_load_no_plugin(cli: Any, run: FakeRun, third_party: list[str]) -> None:
    assert cli("evaluate", "runs/x")[0] == 0
    assert cli("--version")[0] == 0
    assert third_party == []


def test_blocked_plugins_add_no_verbs(
    cli: Any, third_party: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("hello", "--disable-plugin", "good")[0] == 2
    assert third_party == ["broken"]
    monkeypatch.delenv("MTLCORE_DISABLE_PLUGINS")
    monkeypatch.setenv("MTLCORE_LOAD_PLUGINS", "")
    assert cli("hello")[0] == 2
    monkeypatch.delenv("MTLCORE_LOAD_PLUGINS")
    assert cli("--no-plugins", "hello")[0] == 2
    assert third_party == ["broken"]
