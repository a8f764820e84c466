"""`mtlcore baseline`, on a trained run and on a recipe."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from mtlcore.testing.command_line import CommandLine
from tests.recipes import write_tiny_recipe


def test_the_baseline_of_a_run_is_trained_in_it_and_compared_with_it(
    cli: CommandLine, run: Path
) -> None:
    code, out, _ = cli("baseline", run, "training.max_steps=2", "--task", "sentiment", "--json")
    assert code == 0
    found = json.loads(out)
    assert found == json.loads((run / "comparison.json").read_text())
    assert [other["run"] for other in found["others"]] == [str(run / "baseline")]
    assert list(found["others"][0]["tasks"]) == ["sentiment"]
    assert "delta_m" in found["others"][0]
    scores = json.loads((run / "baseline" / "predictions" / "test" / "scores.json").read_text())
    assert list(scores["tasks"]) == ["sentiment"]
    assert scores["step"] == 2
    code, _, err = cli("baseline", run)
    assert code == 2
    assert "already holds a run" in err
    code, out, _ = cli("baseline", "--resume", run, "training.max_steps=2", "--task", "sentiment")
    assert code == 0  # nothing is left to train: the tables are printed again
    assert "single-task baselines on test" in out
    assert "delta_m" in out


def test_that_the_run_is_unfinished_is_told_before_its_rows(cli: CommandLine, run: Path) -> None:
    shutil.rmtree(run / "checkpoints" / "step-000006")
    args = ["training.max_steps=1", "--task", "sentiment"]
    args += ["tasks.sentiment.eval=null", "tasks.sentiment.split.eval=0.2"]
    code, _, err = cli("baseline", run, *args)
    assert code == 0, err
    assert 0 <= err.index(f"the run {run} is unfinished") < err.index("was split (seed")


def test_the_baseline_of_a_recipe_is_scored(
    cli: CommandLine, tiny_model: Path, tmp_path: Path
) -> None:
    recipe = write_tiny_recipe(tmp_path, tiny_model)
    code, out, _ = cli("baseline", recipe, "training.max_steps=1", "--split", "eval", "--json")
    assert code == 0
    assert list(json.loads(out)["tasks"]) == ["sentiment", "spelling", "definitions"]
    assert (tmp_path / "run-baseline" / "recipe.yaml").is_file()


def test_bad_arguments_are_refused(cli: CommandLine, run: Path, tmp_path: Path) -> None:
    for args, said in (
        ([run, "--split", "tset"], "did you mean 'test'?"),
        ([run, "--task", "speling"], "did you mean 'spelling'?"),
        ([tmp_path / "recipe.yaml"], "recipe.yaml"),
    ):
        code, out, err = cli("baseline", *args)
        assert (code, out) == (2, "")
        assert said in err
        assert "Traceback" not in err
