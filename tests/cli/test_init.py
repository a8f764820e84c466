"""`mtlcore init`: a recipe for files that nobody described, which checks and trains as written."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import mtlcore
from mtlcore.components import Format
from mtlcore.data.example import Example
from mtlcore.data.guessing import ABOUT_ROWS, plain_name
from mtlcore.init.files import SPLIT_WORDS, tasks_of_files
from mtlcore.init.write import init
from mtlcore.recipe import Recipe
from mtlcore.recipe_file import read_recipe
from mtlcore.recipe_yaml import parse_value
from mtlcore.testing import plugin_manager
from mtlcore.yaml_text import yaml_value
from tests.command_line import CommandLine, contents
from tests.helpers import CHAT_TEMPLATE, write_jsonl

Rows = list[dict[str, Any]]
WORDS = ("house", "garden", "bridge", "river", "forest", "island", "market", "castle")


def rows_of(make: Callable[[int, str], dict[str, Any]], count: int = 32) -> Rows:
    """Rows that differ: the number of the row, and a text with it."""
    return [make(i, f"the {WORDS[i % 8]} number {i} is nice") for i in range(count)]


KINDS: dict[str, tuple[Rows, str, dict[str, Any], dict[str, str]]] = {
    "text and label": (
        rows_of(lambda i, text: {"text": text, "label": "yes" if i % 2 else "no"}),
        "classification",
        {"labels": ["no", "yes"]},
        {},
    ),
    "labels of another name": (
        rows_of(lambda i, text: {"id": f"r{i}", "review": text, "mood": i % 3}),
        "classification",
        {"labels": ["0", "1", "2"]},
        {"text": "review", "label": "mood"},
    ),
    "two texts and label": (
        rows_of(lambda i, text: {"premise": text, "hypothesis": text[4:], "label": i % 2}),
        "classification",
        {
            "labels": ["0", "1"],
            "template": "Premise: {{ premise }}\nHypothesis: {{ hypothesis }}\nLabel:",
        },
        {},
    ),
    "prompt and completion": (
        rows_of(lambda i, text: {"prompt": text, "completion": text[::-1]}),
        "prompt_completion",
        {},
        {},
    ),
    "question, context and answer": (
        rows_of(lambda i, text: {"context": text, "question": text[4:], "answer": f"{i} or so"}),
        "prompt_completion",
        {"template": "Context: {{ context }}\nQuestion: {{ question }}\nAnswer:"},
        {"completion": "answer"},
    ),
    "instruction with some inputs": (
        rows_of(
            lambda i, text: (
                {"instruction": text, "output": f"{i}"}
                | ({"input": text[4:]} if i % 3 == 0 else {})
            )
        ),
        "prompt_completion",
        {"template": "{{ instruction }}\n{% if row.get('input') %}{{ input }}\n{% endif %}Output:"},
        {"completion": "output"},
    ),
    "two languages": (
        rows_of(lambda i, text: {"en": text, "fr": text[::-1]}),
        "prompt_completion",
        {"template": "Translate to French: {{ en }}\nFrench:"},
        {"completion": "fr"},
    ),
    "two texts": (
        rows_of(lambda i, text: {"erstens": text, "zweitens": text[::-1]}),
        "prompt_completion",
        {},
        {"prompt": "erstens", "completion": "zweitens"},
    ),
    "an object of two languages": (
        rows_of(lambda i, text: {"translation": {"de": text, "en": text[::-1]}}),
        "prompt_completion",
        {
            "template": "Translate to English: {{ row['translation']['de'] }}\nEnglish:",
            "completion_template": "{{ row['translation']['en'] }}",
        },
        {},
    ),
    "answers of a reading test": (
        rows_of(
            lambda i, text: {
                "id": f"{i}",
                "context": text,
                "question": text[4:],
                "answers": {"text": [f"{i}", "no"], "answer_start": [i, 0]},
            }
        ),
        "prompt_completion",
        {
            "template": "Context: {{ context }}\nQuestion: {{ question }}\nAnswer:",
            "completion_template": "{{ row['answers']['text'][0] }}",
        },
        {},
    ),
    "choices in a list": (
        rows_of(lambda i, text: {"question": text, "choices": ["a b", "c"], "answer": i % 2}),
        "multiple_choice",
        {},
        {"label": "answer", "options": "choices", "prompt": "question"},
    ),
    "choices in columns": (
        rows_of(lambda i, text: {"goal": text, "sol1": text[4:], "sol2": text[8:], "label": i % 2}),
        "multiple_choice",
        {"options": ["sol1", "sol2"]},
        {"prompt": "goal"},
    ),
    "messages": (
        rows_of(
            lambda i, text: {
                "conversation": [
                    {"role": "user", "content": text},
                    {"role": "assistant", "content": f"{i}"},
                ]
            }
        ),
        "messages",
        {},
        {"messages": "conversation"},
    ),
    "text alone": (
        rows_of(lambda i, text: {"body": text, "url": f"page {i}"}),
        "text",
        {},
        {"text": "body"},
    ),
}


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a chat template."""
    folder = Path(shutil.copytree(tiny_model, tmp_path_factory.mktemp("chat") / "model"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One stands in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(path: Path | str = "recipe.yaml") -> Recipe:
    found = read_recipe(path)
    assert found.notes == []
    return found.recipe


# -- every kind of rows ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_guessed_checks_and_trains_as_written(
    cli: CommandLine, here: Path, model: Path, kind: str
) -> None:
    rows, name, options, columns = KINDS[kind]
    write_jsonl(here / "some rows.jsonl", rows)
    code, out, err = cli("init", "some rows.jsonl", "--model", model)
    assert (code, err) == (0, "")
    assert out.startswith(f"some_rows: {name}: ")
    recipe = written()
    assert (recipe.tasks.keys(), recipe.sharing) == ({"some_rows"}, None)
    task = recipe.tasks["some_rows"]
    assert (task.format.name, task.format.options, task.columns) == (name, options, columns)
    code, out, err = cli("check", "recipe.yaml")
    assert (code, err) == (0, ""), out
    run = mtlcore.train("recipe.yaml", ["training.max_steps=2", "training.eval_steps=2"])
    assert run.step == 2
    scores = run.evaluate("test", outputs=bool(task.metrics), max_rows=2)
    assert set(scores.by_task["some_rows"].metrics) == {metric.name for metric in task.metrics}


def test_several_tasks_share_an_adapter_and_the_small_ones_come_more_often(
    cli: CommandLine, here: Path, model: Path
) -> None:
    write_jsonl(here / "a.jsonl", KINDS["text alone"][0] * 12)
    write_jsonl(here / "b.jsonl", KINDS["two languages"][0])
    assert cli("init", "a.jsonl", "b.jsonl", "--model", model)[0] == 0
    recipe = written()
    assert [*recipe.tasks] == ["a", "b"]
    assert recipe.sharing is not None
    assert (recipe.sharing.shared, recipe.sharing.own) == (16, 8)
    assert recipe.sampling.name == "temperature"
    assert recipe.tasks["b"].metrics[0].name == "chrf"
    assert cli("check", "recipe.yaml")[0] == 0


def test_columns_of_a_csv_file_are_texts(cli: CommandLine, here: Path, model: Path) -> None:
    lines = [f'"so, the text {i}",{i % 2}' for i in range(30)]
    (here / "r.csv").write_text("\n".join(["text,stars", *lines]), encoding="utf-8")
    assert cli("init", "r.csv", "--model", model)[0] == 0
    assert written().tasks["r"].format.options == {"labels": ["0", "1"]}
    assert cli("check", "recipe.yaml")[0] == 0


def test_other_guesses_are_named_with_the_keys_that_make_them(
    cli: CommandLine, here: Path, model: Path
) -> None:
    write_jsonl(here / "r.jsonl", KINDS["labels of another name"][0])
    _, out, _ = cli("init", "r.jsonl", "--model", model)
    assert "r: classification: 'mood' has 3 values" in out
    assert "  or text: 'review' is the only column of texts" in out
    text = (here / "recipe.yaml").read_text(encoding="utf-8")
    assert "# or format: text, columns: {text: review}: " in text


def test_a_format_of_a_plugin_is_guessed_by_its_columns(here: Path) -> None:
    from mtlcore.init.guess import Guesser
    from mtlcore.init.write import _tokenizer
    from mtlcore_plugins.formats.text import Text

    class Pairs(Format):
        """Learn `there` after `here`."""

        name = "pairs"
        columns: ClassVar[dict[str, str]] = {"here": "a text", "there": "another"}

        def example(self, row: dict[str, Any], *, task: str, index: int, tokenizer: Any) -> Example:
            """The tokens of both."""
            return Text().example(
                {"text": row["here"] + row["there"]}, task=task, index=index, tokenizer=tokenizer
            )

    class Needy(Pairs):
        """The same with an option that nobody can guess."""

        name = "needy"

        def __init__(self, *, needed: str) -> None:
            self.needed = needed

    assert Needy.guess([{"here": "a", "there": "b"}]) is None
    assert Pairs.guess([{"here": "a"}]) is None
    write_jsonl(here / "r.jsonl", [{"here": "a", "there": "b"}] * 6)
    [files] = tasks_of_files([here / "r.jsonl"], [])
    found = Guesser(plugin_manager(Pairs, Needy), _tokenizer(None)).task(files)
    assert found.best is not None
    assert (found.best.format, len(found.best.lengths)) == ("pairs", 6)


def test_the_longest_row_sets_the_length_and_the_longest_answer_the_generation(
    cli: CommandLine, here: Path, model: Path
) -> None:
    write_jsonl(
        here / "r.jsonl",
        [{"prompt": "say " * 120, "completion": f"{'word ' * 9}{i}"} for i in range(8)],
    )
    assert cli("init", "r.jsonl", "--model", model)[0] == 0
    recipe = written()
    assert recipe.training.max_length >= 128
    shown = json.loads(cli("preview", "recipe.yaml", "--rows", 8, "--json")[1])["rows"]
    assert [row["cut"] for row in shown] == [0] * len(shown)
    assert recipe.tasks["r"].generation.max_new_tokens >= max(row["trained"] for row in shown)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 19, 20])
