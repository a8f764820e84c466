"""`mtlcore preview`: the tokens that are trained, what was cut, and the batches of a real run."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mtlcore
from mtlcore.cli.preview import marked
from mtlcore.data.example import IGNORED
from mtlcore.preview.rows import Piece
from mtlcore.run import load_tokenizer
from tests.command_line import CommandLine, contents
from tests.helpers import load, write_jsonl
from tests.recipes import metrics, training_part, write_tiny_recipe

TEXT = "{train: rows.jsonl, format: text, split: {eval: 0}}"
CHOICE = "{train: rows.jsonl, format: multiple_choice, split: {eval: 0}}"
CONTINUAL = {
    "stages": "[{name: one, tasks: [sentiment], max_steps: 2},"
    " {name: two, tasks: [spelling, definitions], max_steps: 3}]",
    "replay": "{name: reservoir, rows: 9, share: 0.5}",
    "sampling": "equal",
}


@pytest.fixture
def recipe(tmp_path: Path, tiny_model: Path) -> Path:
    return write_tiny_recipe(tmp_path, tiny_model)


def of_rows(folder: Path, model: Path, task: str, rows: list[dict[str, Any]]) -> Path:
    """A recipe of one task over these rows."""
    write_jsonl(folder / "rows.jsonl", rows)
    return write_tiny_recipe(folder, model, tasks=f"{{only: {task}}}", sharing="{shared: 4}")


def shown(cli: CommandLine, *args: object) -> dict[str, Any]:
    code, out, err = cli("preview", *args, "--json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


# -- rows --------------------------------------------------------------------------------------


def test_trained_tokens_special_tokens_and_options_are_marked(
    cli: CommandLine, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    code, out, _ = cli("preview", recipe, "--rows", 1)
    assert code == 0
    assert "Sentiment:⟦ negative⟨<|eos|>⟩⟧" in out
    assert "  [x] negative (2 tokens)\n  [ ] positive (2 tokens)" in out
    assert "sentiment, train row 0 (" in out
    assert "\x1b" not in out
    assert contents(tmp_path) == before


def test_it_needs_no_weights(
    cli: CommandLine, recipe: Path, tiny_model: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "weightless"))
    (model / "model.safetensors").unlink()
    for flags in ([], ["--step", "2"]):
        assert cli("preview", recipe, f"model.name_or_path={model}", *flags)[0] == 0


def test_pieces_are_the_tokens_that_training_gets(
    cli: CommandLine, recipe: Path, tiny_model: Path
) -> None:
    from mtlcore.recipe_file import read_recipe

    loaded = read_recipe(recipe, ["training.max_length=30"]).recipe
    tokenizer = load_tokenizer(loaded)
    tasks = loaded.model_dump(mode="json")["tasks"]
    examples = {
        (task.name, example.row): example
        for task in load(tasks, tokenizer=tokenizer, max_length=30)
        for example in task.train
    }
    found = shown(cli, recipe, "training.max_length=30", "--rows", 100)
    seen = {(row["task"], row["row"]): row for row in found["rows"] if not row["unused"]}
    assert seen.keys() == examples.keys()
    assert any(row["cut"] for row in seen.values())
    for key, row in seen.items():
        example, pieces = examples[key], row["pieces"]
        assert row["input_ids"] == list(example.input_ids)
        left = [piece for piece in pieces if piece["kind"] != "cut"]
        assert sum(piece["tokens"] for piece in left) == row["tokens"] == len(example.input_ids)
        assert sum(p["tokens"] for p in pieces if p["kind"] == "cut") == row["cut"]
        trained = "".join(piece["text"] for piece in pieces if piece["kind"] == "trained")
        labels = [label for label in example.labels if label != IGNORED]
        assert trained == tokenizer.decode(labels)
        assert row["trained"] == len(labels)


def test_what_truncation_took_away_stands_where_it_was(
    cli: CommandLine, tmp_path: Path, tiny_model: Path
) -> None:
    recipe = of_rows(tmp_path, tiny_model, TEXT, [{"text": "one two three four five six"}])
    whole = shown(cli, recipe)["rows"][0]
    code, out, _ = cli("preview", recipe, "training.max_length=6")
    lost = whole["tokens"] - 6
    assert code == 0
    assert f"6 tokens, 5 trained, {lost} cut away" in out
    assert f"⟪{lost} tokens cut: " in out.splitlines()[-1]
    assert out.rstrip().endswith("⟫")


def test_rows_that_are_not_used_are_shown_with_the_reason(
    cli: CommandLine, tmp_path: Path, tiny_model: Path
) -> None:
    rows = [{"text": "fine"}, {"text": ""}, {"text": "long " * 200}]
    recipe = of_rows(tmp_path, tiny_model, TEXT, rows)
    code, out, _ = cli("preview", recipe, "tasks.only.overlong=drop")
    assert code == 0
    assert "(" + str(tmp_path / "rows.jsonl") + ":2): not used: bad: column 'text' is empty" in out
    assert "training.max_length is 96: dropped by overlong: drop" in out
    assert "an error by overlong: error" in cli("preview", recipe, "tasks.only.overlong=error")[1]


def test_an_answer_without_room_for_its_prompt_is_said(cli: CommandLine, recipe: Path) -> None:
    code, out, _ = cli("preview", recipe, "--task", "spelling", "training.max_length=8")
    assert code == 0
    assert "training.max_length is 8: its answer leaves no room for the prompt" in out


def test_data_can_neither_control_the_terminal_nor_forge_marks(
    cli: CommandLine, tmp_path: Path, tiny_model: Path
) -> None:
    row = {"prompt": "\x1b[2J⟦x⟧ <|eos|>\r", "options": ["[red]a\x07", "⟪b"], "label": 1}
    code, out, _ = cli("preview", of_rows(tmp_path, tiny_model, CHOICE, [row]))
    assert code == 0
    assert "\\x1b[2J\\u27e6x\\u27e7 <|eos|>\\r⟦" in out
    assert "  [ ] [red]a\\x07 (" in out
    assert "  [x] \\u27eab (" in out
    assert not {"\x1b", "\x07", "\r"} & {*out}


@given(st.lists(st.tuples(st.sampled_from(["given", "trained", "cut"]), st.text(), st.booleans())))
def test_marks_are_balanced_whatever_the_text(parts: list[tuple[Any, str, bool]]) -> None:
    pieces = [Piece(kind, text, 1, special) for kind, text, special in parts]
    text = marked(pieces).plain
    opened = "".join(c for c in text if c in "⟦⟧⟨⟩⟪⟫")
    for pair in ("⟨⟩", "⟦⟧", "⟪⟫"):
        opened = opened.replace(pair, "")
    assert opened == ""
    assert all(c.isprintable() or c == "\n" for c in text)


def test_tasks_splits_and_heads(cli: CommandLine, recipe: Path) -> None:
    found = shown(cli, recipe, "--task", "sentiment", "--split", "test", "--rows", 2)
    assert [(row["task"], row["split"]) for row in found["rows"]] == [("sentiment", "test")] * 2
    code, out, _ = cli("preview", recipe, "tasks.sentiment.head=classification", "--rows", 1)
    assert code == 0
    assert "answered by its head" in out
    assert "  [x] negative\n" in out


def test_what_cannot_be_shown_is_an_error(
    cli: CommandLine, tmp_path: Path, tiny_model: Path
) -> None:
    recipe = of_rows(tmp_path, tiny_model, TEXT, [{"text": "one"}, {"text": "two"}])
    code, _, err = cli("preview", recipe, "--split", "test")
    assert (code, "no test rows in only" in err) == (2, True)
    code, _, err = cli("preview", recipe, "--task", "onyl")
    assert (code, "did you mean 'only'?" in err) == (2, True)
    code, _, err = cli("preview", recipe, "tasks.only.columns={text: body}")
    assert (code, "has no column 'body'" in err) == (2, True)
    code, _, err = cli("preview", recipe, "--step", 1, "--split", "eval")
    assert (code, "a step has train rows" in err) == (2, True)


# -- steps -------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, CONTINUAL], ids=["one stage", "stages with replay"])
def test_the_rows_of_every_step_are_those_of_training(
    cli: CommandLine, tmp_path: Path, tiny_model: Path, changes: dict[str, str]
) -> None:
    steps = "null" if changes else 4
    training = training_part(
        tmp_path, max_steps=steps, gradient_accumulation_steps=2, max_length=40
    )
    recipe = write_tiny_recipe(tmp_path, tiny_model, training=training, **changes)
    mtlcore.train(recipe)
    records = [line for line in metrics(tmp_path / "run") if "rows" in line]
    assert len(records) >= 4
    for record in records:
        found = shown(cli, recipe, "--step", record["step"])
        assert (found["stage"], found["steps"]) == (record["stage"], records[-1]["step"])
        rows, tokens = dict.fromkeys(record["rows"], 0), dict.fromkeys(record["rows"], 0)
        for batch in found["micro_batches"]:
            assert batch["padding"] == 0
            assert batch["shape"] == [1, batch["segments"][-1]["stop"]]
            for part in batch["segments"]:
                rows[part["task"]] += len(part["row_lengths"])
                tokens[part["task"]] += part["tokens"]
        assert (rows, tokens) == (record["rows"], record["tokens"])


def test_the_batch_of_a_step_is_the_one_that_the_trainer_makes(
    cli: CommandLine, recipe: Path
) -> None:
    from mtlcore.api import prepare
    from mtlcore.recipe_file import read_recipe

    trainer = prepare(read_recipe(recipe))
    for step in (1, 2, 3):
        found = shown(cli, recipe, "--step", step, "--rows", 100)
        examples = [row for batch in trainer.next_batches() for row in batch.examples]
        assert [row["input_ids"] for row in found["rows"]] == [[*e.input_ids] for e in examples]
        trainer.run.step += 1


def test_a_padded_step_tells_its_padding(cli: CommandLine, recipe: Path) -> None:
    found = shown(cli, recipe, "--step", 1, "model.attn_implementation=padded")
    for batch in found["micro_batches"]:
        lengths = [length for part in batch["segments"] for length in part["row_lengths"]]
        assert batch["shape"] == [len(lengths), max(lengths)]
        places = len(lengths) * max(lengths)
        assert batch["padding"] == pytest.approx(1 - sum(lengths) / places)
    out = cli("preview", recipe, "--step", 1, "model.attn_implementation=padded")[1]
    assert f"{found['micro_batches'][0]['padding']:.0%} padding" in out


def test_rows_that_were_cut_are_shown_so_in_a_step(cli: CommandLine, recipe: Path) -> None:
    found = shown(cli, recipe, "--step", 1, "training.max_length=24")
    assert any(row["cut"] for row in found["rows"])


def test_a_template_that_no_row_can_use_is_told_with_its_line(
    cli: CommandLine, tmp_path: Path, tiny_model: Path
) -> None:
    form = "{name: prompt_completion, template: \"{{ ''.__class__ }}\"}"
    task = f"{{train: rows.jsonl, format: {form}}}"
    recipe = of_rows(tmp_path, tiny_model, task, [{"prompt": "a", "completion": "b"}] * 9)
    code, _, err = cli("preview", recipe)
    assert code == 2
    assert re.search(r"recipe\.yaml:\d+, tasks\.only\.format\.template: the sandbox refuses", err)


def test_a_step_after_the_last_is_an_error(cli: CommandLine, recipe: Path) -> None:
    code, _, err = cli("preview", recipe, "--step", 7)
    assert code == 2
    assert "the run has no step 7" in err
    assert "give one of 1 to 6" in err


def test_a_plan_that_needs_the_model_is_an_error_that_says_so(
    cli: CommandLine, recipe: Path
) -> None:
    rows = "tasks.sentiment.rows={name: curriculum, difficulty: %s}"
    assert cli("preview", recipe, "--step", 2, rows % "length")[0] == 0
    code, _, err = cli("preview", recipe, "--step", 2, rows % "loss")
    assert code == 2
    assert "depends on the model, and the preview loads none" in err


def test_what_components_refuse_is_refused_here_too(cli: CommandLine, recipe: Path) -> None:
    rows = "tasks.sentiment.rows={name: curriculum, difficulty: none}"
    code, _, err = cli("preview", recipe, "--step", 1, rows)
    assert code == 2
    assert "have no column 'none'" in err


def test_what_early_stopping_may_change_is_said(cli: CommandLine, recipe: Path) -> None:
    patience = "tasks.spelling.early_stopping_patience=1"
    found = shown(cli, recipe, "--step", 2, patience, "training.eval_steps=1")
    assert "planned as if nothing stops early" in found["notes"]
