"""Help, versions, start-up, exit codes, errors, global flags, the verbs of plugins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mtlcore.cli import VERBS, keep_progress_bars_out_of_logs, main, take_global_flags
from mtlcore.errors import UserError
from mtlcore.plugin_sources import version_of
from mtlcore.testing.command_line import CommandLine
from tests.recipes import write_tiny_recipe

HEAVY = ("torch", "transformers", "datasets", "pydantic")
CLUMSY = '''
from mtlcore.components import Component, Format
from mtlcore.hookspecs import hookimpl


class Clumsy(Format):
    """Divide by zero."""

    name = "clumsy"
    columns = {}

    def example(self, row, *, task, index, tokenizer):
        return 1 / 0


class Impatient(Component):
    """Press Ctrl-C after the first step."""

    kind, name = "auditing", "impatient"

    @hookimpl
    def mtlcore_step_end(self, run, record):
        raise KeyboardInterrupt
'''


# -- help, versions, start-up ------------------------------------------------------------------


def test_help_lists_every_verb(cli: CommandLine) -> None:
    code, out, err = cli("--help")
    assert code == 0
    assert err == ""
    for verb in VERBS:
        assert f" {verb} " in out


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_help(verb: str, cli: CommandLine) -> None:
    code, out, _ = cli(verb, "--help")
    assert code == 0
    assert f"mtlcore {verb}" in out


def modules_after(*args: str) -> str:
    """Which heavy modules a fresh process has imported after a command."""
    code = (
        "import sys\nfrom mtlcore.cli import main\n"
        f"try: main({list(args)})\nexcept SystemExit: pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stderr.strip()


def test_help_imports_nothing_heavy() -> None:
    assert modules_after("--help") == "[]"


def test_schema_imports_no_torch() -> None:
    modules_after("schema")  # may fill the cache of components, which takes torch
    assert modules_after("schema") == "['pydantic']"


def test_version(cli: CommandLine) -> None:
    from mtlcore import __version__

    assert cli("--version") == (0, f"mtlcore {__version__}\n", "")


def test_no_arguments_print_help() -> None:
    done = subprocess.run([sys.executable, "-m", "mtlcore.cli"], capture_output=True, text=True)
    assert "Commands" in done.stdout + done.stderr


# -- exit codes and errors ---------------------------------------------------------------------


def test_an_unknown_verb_exits_with_2_and_names_the_nearest(cli: CommandLine) -> None:
    code, _, err = cli("trainn")
    assert code == 2
    assert "'train'" in err


def test_an_unknown_flag_exits_with_2(cli: CommandLine) -> None:
    assert cli("train", "x.yaml", "--nonsense")[0] == 2


def test_user_errors_have_no_traceback_and_exit_with_2(cli: CommandLine) -> None:
    assert cli("evaluate", "runs/x") == (
        2,
        "",
        "error: runs/x holds no run\n  fix: give the folder of a run, e.g. runs/demo\n",
    )


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(UserError):
        main(["evaluate", "runs/x", "--debug"])


def test_a_path_that_cannot_be_written_is_an_error_without_a_traceback(
    cli: CommandLine, run: Path, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    refused = (2, "", f"error: {file}: File exists\n")
    assert cli("export", run, "--task", "spelling", "--out", file) == refused
    assert file.read_text() == "mine"


def test_faults_of_a_plugin_exit_with_1_and_an_interrupt_with_130(
    cli: CommandLine, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "clumsy.py").write_text(CLUMSY)
    recipe = write_tiny_recipe(tmp_path, tiny_model, plugins="{load: [clumsy.py]}")
    code, _, err = cli("train", recipe, "tasks.spelling.format=clumsy", "tasks.spelling.columns={}")
    place = tmp_path / "spelling.train.jsonl"
    assert err == (
        f"error: format 'clumsy' failed on {place}:1: ZeroDivisionError: division by zero\n"
    )
    assert code == 1
    code, _, err = cli("train", recipe, "auditing=[impatient]")
    assert code == 130
    assert "Traceback" not in err


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


# -- global flags ------------------------------------------------------------------------------


def test_plugin_flags_are_taken_anywhere_and_become_variables(cli: CommandLine) -> None:
    flags = ["--debug", "--no-plugins", "--disable-plugin", "a", "--disable-plugin=b"]
    args, debug = take_global_flags(["train", *flags, "r.yaml", "--", "--debug"])
    assert (args, debug) == (["train", "r.yaml", "--", "--debug"], True)
    assert os.environ["MTLCORE_NO_PLUGINS"] == "1"
    assert os.environ["MTLCORE_DISABLE_PLUGINS"] == "a,b"


def test_a_component_of_a_disabled_plugin_is_refused_and_the_flag_is_named(
    cli: CommandLine, tiny_model: Path, tmp_path: Path
) -> None:
    recipe = write_tiny_recipe(tmp_path, tiny_model)
    code, out, err = cli("--disable-plugin", "weighting/pcgrad", "train", recipe)
    assert (code, out) == (2, "")
    assert err == (
        f"error: {recipe}:29, weighting: weighting 'pcgrad' is not known: its plugin is "
        "disabled by MTLCORE_DISABLE_PLUGINS (--disable-plugin)\n"
        "  fix: enable it there; plugins not loaded: 'weighting/pcgrad' of mtlcore "
        f"{version_of('mtlcore')}\n"
    )
    assert not (tmp_path / "run").exists()


def test_every_weighting_is_listed_with_one_line_and_its_paper(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = json.loads(cli("plugins", "list", "--kind", "weighting", "--json")[1])
    monkeypatch.setenv("COLUMNS", "300")
    code, out, _ = cli("plugins", "list", "--kind", "weighting")
    assert code == 0
    assert len(rows) > 20
    for row in rows:
        assert row["name"] in out
        assert row["summary"] in out
        assert row["paper"]
        assert row["paper"] in out


def test_a_disabled_plugin_is_missing_from_the_cached_list(
    cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTLCORE_CACHE", str(tmp_path))
    assert "pcgrad" in cli("plugins", "list")[1]
    for _ in range(2):  # made, then read from the cache
        code, out, _ = cli("plugins", "list", "--disable-plugin", "weighting/pcgrad")
        monkeypatch.delenv("MTLCORE_DISABLE_PLUGINS")
        assert code == 0
        assert "pcgrad" not in out
    assert "pcgrad" in cli("plugins", "list")[1]


def test_progress_bars_are_off_where_stderr_is_no_terminal(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    keep_progress_bars_out_of_logs()
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "0")
    keep_progress_bars_out_of_logs()
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "0"


# -- the verbs of plugins ----------------------------------------------------------------------


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two installed distributions: a plugin with a verb, and one that cannot be imported."""
    modules = {
        "good_verbs": "def mtlcore_commands(cli):\n"
        "    cli.command('hello', help='Say hello.')(lambda: print('hello from the plugin'))\n",
        "broken_verbs": "raise ImportError('no module\\nfoo')\n",
    }
    for name, text in modules.items():
        (tmp_path / f"{name}.py").write_text(text)
        info = tmp_path / f"mtlcore_{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: mtlcore-{name.replace('_', '-')}\nVersion: 1.0\n"
        )
        short = name.removesuffix("_verbs")
        (info / "entry_points.txt").write_text(f"[mtlcore]\n{short} = {name}\n")
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)


def test_plugins_add_verbs_and_a_broken_one_is_one_line(
    cli: CommandLine, third_party: None
) -> None:
    code, out, err = cli("--help")
    assert code == 0
    assert "Say hello." in out
    assert err == (
        "warning: plugin 'broken' of mtlcore-broken-verbs 1.0 adds no verbs: "
        "ImportError: no module foo\n"
    )
    assert cli("hello")[:2] == (0, "hello from the plugin\n")


def test_our_own_verbs_import_no_plugin(cli: CommandLine, third_party: None) -> None:
    for args in (["--version"], ["ops"], ["env"], ["train", "--help"]):
        assert cli(*args)[0] == 0
    assert "good_verbs" not in sys.modules


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MTLCORE_DISABLE_PLUGINS", "good"),
        ("MTLCORE_LOAD_PLUGINS", ""),
        ("MTLCORE_NO_PLUGINS", "1"),
    ],
)
def test_blocked_plugins_add_no_verbs(
    variable: str,
    value: str,
    cli: CommandLine,
    third_party: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(variable, value)
    assert cli("hello")[0] == 2
    assert "good_verbs" not in sys.modules