def test_few_rows_give_few_held_out_ones(
    cli: CommandLine, here: Path, model: Path, count: int
) -> None:
    write_jsonl(here / "r.jsonl", [{"text": f"row {i}"} for i in range(count)])
    assert cli("init", "r.jsonl", "--model", model)[0] == 0
    split = written().tasks["r"].split
    wanted = (0.0, 0.0) if count < 4 else (0.2, 0.0) if count < 20 else (0.1, 0.1)
    assert (split.eval, split.test) == wanted
    assert cli("check", "recipe.yaml")[0] == 0


# -- files -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "tasks"),
    [
        (["r_train.jsonl", "r_dev.jsonl", "r-test.jsonl"], {"r": "train eval test"}),
        (["train.r.jsonl", "r.valid.jsonl"], {"r": "train eval"}),
        (["r/train.jsonl", "r/val.jsonl", "q/train.jsonl"], {"r": "train eval", "q": "train"}),
        (["train/r.jsonl", "test/r.jsonl"], {"r": "train test"}),
        (["r.jsonl", "contest.jsonl", "test_r.jsonl"], {"r": "train test", "contest": "train"}),
        (["x/r.jsonl", "y/r.jsonl"], {"r": "train", "y_r": "train"}),
        (["shared.jsonl"], {"shared_task": "train"}),
        (["Größe & Maß!.jsonl"], {"Gr_e_Ma": "train"}),
    ],
)
def test_names_of_files_give_tasks_and_splits(
    here: Path, names: list[str], tasks: dict[str, str]
) -> None:
    for name in names:
        (here / name).parent.mkdir(exist_ok=True)
        write_jsonl(here / name, [{"text": name}])
    for paths in ([Path(name) for name in names], [here]):
        found = tasks_of_files(paths, [])
        assert {task.name: " ".join(task.sources) for task in found} == tasks


