"""`mtlcore evaluate`, `generate` and `export`, on a trained run."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

import mtlcore
from mtlcore.progress import scoring
from tests.command_line import CommandLine, contents

TASKS = ["sentiment", "spelling", "definitions"]
PROMPTS = ["Correct: helo\nCorrected:", "Define horse:"]


# -- evaluate ----------------------------------------------------------------------------------


def test_evaluate_prints_a_table_and_keeps_predictions(cli: CommandLine, run: Path) -> None:
    code, out, _ = cli("evaluate", run)
    assert code == 0
    for word in (*TASKS, "accuracy", "exact_match", "rouge_l"):
        assert word in out
    kept = run / "predictions" / "test"
    assert len((kept / "spelling.jsonl").read_text().splitlines()) == 6
    assert json.loads((kept / "scores.json").read_text())["step"] == 6


def test_evaluate_scores_the_split_and_the_tasks_that_were_asked_for(
    cli: CommandLine, run: Path
) -> None:
    chosen = ["--task", "spelling", "--task", "definitions"]
    code, out, _ = cli("evaluate", run, "--split", "eval", *chosen, "--json")
    assert code == 0
    expected = mtlcore.load(run).evaluate(
        "eval", tasks=["spelling", "definitions"], resamples="auto"
    )
    assert json.loads(out) == json.loads(json.dumps(expected.to_json()))
    assert [path.stem for path in sorted((run / "predictions" / "eval").glob("*.jsonl"))] == [
        "definitions",
        "spelling",
    ]


def test_evaluate_prints_nothing_but_json_when_a_task_has_no_test_split(
    cli: CommandLine, run: Path
) -> None:
    recipe = run / "recipe.yaml"
    lines = recipe.read_text().splitlines(keepends=True)
    recipe.write_text("".join(line for line in lines if "spelling.test.jsonl" not in line))
    code, out, err = cli("evaluate", run, "--task", "spelling", "--json")
    assert code == 0
    assert json.loads(out)["tasks"].keys() == {"spelling"}
    assert "task 'spelling' has no test split: its eval split is scored" in err


def test_an_unknown_split_is_refused_before_anything_is_loaded(cli: CommandLine) -> None:
    code, _, err = cli("evaluate", "runs/x", "--split", "tset")
    assert code == 2
    assert "did you mean 'test'?" in err


# -- runs that did not come to their end -------------------------------------------------------


@pytest.fixture
def unfinished(run: Path) -> Path:
    """A run that was killed after step 4 of 6."""
    shutil.rmtree(run / "checkpoints" / "step-000006")
    (run / "result.json").unlink()
    return run


TOLD = "its newest checkpoint is that of step 4 of 6; the weights used are those of step 4;"


@pytest.mark.parametrize("verb", ["evaluate", "export", "audit"])
def test_an_unfinished_run_is_told_once(cli: CommandLine, unfinished: Path, verb: str) -> None:
    extra = ["--auditor", "counterfactual"] if verb == "audit" else []
    code, out, err = cli(verb, unfinished, *extra)
    assert code == 0, err
    assert err.count(TOLD) == 1
    assert TOLD not in out
    command = re.search(r"to go on: mtlcore (.*) \(or the verb", err)
    assert command
    if verb == "evaluate":
        assert cli(*shlex.split(command[1]))[0] == 0
        assert mtlcore.load(unfinished).step == 6


def test_an_unfinished_run_is_told_where_its_kept_answers_are_compared(
    cli: CommandLine, unfinished: Path, tiny_run: Path
) -> None:
    assert cli("evaluate", unfinished)[0] == 0
    code, _, err = cli("review", unfinished, "--against", unfinished)
    assert code == 0
    assert TOLD in err
    assert not any("unfinished" in note for note in mtlcore.load(tiny_run).notes)


def test_the_report_of_an_unfinished_run_begins_with_that(
    cli: CommandLine, unfinished: Path
) -> None:
    assert cli("report", unfinished)[0] == 0
    page = (unfinished / "report" / "index.html").read_text()
    assert "The run is unfinished: its log ends at step 6" in page


def test_a_chosen_step_of_an_unfinished_run_is_named(unfinished: Path) -> None:
    notes = mtlcore.load(unfinished, step=2).notes
    assert any("step 4 of 6; the weights used are those of step 2;" in note for note in notes)


# -- generate ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tasks", [[], ["spelling"], ["spelling", "definitions"]])
def test_generate_continues_prompts_of_no_task_one_or_several(
    tasks: list[str], cli: CommandLine, tiny_run: Path
) -> None:
    chosen = [word for task in tasks for word in ("--task", task)]
    code, out, _ = cli("generate", tiny_run, *chosen, *PROMPTS, "--json")
    assert code == 0
    names = tasks if len(tasks) == 2 else (tasks or [None]) * 2
    outputs = mtlcore.load(tiny_run).generate(PROMPTS, names)
    assert [json.loads(line) for line in out.splitlines()] == [
        {"task": name, "prompt": prompt, "output": output}
        for name, prompt, output in zip(names, PROMPTS, outputs, strict=True)
    ]


def test_generate_reads_prompts_from_stdin(
    cli: CommandLine, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Define horse:\n\nDefine cow:\n"))
    code, out, _ = cli("generate", tiny_run, "--task", "definitions")
    assert code == 0
    prompts = ["Define horse:", "Define cow:"]
    outputs = mtlcore.load(tiny_run).generate(prompts, "definitions")
    assert out == "".join(f"{output}\n" for output in outputs)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    code, _, err = cli("generate", tiny_run)
    assert code == 2
    assert err.startswith("error: there is no prompt\n  fix: ")


def test_generate_wants_one_task_or_as_many_as_prompts(cli: CommandLine, tiny_run: Path) -> None:
    code, _, err = cli("generate", tiny_run, "--task", "spelling", "--task", "definitions", "one")
    assert code == 2
    assert "1 prompts, but --task is given 2 times" in err


# -- export ------------------------------------------------------------------------------------


def rank(folder: Path) -> int:
    """The rank in an adapter's config, which its tensors have, too."""
    tensors = load_file(folder / "adapter_model.safetensors")
    ranks = {len(tensor) for name, tensor in tensors.items() if "lora_A" in name}
    config = json.loads((folder / "adapter_config.json").read_text())
    assert ranks == {config["r"]}
    return int(config["r"])


