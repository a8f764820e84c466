"""`mtlcore compare` and intervals of `mtlcore evaluate`, on a trained run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from mtlcore.testing.command_line import CommandLine


def test_compare_prints_what_it_writes(cli: CommandLine, run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    code, out, err = cli("compare", run, other, "--resamples", "40")
    assert code == 0
    for word in ("delta_m", "percent, positive is better", "sentiment", "macro_f1", "overall"):
        assert word in out
    assert "is undefined" in err  # nothing is spelt right by so small a model
    code, out, _ = cli("compare", run, other, "--resamples", "40", "--json")
    assert code == 0
    assert json.loads(out) == json.loads((run / "comparison.json").read_text())


def test_compare_refuses_an_unknown_split_and_too_few_resamples(
    cli: CommandLine, run: Path
) -> None:
    code, _, err = cli("compare", run, run, "--split", "tset")
    assert code == 2
    assert "did you mean 'test'?" in err
    code, _, err = cli("compare", run, run, "--resamples", "3")
    assert code == 2
    assert "3 resamples give no 95% interval" in err


def test_evaluate_gives_intervals_unless_told_not_to(cli: CommandLine, run: Path) -> None:
    code, out, _ = cli("evaluate", run, "--task", "sentiment", "--json")
    assert code == 0
    found = json.loads(out)
    interval = found["tasks"]["sentiment"]["interval"]
    assert interval["metric"] == "accuracy"
    assert interval["low"] <= found["tasks"]["sentiment"]["accuracy"] <= interval["high"]
    assert found["overall_interval"]["low"] <= found["overall"]
    code, out, _ = cli("evaluate", run, "--task", "sentiment", "--json", "--resamples", "0")
    assert code == 0
    assert "interval" not in out
    code, _, err = cli("evaluate", run, "--resamples", "7")
    assert code == 2
    assert "7 resamples" in err