def test_files_in_parts_and_saved_folders_are_read(
    cli: CommandLine, here: Path, model: Path
) -> None:
    import datasets

    rows = KINDS["text and label"][0]
    for part in range(2):
        write_jsonl(here / f"train-{part:05d}-of-00002.jsonl", rows[part::2])
    data = datasets.Dataset.from_list(KINDS["text alone"][0])
    datasets.DatasetDict({"train": data, "validation": data.select(range(4))}).save_to_disk("both")
    data.save_to_disk("one")
    parts = sorted(here.glob("train-*"))
    assert cli("init", *parts, "both", "one", "--model", model)[0] == 0
    recipe = written()
    [first, *others] = recipe.tasks
    assert others == ["both", "one"]
    assert recipe.tasks[first].train.data_files == [part.name for part in parts]
    assert recipe.tasks["both"].eval is not None
    assert recipe.tasks["both"].eval.split == "validation"
    assert cli("check", "recipe.yaml")[0] == 0


def test_paths_are_those_of_the_recipe(cli: CommandLine, here: Path, model: Path) -> None:
    (here / "data").mkdir()
    shutil.copytree(model, here / "models" / "tiny")
    write_jsonl(here / "data" / "~r.jsonl", KINDS["text alone"][0])
    write_jsonl(here / "~q.jsonl", KINDS["text alone"][0])
    out = here / "recipes" / "mine.yaml"
    files = ["data/~r.jsonl", "~q.jsonl"]
    assert cli("init", *files, "--model", "models/tiny", "--out", "recipes/mine.yaml")[0] == 0
    text = out.read_text(encoding="utf-8")
    assert 'train: "../data/~r.jsonl"' in text
    assert 'name_or_path: "../models/tiny"' in text
    assert cli("check", "recipes/mine.yaml")[0] == 0
    assert cli("init", *files, "--model", "models/tiny", "--out", "here.yaml")[0] == 0
    assert cli("check", "here.yaml")[0] == 0


