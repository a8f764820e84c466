"""Bad input: exit code 2, one message with place and fix, and nothing written or overwritten."""

from __future__ import annotations

import codecs
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command_line import CommandLine, contents
from tests.recipes import write_tiny_recipe

Damage = Callable[[Path], object]
BAD_SPELLING = '{"text": "helo", "corrected": 3}'


@pytest.fixture
def cli(run_cli: CommandLine) -> CommandLine:
    return run_cli


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A folder with a recipe that could be trained, and its data."""
    write_tiny_recipe(tmp_path, tiny_model)
    return tmp_path


def assert_refused(cli: CommandLine, args: list[object], untouched: Path) -> str:
    """Run a command that must be refused; returns its one message."""
    before = contents(untouched)
    code, out, err = cli(*args)
    assert (code, out) == (2, ""), err
    assert contents(untouched) == before
    first, *others = err.splitlines()
    assert first.startswith("error: ")
    assert all(line.startswith("  ") for line in others)  # bad rows, and the fix
    return err


# -- ways to spoil a folder --------------------------------------------------------------------


def recipe(old: str, new: str) -> Damage:
    """Replace a part of the recipe."""

    def damage(folder: Path) -> None:
        path = folder / "recipe.yaml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return damage


def model(value: str) -> Damage:
    """Another model."""

    def damage(folder: Path) -> None:
        path = folder / "recipe.yaml"
        path.write_text(f"model: {value}\n" + path.read_text().partition("\n")[2])

    return damage


def row(name: str, number: int, text: str) -> Damage:
    """Replace one line of a data file (from 1)."""

    def damage(folder: Path) -> None:
        lines = (folder / name).read_text().splitlines()
        lines[number - 1] = text
        (folder / name).write_text("\n".join(lines) + "\n")

    return damage


def file(name: str, text: str) -> Damage:
    """Write a whole file."""
    return lambda folder: (folder / name).write_text(text)


def no_file(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def empty_folder(name: str) -> Damage:
    return lambda folder: (folder / name).mkdir()


def both(first: Damage, second: Damage) -> Damage:
    return lambda folder: (first(folder), second(folder))


# each: what is wrong, how it comes about, what the message says; FOLDER stands for the folder
DATA: list[tuple[str, Damage, list[str]]] = [
    (
        "a missing file",
        no_file("sentiment.train.jsonl"),
        ["FOLDER/recipe.yaml:4, tasks.sentiment.train", "no such file", "fix: did you mean"],
    ),
    (
        "a wrong column",
        recipe("completion: corrected", "completion: corected"),
        [
            "tasks.spelling.columns: ",
            "FOLDER/spelling.train.jsonl has no column 'corected'",
            "fix: did you mean 'corrected'? If so, write "
            "tasks.spelling.columns: {completion: corrected}",
        ],
    ),
    (
        "a column without its mapping",
        recipe("    columns: {completion: corrected}\n", ""),
        [
            "tasks.spelling.train: ",
            "has no column 'completion'",
            "columns found: id, text, corrected",
            "fix: write tasks.spelling.columns: {completion: <column of the file>}",
        ],
    ),
    (
        "a wrong type in a column",
        row("spelling.train.jsonl", 3, BAD_SPELLING),
        [
            "tasks.spelling.train: ",
            "FOLDER/spelling.train.jsonl:3: column 'corrected' (the completion) must be a text, "
            "found the number 3",
            "fix: mend these rows, or set tasks.spelling.on_bad_row",
        ],
    ),
    (
        "a label outside the set",
        row("sentiment.train.jsonl", 4, '{"text": "so so", "label": "negativ"}'),
        [
            "tasks.sentiment.train: ",
            "FOLDER/sentiment.train.jsonl:4: label 'negativ' is not in the set: "
            "'negative', 'positive'; did you mean 'negative'?",
            "fix: mend these rows",
        ],
    ),
    (
        "broken JSON",
        row("sentiment.train.jsonl", 5, '{"text": '),
        [
            "tasks.sentiment.train: ",
            "FOLDER/sentiment.train.jsonl:5: broken JSON: Expecting value (column 10)",
            "fix: mend these rows",
        ],
    ),
    (
        "UTF-16",
        lambda folder: (folder / "spelling.train.jsonl").write_text("{}\n", encoding="utf-16"),
        ["tasks.spelling.train: FOLDER/spelling.train.jsonl:1: ", "save it as UTF-8"],
    ),
    (
        "an empty file",
        file("spelling.train.jsonl", ""),
        [
            "tasks.spelling.train: ",
            "FOLDER/spelling.train.jsonl has no usable row: it is empty",
            "fix: name a file that has rows",
        ],
    ),
    (
        "rows that are all bad",
        both(
            file("spelling.train.jsonl", f"{BAD_SPELLING}\n" * 3),
            recipe("    loss_weight: 2.0", "    on_bad_row: skip"),
        ),
        [
            "tasks.spelling.train: ",
            "has no usable row: 3 are bad, the first: FOLDER/spelling.train.jsonl:1: column",
            "fix: mend the bad rows",
        ],
    ),
    (
        "rows that are all too long",
        recipe("max_length: 96", "max_length: 5"),
        [
            "tasks.spelling.train: ",
            "has no usable row: 24 are longer than training.max_length (5)",
            "fix: raise training.max_length",
        ],
    ),
    (
        "a template with an unknown column",
        recipe("{{ word }}", "{{ wrod }}"),
        ["tasks.definitions.train: ", "'wrod' is undefined; did you mean 'word'?"],
    ),
]

RECIPES: list[tuple[str, Damage, list[str]]] = [
    (
        "an unknown key",
        recipe("  max_steps", "  max_stepps"),
        ["FOLDER/recipe.yaml:34, training.max_stepps: unknown key", "did you mean 'max_steps'?"],
    ),
    (
        "an unknown weighting",
        recipe("weighting: pcgrad", "weighting: pcgradd"),
        [
            "recipe.yaml:29, weighting: weighting 'pcgradd' is not known",
            "mean 'pcgrad'?",
        ],
    ),
    (
        "an unknown option of a weighting",
        recipe("weighting: pcgrad", "weighting: {name: pcgrad, scop: model}"),
        ["weighting.scop is not an option of 'pcgrad'", "fix: did you mean 'scope'?"],
    ),
    (
        "an unknown metric",
        recipe("exact_match", "exact_mach"),
        ["tasks.spelling.metrics[0]: ", "fix: did you mean 'exact_match'?"],
    ),
    (
        "an option of a component out of range",
        recipe("temperature: 2.0", "temperature: -2"),
        ["sampling.temperature must be greater than 0, found -2"],
    ),
    (
        "an option out of range",
        recipe("lora_dropout: 0.1", "lora_dropout: 1.5"),
        ["FOLDER/recipe.yaml:27, lora.lora_dropout: should be less than 1, found 1.5"],
    ),
    (
        "load_in_4bit",
        recipe("training:", "load_in_4bit: true\ntraining:"),
        ["FOLDER/recipe.yaml:32, load_in_4bit: ", "not supported yet", "dtype: bfloat16"],
    ),
    (
        "broken YAML",
        recipe("weighting: pcgrad", "weighting: {pcgrad"),
        ["FOLDER/recipe.yaml:29: is no valid YAML", "fix: close the bracket"],
    ),
    ("nothing in it", file("recipe.yaml", ""), ["FOLDER/recipe.yaml: the file is empty", "fix: "]),
    ("no recipe", no_file("recipe.yaml"), ["FOLDER/recipe.yaml: no such file"]),
    (
        "a file as output_dir",
        file("run", "mine"),
        [
            "FOLDER/recipe.yaml:33, training.output_dir: ",
            "FOLDER/run is a file",
            "fix: choose another folder",
        ],
    ),
    (
        "an output_dir below a file",
        both(recipe("/run\n", "/notes/run\n"), file("notes", "mine")),
        ["training.output_dir: ", "FOLDER/notes is a file", "fix: choose another folder"],
    ),
]

MODELS: list[tuple[str, Damage, list[str]]] = [
    (
        "no such layer",
        recipe("{r: 4,", "{r: 4, target_modules: [q_prj],"),
        ["lora.target_modules: the model has no linear layer 'q_prj'", "did you mean 'q_proj'?"],
    ),
    (
        "no layer that matches",
        recipe("{r: 4,", "{r: 4, target_modules: 'attn.*',"),
        ["lora.target_modules: ", "matches 'attn.*'", "fix: its linear layers are", "q_proj"],
    ),
    (
        "no such folder",
        model("./models/tiny"),
        ["FOLDER/recipe.yaml:1, model", "no such file: ./models/tiny", "fix: there is no folder"],
    ),
    (
        "an empty folder",
        both(empty_folder("empty"), model("./empty")),
        ["recipe.yaml:1, model: FOLDER/empty holds no model", "fix: give a folder made by"],
    ),
    (
        "an unknown name",
        model("nobody/nothing"),
        ["recipe.yaml:1, model: cannot load", "'nobody/nothing'", "fix: give a folder made by"],
    ),
]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        pytest.param(damage, says, id=f"{group}-{what}".replace(" ", "_"))
        for group, cases in (("data", DATA), ("recipe", RECIPES), ("model", MODELS))
        for what, damage, says in cases
    ],
)
def test_train_refuses(damage: Damage, says: list[str], cli: CommandLine, folder: Path) -> None:
    damage(folder)
    message = assert_refused(cli, ["train", folder / "recipe.yaml"], folder)
    for part in says:
        assert part.replace("FOLDER", str(folder)) in message


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.sed=1", ["command line, training.sed: unknown key", "did you mean 'seed'?"]),
        ("tasks.speling.loss_weight=1", ["the recipe has no task 'speling'", "mean 'spelling'?"]),
        ("max_steps", ["command line, max_steps: is no `key=value`", "training.max_steps=100"]),
    ],
)
def test_train_refuses_an_override(
    override: str, says: list[str], cli: CommandLine, folder: Path
) -> None:
    message = assert_refused(cli, ["train", folder / "recipe.yaml", override], folder)
    for part in says:
        assert part in message


def test_a_bom_and_windows_line_ends_are_fine(cli: CommandLine, folder: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(codecs.BOM_UTF8 + path.read_bytes().replace(b"\n", b"\r\n"))
    code, out, _ = cli("train", folder / "recipe.yaml", "training.max_steps=1")
    assert code == 0
    assert "spelling: train 24 rows; eval 6 rows; test 6 rows" in out


# -- runs --------------------------------------------------------------------------------------


def test_a_run_is_not_overwritten(cli: CommandLine, folder: Path, tiny_run: Path) -> None:
    shutil.copytree(tiny_run, folder / "run")
    message = assert_refused(cli, ["train", folder / "recipe.yaml"], folder)
    assert f"training.output_dir: {folder}/run already holds a run" in message
    assert "fix: go on with --resume" in message


def test_a_path_to_resume_from_must_be_a_checkpoint(cli: CommandLine, folder: Path) -> None:
    message = assert_refused(cli, ["train", folder / "recipe.yaml", "--resume", folder], folder)
    assert f"{folder} is no checkpoint" in message
    assert "fix: give a folder like runs/x/checkpoints/step-000200" in message


@pytest.mark.parametrize("verb", ["evaluate", "generate", "export"])
def test_a_folder_that_is_no_run_is_refused(verb: str, cli: CommandLine, folder: Path) -> None:
    prompt = ["Define horse:"] if verb == "generate" else []
    cases = {
        folder / "nowhere": "holds no run",
        folder / "recipe.yaml": "holds no run",
        folder: "has no checkpoint",  # a recipe beside its data
    }
    for place, what in cases.items():
        message = assert_refused(cli, [verb, place, *prompt], folder)
        assert f"error: {place} {what}\n  fix: " in message


@pytest.mark.parametrize("verb", ["evaluate", "generate", "export"])
def test_an_unknown_task_of_a_run_is_refused(verb: str, cli: CommandLine, tiny_run: Path) -> None:
    prompt = ["Define horse:"] if verb == "generate" else []
    message = assert_refused(cli, [verb, tiny_run, "--task", "speling", *prompt], tiny_run)
    assert message == "error: unknown task 'speling'\n  fix: did you mean 'spelling'?\n"


def test_a_damaged_checkpoint_is_named(
    cli: CommandLine, folder: Path, tiny_run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    last = run / "checkpoints" / "step-000006"
    (last / "adapters.safetensors").write_bytes(b"cut")
    message = assert_refused(cli, ["evaluate", run], run)
    assert message.startswith(f"error: {last}: adapters.safetensors has 3 bytes, ")
    assert "fix: choose another checkpoint" in message


def test_a_process_says_the_same(folder: Path) -> None:
    """Once as users do it: nothing else on the real stderr, such as what libraries write."""
    row("spelling.train.jsonl", 3, BAD_SPELLING)(folder)
    before = contents(folder)
    command = [sys.executable, "-m", "mtlcore.cli", "train", "recipe.yaml"]
    environ = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environ)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: recipe.yaml:10, tasks.spelling.train: task 'spelling' has bad rows:\n"
        f"  {folder}/spelling.train.jsonl:3: column 'corrected' (the completion) must be a text, "
        "found the number 3\n"
        "  fix: mend these rows, or set tasks.spelling.on_bad_row to skip or warn\n"
    )
    assert contents(folder) == before