def test_export_writes_the_adapters_of_all_tasks(cli: CommandLine, run: Path) -> None:
    code, out, _ = cli("export", run)
    assert code == 0
    folders = [run / "adapters" / task for task in TASKS]
    assert out.splitlines() == [str(folder) for folder in folders]
    assert [rank(folder) for folder in folders] == [6, 6, 6]  # 4 shared and 2 of its own


@pytest.mark.parametrize(
    ("args", "place", "expected"),
    [
        (["--task", "spelling"], "adapters/spelling", 6),
        (["--shared"], "shared", 4),
        (["--merged"], "merged", None),
        (["--merged", "--task", "spelling"], "merged/spelling", None),
    ],
)
def test_export_chooses_what_and_where(
    args: list[str], place: str, expected: int | None, cli: CommandLine, run: Path, tmp_path: Path
) -> None:
    before = contents(run)
    out_folder = tmp_path / "out"
    assert cli("export", run, *args, "--out", out_folder)[:2] == (0, f"{out_folder}\n")
    assert contents(run) == before
    assert cli("export", run, *args)[:2] == (0, f"{run / place}\n")
    assert contents(run / place) == contents(out_folder)
    if expected is None:
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= contents(out_folder).keys()
    else:
        assert rank(out_folder) == expected


@pytest.mark.parametrize("flags", [["--shared", "--merged"], ["--shared", "--task", "spelling"]])
def test_export_refuses_contradictions(
    flags: list[str], cli: CommandLine, run: Path, tmp_path: Path
) -> None:
    code, out, err = cli("export", run, *flags, "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert err == f"error: --shared and {flags[1]} exclude each other\n  fix: give one of them\n"
    assert not (tmp_path / "out").exists()


def test_an_export_does_not_overwrite_a_model(
    cli: CommandLine, tiny_run: Path, tiny_model: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "base")
    before = contents(model)
    code, _, err = cli("export", tiny_run, "--merged", "--task", "spelling", "--out", model)
    assert code == 2
    assert "holds a model" in err
    assert contents(model) == before
    flags = ("--merged", "--task", "spelling", "--out", model, "--force")
    assert cli("export", tiny_run, *flags)[0] == 0
    assert contents(model) != before


def test_an_export_of_all_tasks_overwrites_none_of_another_run(
    cli: CommandLine, tiny_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert cli("export", tiny_run, "--task", "spelling", "--out", out / "spelling")[0] == 0
    before = contents(out)
    code, _, err = cli("export", tiny_run, "--out", out)
    assert code == 2
    assert f"{out / 'spelling'} holds a model or an adapter" in err
    assert contents(out) == before


def test_an_export_of_an_earlier_step_has_a_folder_of_its_own(cli: CommandLine, run: Path) -> None:
    assert cli("export", run, "--task", "spelling")[0] == 0
    before = contents(run / "adapters")
    code, out, _ = cli("export", run, "--task", "spelling", "--step", "4")
    assert (code, out) == (0, f"{run / 'adapters-step-4' / 'spelling'}\n")
    assert contents(run / "adapters") == before != contents(run / "adapters-step-4")


# -- progress ----------------------------------------------------------------------------------


def test_rows_are_counted_while_they_are_scored(
    tiny_run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    loaded = mtlcore.load(tiny_run)
    seen: list[int] = []
    loaded.evaluate("test", progress=seen.append)
    assert sum(seen) == 18
    assert len(seen) > 3
    capfd.readouterr()
    with scoring(25) as progress:
        for count in (1, 1, 1, 17, 5):
            progress(count)
    assert capfd.readouterr().err.splitlines() == [
        f"{done} of 25 rows are scored" for done in (3, 20, 25)
    ]