# -- odd names ---------------------------------------------------------------------------------

CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
NAMES = st.text(CHARACTERS, min_size=1, max_size=12)
ODD = [
    "a: b",
    "'q'",
    '"q"',
    "# x",
    "- x",
    "{x}",
    "yes",
    "null",
    "1",
    "1e3",
    "~",
    "\n",
    " x ",
    "é\u2028",
]


@given(NAMES, NAMES, NAMES)
@example("a: b # c", "it's {{ x }}", '"q": \\n')
@example("\u2028\x85", "\ufeffx", "\x7f\x00")
@example("-", "%} }}", "*a &b !c")
@example("true", "null", "0x1F")
@settings(max_examples=25)
def test_odd_names_of_files_and_columns_survive(
    model: Path, stem: str, first: str, second: str
) -> None:
    stem = stem.replace("/", "-").replace("\0", "-")
    assume(re.sub(r"[\W_]+", "", stem.casefold()) not in SPLIT_WORDS)
    assume(first != second and not {plain_name(first), plain_name(second)} & {*ABOUT_ROWS})
    here = Path.cwd()
    file = here / f"{stem}.jsonl"
    rows = [{first: f"what is {i}?", second: f"it is {i}"} for i in range(6)]
    write_jsonl(file, rows)
    [found] = init([file.name], model=str(model), force=True)
    recipe = written()
    [task] = recipe.tasks.values()
    assert Path(task.train.path) == file
    assert found.best is not None
    assert task.columns == found.best.guess.columns
    assert task.format.options == found.best.guess.options
    file.unlink()


@given(NAMES | st.lists(NAMES) | st.dictionaries(NAMES, NAMES | st.lists(NAMES)))
@example(ODD)
@example({odd: odd for odd in ODD})
def test_a_value_is_one_line_that_is_read_as_it_was(value: Any) -> None:
    text = yaml_value(value)
    assert len(text.splitlines()) == 1
    assert parse_value(f"{text}  # a comment", "here") == value


