"""Bad input: exit code 2, one message with place and fix, and nothing written or overwritten."""

from __future__ import annotations

import codecs
import errno
import gzip
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pyarrow
import pyarrow.parquet
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


def content(name: str, data: bytes) -> Damage:
    """Write the train rows of `spelling` into another file."""

    def damage(folder: Path) -> None:
        (folder / name).write_bytes(data)
        recipe("train: spelling.train.jsonl", f"train: {name}")(folder)

    return damage


def instead_of(name: str, make: Callable[[Path], object]) -> Damage:
    """Something else in the place of a file."""
    return lambda folder: ((folder / name).unlink(), make(folder / name))


def added(text: str) -> Damage:
    """Lines at the end of the recipe."""

    def damage(folder: Path) -> None:
        path = folder / "recipe.yaml"
        path.write_text(path.read_text() + text)

    return damage


def parquet(**columns: list[object]) -> bytes:
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), stream)
    return stream.getvalue()


def no_file(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def empty_folder(name: str) -> Damage:
    return lambda folder: (folder / name).mkdir()


def both(first: Damage, second: Damage) -> Damage:
    return lambda folder: (first(folder), second(folder))


ROW = '{"text": "a", "corrected": "b"}\n'
MEND = ["fix: mend these rows"]
# what is wrong with row 3 of spelling, the row, what the message says
BAD_ROWS: list[tuple[str, str, list[str]]] = [
    ("an empty target", '{"text": "helo", "corrected": ""}', ["the target is empty"]),
    ("a null target", '{"text": "helo", "corrected": null}', ["must be a text, found null"]),
    ("numbers", '{"text": "helo", "corrected": 3.5}', ["must be a text, found the number 3.5"]),
    ("no object", "[1]", ["a JSON object is expected, found a list"]),
    (
        "a NUL byte",
        '{"text": "a\0b", "corrected": "x"}',
        ["broken JSON: Invalid control character"],
    ),
    ("a NUL", '{"text": "a\\u0000b", "corrected": "x"}', ["template holds a NUL character at 10"]),
    ("half a pair", '{"text": "\\ud800", "corrected": "x"}', ["not valid Unicode", "half a pair"]),
    ("a huge integer", f'{{"text": "a", "corrected": {"9" * 5000}}}', ["unreadable JSON: Exceeds"]),
    (
        "deep nesting",
        f'{{"text": "a", "corrected": {"[" * 200}{"]" * 200}}}',
        ["more than 100 levels"],
    ),
    ("very deep nesting", f'{{"text": {"[" * 99999}', ["unreadable JSON|broken JSON"]),
]
# what a template does, its source, what the message says
TEMPLATES: list[tuple[str, str, list[str]]] = [
    (
        "internals of Python",
        "{{ ''.__class__.__mro__ }}",
        ["the sandbox refuses", "fix: use the row"],
    ),
    ("a long loop", "{% for i in range(10**9) %}x{% endfor %}", ["fix: use smaller numbers"]),
    (
        "a huge text",
        "{{ 'a' * 10**10 }}",
        ["the sandbox refuses", "more than 1000000 characters", "fix: use smaller numbers"],
    ),
    (
        "a text that grows",
        "{{ ('a' * 1000) | replace('a', 'b' * 1000000) | length }}",
        ["the sandbox refuses", "more than 1000000 characters", "fix: use smaller numbers or"],
    ),
    ("a huge number", "{{ 9 ** (9 ** 9) }}", ["the sandbox refuses", "more than 1000000 bits"]),
    ("a huge width", "{{ '%9999999999d' % 3 }}", ["the sandbox refuses", "more than 6 digits"]),
    ("a huge field", "{{ '{:>9999999999}'.format(3) }}", ["more than 6 digits"]),
    ("a wide filter", "{{ 'a' | center(10**10) }}", ["the sandbox refuses"]),
    ("a wide method", "{{ 'a'.ljust(10**10) }}", ["the sandbox refuses"]),
    ("an include", "{% include '/etc/passwd' %}", ["{% include %} reads another template"]),
    ("an import", "{% from 'os' import path %}", ["{% from %} reads another template"]),
    ("recursion", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", ["never ends", "fix: "]),
    ("many brackets", "{{ " + "(" * 3000 + "word" + ")" * 3000 + " }}", ["nested too deeply"]),
]

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
        [
            "FOLDER/recipe.yaml:22, tasks.definitions.format.template: ",
            "`template` fits no row of FOLDER/definitions.train.jsonl (12 rows), the first: ",
            "definitions.train.jsonl:1: template: 'wrod' is undefined; did you mean 'word'? "
            "columns: id, word, ",
            "fix: mend tasks.definitions.format.template, or the rows",
        ],
    ),
    (
        "labels that no row has",
        recipe("[negative, positive]", "[Negative, Positive]"),
        [
            "FOLDER/recipe.yaml:7, tasks.sentiment.format.labels: ",
            "`labels` fits no row of FOLDER/sentiment.train.jsonl (40 rows), the first: ",
            "sentiment.train.jsonl:1: label ",
        ],
    ),
    *(
        (what, row("spelling.train.jsonl", 3, text), ["spelling.train.jsonl:3: ", *says, *MEND])
        for what, text, says in BAD_ROWS
    ),
    (
        "NaN as a label",
        row("sentiment.train.jsonl", 3, '{"text": "so so", "label": NaN}'),
        ["sentiment.train.jsonl:3: ", "the number nan", *MEND],
    ),
    (
        "NaN as a text",
        row("sentiment.train.jsonl", 3, '{"text": NaN, "label": "negative"}'),
        ["sentiment.train.jsonl:3: ", "prints nan, which is no number", *MEND],
    ),
    (
        "latin-1",
        lambda folder: (folder / "spelling.train.jsonl").write_bytes(b'{"text": "caf\xe9"}\n'),
        ["spelling.train.jsonl:1: not UTF-8 (byte 0xe9); save the file as UTF-8", *MEND],
    ),
    (
        "gz cut short",
        content("a.jsonl.gz", gzip.compress(ROW.encode() * 1000)[:-10]),
        ["tasks.spelling.train: FOLDER/a.jsonl.gz is cut short", "fix: copy or download"],
    ),
    (
        "gz that fills the memory",
        content("a.jsonl.gz", gzip.compress(bytes(2**26 + 2), 9)),
        ["FOLDER/a.jsonl.gz unpacks to more than 200 times its size", "fix: if you trust it"],
    ),
    (
        "CSV with a missing quote",
        content("a.csv", b'text,corrected\na,b\n"c,d\ne,f\n'),
        ["tasks.spelling.train: FOLDER/a.csv:3: broken row", "fix: mend the file"],
    ),
    (
        "parquet cut short",
        content("a.parquet", parquet(text=["a"], corrected=["b"])[:-20]),
        ["tasks.spelling.train: FOLDER/a.parquet: not a whole parquet file", "fix: mend the file"],
    ),
    (
        "NaN in parquet",
        content("a.parquet", parquet(text=["a", "b"], corrected=[1.0, float("nan")])),
        ["FOLDER/a.parquet, row 1: ", "must be a text, found the number nan", *MEND],
    ),
    (
        "a folder as a file",
        instead_of("spelling.train.jsonl", Path.mkdir),
        ["spelling.train.jsonl is a folder, but not one written by save_to_disk", "fix: "],
    ),
    (
        "an empty folder",
        both(empty_folder("rows"), recipe("train: spelling.train.jsonl", "train: rows")),
        ["tasks.spelling.train: FOLDER/rows is a folder", "fix: name its files in data_files"],
    ),
    (
        "a pipe",
        instead_of("spelling.train.jsonl", os.mkfifo),
        ["tasks.spelling.train: ", "spelling.train.jsonl is no file with an end", "fix: write"],
    ),
    (
        "a link to nowhere",
        instead_of("spelling.train.jsonl", lambda path: path.symlink_to("gone.jsonl")),
        ["tasks.spelling.train: no such file", "fix: it is a link to gone.jsonl"],
    ),
    *(
        (
            f"data_files {name}",
            recipe("train: spelling.train.jsonl", f"train: {{path: ., data_files: '{name}'}}"),
            ["tasks.spelling.train.data_files: ", says],
        )
        for name, says in (
            ("/etc/passwd", "'/etc/passwd' is not inside the folder"),
            ("../*.jsonl", "'../*.jsonl' is not inside the folder"),
            ("**x*", "'**x*' is no pattern"),
        )
    ),
    *(
        (
            f"a template with {what}",
            recipe("Define {{ word }}:", source),
            ["recipe.yaml:22, tasks.definitions.format", *says],
        )
        for what, source, says in TEMPLATES
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
        "a weighting spelt as in its paper",
        recipe("weighting: pcgrad", "weighting: Nash-MTL"),
        ["recipe.yaml:29, weighting: weighting 'Nash-MTL' is not known", "mean 'nash_mtl'?"],
    ),
    (
        "a file for the weights of the tasks",
        recipe("weighting: pcgrad", "weighting: {name: fixed, weights: weights.json}"),
        [
            "weighting.weights must be a mapping of keys to values, found 'weights.json'",
            "fix: give a mapping of keys to values",
        ],
    ),
    (
        "fixed weights that are not given",
        recipe("weighting: pcgrad", "weighting: fixed"),
        [
            "FOLDER/recipe.yaml:29, weighting: weighting.weights is required by 'fixed'",
            "fix: add weights: {NAME: VALUE, ...}",
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
        ["sampling.temperature must be greater than 0, found -2", "fix: give a number greater"],
    ),
    (
        "an option out of range",
        recipe("lora_dropout: 0.1", "lora_dropout: 1.5"),
        [
            "FOLDER/recipe.yaml:27, lora.lora_dropout: should be less than 1, found 1.5",
            "fix: give a number less",
        ],
    ),
    (
        "an option of a component without options",
        recipe("sampling: {name: temperature, temperature: 2.0}", "sampling: {name: equal, n: 1}"),
        ["FOLDER/recipe.yaml:30, sampling.n: 'equal' has no options", "fix: remove n"],
    ),
    (
        "a scope for a weighting that reads no gradients",
        recipe("weighting: pcgrad", "weighting: {name: famo, scope: factor}"),
        [
            "FOLDER/recipe.yaml:29, weighting.scope: weighting.scope is not an option of 'famo'",
            "(scope is an option of aligned_mtl, cagrad, config, db_mtl, dualproj, ",
        ],
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

NEVER_A_NAME = ["../x", "a/b", "/etc/passwd", "CON", "lpt1", ".", "", "-rf", "a\\n"]
BOMB = "x0: &x0 [y, y]\n" + "".join(
    f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
MERGE_BOMB = "x0: &x0 {y: 1}\n" + "".join(
    f"x{n}: &x{n} {{<<: [{', '.join([f'*x{n - 1}'] * 10)}]}}\n" for n in range(1, 12)
)

RECIPES += [
    *(
        (
            f"a task called {name}",
            recipe("  spelling:\n", f'  "{name}":\n'),
            [":9, tasks.", "fix: call it"],
        )
        for name in NEVER_A_NAME
    ),
    *(
        (
            f"a group called {name}",
            recipe("own: 2", f'own: 2, groups: {{"{name}": {{tasks: [spelling], r: 2}}}}'),
            [":28, sharing.groups.", "fix: call it"],
        )
        for name in NEVER_A_NAME
    ),
    (
        "a task with a very long name",
        recipe("  spelling:\n", f"  {'a' * 200}:\n"),
        ["at most 100 characters, found 200", "fix: give it a shorter one"],
    ),
    (
        "tasks that differ by case",
        recipe("  spelling:\n", "  Sentiment:\n"),
        [":9, tasks.Sentiment: 'sentiment' and 'Sentiment' differ by case only", "fix: rename one"],
    ),
    (
        "a task twice",
        recipe("  spelling:\n", "  sentiment:\n"),
        [":9, tasks.sentiment: stands here twice: in lines 3 and 9", "fix: keep one"],
    ),
    *(
        (
            f"a weight of {weight[:30]} {len(weight)}",
            recipe("weight: 2.0", f"weight: {weight}"),
            [":17, tasks.spelling.loss_weight: ", says],
        )
        for weight, says in (
            ("-1", "should be greater than 0, found -1\n  fix: give a number greater than 0"),
            (".nan", "should be a finite number, found nan"),
            ("1e999", "should be a finite number, found inf"),
            ("'1,5'", "should be a number, found '1,5'"),
            ("[1]", "should be a number, found [1]\n  fix: give a number"),
            ("!!int x", "is no value of the YAML type 'int'"),
            ("!!python/name:os.system", "the YAML tag 'python/name:os.system' is not known"),
            ("!!python/object/apply:os.system [id]", "should be a number"),
            ("9" * 5000, "is no value of the YAML type 'int'"),
            ("9" * 400, "is too large a whole number"),
        )
    ),
    (
        "a plugin that is not there",
        added("plugins: [./mine.py]\n"),
        [
            ":41, plugins[0]: no such file: ./mine.py",
            "fix: put it into FOLDER, or name one that is there",
        ],
    ),
    (
        "a plugin that is no Python",
        both(file("mine.py", "def ("), added("plugins: [mine.py]\n")),
        [
            ":41, plugins.load[0]: plugin local file FOLDER/mine.py could not be loaded: Syntax",
            "fix: mend",
        ],
    ),
    (
        "aliases that multiply",
        added(BOMB),
        ["recipe.yaml:", "more than 100000 values", "fix: take the aliases"],
    ),
    (
        "merges that multiply",
        added(MERGE_BOMB),
        ["more than 100000 values", "fix: take the aliases"],
    ),
    (
        "an alias of itself",
        added("monitoring: &x [*x]\n"),
        [":41, monitoring[0]: this anchor contains itself"],
    ),
    (
        "deep YAML",
        added(f"monitoring: {'[' * 99}{']' * 99}\n"),
        ["more than 50 levels deep", "fix: flatten"],
    ),
    ("very deep YAML", added(f"x: {'[' * 3000}\n"), ["recipe.yaml: is nested too deeply", "fix: "]),
    ("a NUL in YAML", added("x: a\0b\n"), [":41: is no valid YAML: the character U+0000", "fix: "]),
    (
        "an escaped NUL",
        recipe("/run\n", '/run\n  run_name: "a\\0b"\n'),
        ["training.run_name: holds a NUL"],
    ),
    (
        "a surrogate",
        recipe("{completion: ", '{completion: "\\ud800", x: '),
        ["half a surrogate pair"],
    ),
    (
        "binary",
        lambda folder: (folder / "recipe.yaml").write_bytes(bytes(range(256))),
        ["is not UTF-8 text"],
    ),
    ("a huge recipe", added("#" * 2**20), ["recipe.yaml: is larger than 1048576 bytes", "fix: "]),
    (
        "a folder as a recipe",
        instead_of("recipe.yaml", Path.mkdir),
        ["recipe.yaml: cannot be read", "fix: "],
    ),
    (
        "extends without end",
        added("extends: recipe.yaml\n"),
        [":41, extends: goes in a circle", "fix: "],
    ),
    (
        "extends of nothing",
        added("extends: base.yaml\n"),
        [":41, extends: no such file", "fix: "],
    ),
    (
        "a very long path",
        recipe("train: spelling", f"train: {'a' * 300}"),
        [":10, tasks.spelling.train: cannot be read: File name too long"],
    ),
    (
        "a very long folder",
        recipe("/run\n", f"/{'a' * 300}\n"),
        [":33, training.output_dir: ", "name too long", "fix: choose"],
    ),
    (
        "control characters",
        recipe("weighting: pcgrad", 'weighting: "\\e[2J"'),
        ["weighting '\\x1b[2J' is not known"],
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
        [
            "FOLDER/recipe.yaml:1, model",
            "no such file: ./models/tiny",
            "fix: there is no folder",
            "name a path",
        ],
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
        assert any(p.replace("FOLDER", str(folder)) in message for p in part.split("|"))


@pytest.mark.parametrize(
    "damage",
    [pytest.param(damage, id=what.replace(" ", "_")) for what, damage, _ in (*DATA, *RECIPES)],
)
def test_check_refuses(damage: Damage, cli: CommandLine, folder: Path) -> None:
    damage(folder)
    before = contents(folder)
    code, out, err = cli("check", folder / "recipe.yaml")
    assert code == 2
    assert "error: " in out + err
    assert "recipe.yaml" in out + err
    assert "Traceback" not in out + err
    assert contents(folder) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["recipe.yaml", "spelling.train.jsonl"])
def test_a_file_that_may_not_be_read(name: str, cli: CommandLine, folder: Path) -> None:
    (folder / name).chmod(0)
    code, _, err = cli("train", folder / "recipe.yaml")
    assert code == 2
    assert name in err
    assert "Permission denied" in err


@pytest.mark.slow  # half a minute in the tokenizer
def test_a_row_of_ten_megabytes_is_cut_or_dropped(cli: CommandLine, folder: Path) -> None:
    long = f'{{"text": "{"helo " * 2_000_000}", "corrected": "hello"}}'
    row("spelling.train.jsonl", 3, long)(folder)
    code, out, _ = cli("check", folder / "recipe.yaml")
    assert code == 0
    assert "1 row over training.max_length (96 tokens): 1 cut" in out


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


def raising(error: Exception) -> Callable[..., NoReturn]:
    def raises(*_: object, **__: object) -> NoReturn:
        raise error

    return raises


# -- runs --------------------------------------------------------------------------------------


def test_a_run_is_not_overwritten(cli: CommandLine, folder: Path, tiny_run: Path) -> None:
    shutil.copytree(tiny_run, folder / "run")
    message = assert_refused(cli, ["train", folder / "recipe.yaml"], folder)
    assert f"training.output_dir: {folder}/run already holds a run" in message
    assert "fix: go on with --resume" in message


@pytest.mark.parametrize("verb", ["check", "train"])
def test_a_folder_that_cannot_be_made_is_told_before_a_row_is_read(
    verb: str, cli: CommandLine, folder: Path, tmp_path: Path
) -> None:
    place = tmp_path / "locked"
    place.mkdir()
    full = OSError(errno.EROFS, "Read-only file system")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtlcore.run_folder.tempfile.TemporaryDirectory", raising(full))
        code, out, err = cli(verb, folder / "recipe.yaml", f"training.output_dir={place}/a/b")
    assert code == 2
    said = " ".join((out + err).split())
    assert f"the folder {place}/a/b cannot be made: Read-only file system" in said
    assert "fix: make the disk writable, or choose a training.output_dir on another one" in said
    assert "--resume" not in said
    assert not [*place.iterdir()]


def test_check_tells_that_a_run_is_in_the_way(
    cli: CommandLine, folder: Path, tiny_run: Path
) -> None:
    shutil.copytree(tiny_run, folder / "run")
    code, out, _ = cli("check", folder / "recipe.yaml")
    assert code == 0
    assert f"{folder}/run already holds a run: `mtlcore train` will refuse it" in out
    assert "fix: go on with --resume, choose another training.output_dir" in out


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
    assert message == "error: the recipe has no task 'speling'\n  fix: did you mean 'spelling'?\n"


def test_a_damaged_checkpoint_is_named(
    cli: CommandLine, folder: Path, tiny_run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    last = run / "checkpoints" / "step-000006"
    (last / "adapters.safetensors").write_bytes(b"cut")
    message = assert_refused(cli, ["evaluate", run], run)
    assert message.startswith(f"error: {last}: adapters.safetensors has 3 bytes, ")
    assert "fix: copy it anew, or name another one (evaluate: --step N, " in message
    assert cli("evaluate", run, "--step", 4, "--task", "spelling")[0] == 0
    assert json.loads((run / "predictions/test/scores.json").read_text())["step"] == 4


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
