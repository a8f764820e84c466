"""`mtlcore cv`."""

from __future__ import annotations

import json
from pathlib import Path

from mtlcore.testing.command_line import CommandLine
from tests.recipes import write_tiny_recipe


def test_cv_prints_mean_and_deviation_of_every_task(
    cli: CommandLine, tiny_model: Path, tmp_path: Path
) -> None:
    recipe = write_tiny_recipe(tmp_path, tiny_model)
    code, out, _ = cli("cv", recipe, "training.max_steps=1", "--folds", "2")
    assert code == 0
    for word in ("2 folds", "sentiment", "macro_f1", "overall", "loss", str(tmp_path / "run")):
        assert word in out.replace("\n", "")
    other = f"training.output_dir={tmp_path / 'other'}"
    code, out, _ = cli("cv", recipe, "training.max_steps=1", other, "--folds", "2", "--json")
    assert code == 0
    assert json.loads(out) == json.loads((tmp_path / "other" / "cv.json").read_text())
    again = ["cv", "--resume", recipe, "training.max_steps=1", other, "--folds", "2", "--json"]
    assert cli(*again)[:2] == (0, out)
    code, _, err = cli("cv", recipe, "--resume", tmp_path / "step")
    assert code == 2
    assert "fix: give --resume alone" in err


def test_too_few_folds_are_refused(cli: CommandLine, tiny_model: Path, tmp_path: Path) -> None:
    recipe = write_tiny_recipe(tmp_path, tiny_model)
    code, out, err = cli("cv", recipe, "--folds", "1")
    assert (code, out) == (2, "")
    assert err == "error: --folds: 1 folds leave nothing to learn\n  fix: give 2 or more\n"
    assert not (tmp_path / "run").exists()