def test_data_does_not_control_the_terminal(cli: CommandLine, here: Path, model: Path) -> None:
    write_jsonl(here / "r\x1b[2J.jsonl", [{"te\x1bxt": f"a {i}"} for i in range(4)])
    code, out, err = cli("init", "r\x1b[2J.jsonl", "--model", model)
    assert code == 0
    assert "\x1b" not in out + err + (here / "recipe.yaml").read_text(encoding="utf-8")
    assert cli("check", "recipe.yaml")[0] == 0


# -- what is refused or told -------------------------------------------------------------------


def test_a_file_is_never_overwritten_without_force(
    cli: CommandLine, here: Path, model: Path
) -> None:
    write_jsonl(here / "r.jsonl", KINDS["text alone"][0])
    (here / "recipe.yaml").write_text("mine")
    before = contents(here)
    code, _, err = cli("init", "r.jsonl", "--model", model)
    assert (code, "recipe.yaml exists already" in err) == (2, True)
    assert contents(here) == before
    assert cli("init", "r.jsonl", "--model", model, "--force")[0] == 0
    assert [*written().tasks] == ["r"]


def test_a_full_disk_leaves_the_recipe_of_before(
    cli: CommandLine, here: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_jsonl(here / "r.jsonl", KINDS["text alone"][0])
    (here / "recipe.yaml").write_text("mine")
    before = contents(here)
    monkeypatch.setattr(os, "fsync", no_space)
    code, _, err = cli("init", "r.jsonl", "--model", model, "--force")
    assert (code, "No space left on device" in err) == (2, True)
    assert contents(here) == before


def test_what_no_format_reads_is_an_error_that_says_why(cli: CommandLine, here: Path) -> None:
    write_jsonl(here / "r.jsonl", [{"x": 1.5, "y": {"a": i}} for i in range(4)])
    write_jsonl(here / "empty.jsonl", [])
    code, _, err = cli("init", "r.jsonl", "empty.jsonl")
    assert code == 2
    assert "r.jsonl: no format reads its columns 'x' (the number 1.5), 'y' (an object)" in err
    assert "empty.jsonl has no row" in err
    assert not (here / "recipe.yaml").exists()


def test_beside_others_it_stands_in_the_recipe_as_a_comment(
    cli: CommandLine, here: Path, model: Path
) -> None:
    write_jsonl(here / "r.jsonl", [{"x": 1.5, "y\n z": {"a": i}} for i in range(4)])
    write_jsonl(here / "good.jsonl", KINDS["text alone"][0])
    code, _, err = cli("init", "r.jsonl", "good.jsonl", "--model", model)
    assert code == 0
    assert "r stands in the recipe as a comment: no format reads its columns" in err
    text = (here / "recipe.yaml").read_text(encoding="utf-8")
    assert "  # r: left out, because no format reads its columns 'x'" in text
    assert "  #   train: r.jsonl" in text or '  #   train: "r.jsonl"' in text
    assert [*written().tasks] == ["good"]
    assert cli("check", "recipe.yaml")[0] == 0


def test_bad_rows_are_told_with_their_place(cli: CommandLine, here: Path, model: Path) -> None:
    rows = [json.dumps(row) for row in KINDS["prompt and completion"][0]]
    rows[3] = "{broken"
    rows[5] = json.dumps({"prompt": "x", "completion": ""})
    (here / "r.jsonl").write_text("\n".join(rows), encoding="utf-8")
    code, _, err = cli("init", "r.jsonl", "--model", model)
    assert code == 0
    assert "r has bad rows, the first: r.jsonl:4: broken JSON" in err
    assert cli("check", "recipe.yaml")[0] == 2
    text = (here / "recipe.yaml").read_text(encoding="utf-8")
    (here / "recipe.yaml").write_text(text.replace("# on_bad_row", "on_bad_row"), encoding="utf-8")
    assert cli("check", "recipe.yaml")[0] == 0


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["nothing.jsonl"], "no such file: nothing.jsonl"),
        (["r.doc"], "cannot tell what kind of file r.doc is"),
        (["r_test.jsonl"], "task 'r' has no train rows: r_test.jsonl"),
        (["r.jsonl", "r_train.jsonl"], "several files are the train rows of task 'r'"),
        (["empty"], "empty has no file of rows"),
        (["r.json"], "r.json:1: broken JSON"),
    ],
)
def test_files_that_cannot_be_used_are_named(
    cli: CommandLine, here: Path, files: list[str], message: str
) -> None:
    for name in ("r.jsonl", "r_train.jsonl", "r_test.jsonl", "r.doc"):
        write_jsonl(here / name, [{"text": "a"}])
    (here / "r.json").write_text("{broken")
    (here / "empty").mkdir()
    code, _, err = cli("init", *files)
    assert code == 2
    assert message in err
    assert not (here / "recipe.yaml").exists()


def test_all_files_that_cannot_be_used_are_named_at_once(cli: CommandLine, here: Path) -> None:
    (here / "semi.csv").write_text("text;label\na;b\n")
    (here / "tabs_test.csv").write_text("text\tlabel\na\tb\n")
    (here / "tabs.csv").write_text("text\tlabel\na\tb\n")
    write_jsonl(here / "good.jsonl", KINDS["text alone"][0])
    code, _, err = cli("init", "semi.csv", "gone.jsonl", "tabs.csv", "tabs_test.csv", "good.jsonl")
    assert code == 2
    assert "semi.csv:1: this csv is separated by ';'" in err
    assert "no such file: gone.jsonl" in err
    assert "tabs.csv:1: this csv is separated by tabs" in err
    assert "tabs_test.csv:1: this csv is separated by tabs" in err
    assert "good" not in err
    assert not (here / "recipe.yaml").exists()


def test_a_file_without_a_good_row_is_told_with_its_first_bad_one(
    cli: CommandLine, here: Path
) -> None:
    (here / "latin.jsonl").write_text('{"text": "caf\xe9"}\n' * 3, encoding="latin-1")
    code, _, err = cli("init", "latin.jsonl")
    assert code == 2
    assert "latin.jsonl has no row that can be read, the first: latin.jsonl:1: not UTF-8" in err
    assert "fix: mend these rows" in err


def test_without_a_model_one_is_guessed_and_said_so(cli: CommandLine, here: Path) -> None:
    write_jsonl(here / "chat.jsonl", KINDS["messages"][0])
    assert cli("init", "chat.jsonl")[0] == 0
    text = (here / "recipe.yaml").read_text(encoding="utf-8")
    assert "# guessed: no --model was given" in text
    assert written().tasks["chat"].format.name == "messages"


def test_a_model_that_cannot_read_the_rows_or_is_not_there_is_an_error(
    cli: CommandLine, here: Path, tiny_model: Path
) -> None:
    write_jsonl(here / "chat.jsonl", KINDS["messages"][0])
    code, _, err = cli("init", "chat.jsonl", "--model", tiny_model)
    assert code == 2
    assert "has no chat template" in err
    code, _, err = cli("init", "chat.jsonl", "--model", "./nowhere")
    assert (code, "there is no folder ./nowhere" in err) == (2, True)
    assert not (here / "recipe.yaml").exists()


@pytest.mark.parametrize(
    "row",
    [
        {"sentence1": "a b", "sentence2": "b a", "label": 0.37},
        {"question": "a b", "choices": {"text": ["a", "b"]}, "answerKey": "A"},
        {"conversations": [{"from": "human", "value": "a b"}]},
    ],
)
def test_a_guess_that_would_pass_over_the_answer_is_not_made(
    cli: CommandLine, here: Path, row: dict[str, Any]
) -> None:
    values = [{**row, "label": row["label"] + i} if "label" in row else row for i in range(40)]
    write_jsonl(here / "r.jsonl", values)
    code, _, err = cli("init", "r.jsonl")
    assert (code, "no format reads its columns" in err) == (2, True)


def test_columns_that_are_not_read_are_named(cli: CommandLine, here: Path, model: Path) -> None:
    rows = [{"id": i, **row} for i, row in enumerate(KINDS["text and label"][0])]
    write_jsonl(here / "r.jsonl", rows)
    assert cli("init", "r.jsonl", "--model", model)[0] == 0
    assert "# other columns: id\n" in (here / "recipe.yaml").read_text(encoding="utf-8")
