"""`mtlcore explain`, on a trained run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from mtlcore.testing.command_line import CommandLine


def test_the_prompt_and_the_checks_are_printed(cli: CommandLine, run: Path) -> None:
    code, out, _ = cli("explain", run, "--task", "sentiment", "--row", "1")
    assert code == 0
    for words in ("Review:", "log-odds of the chosen option", "sum of scores", "deletion test:"):
        assert words in out
    assert len((run / "explanations.jsonl").read_text().splitlines()) == 1


def test_json_is_what_is_kept(cli: CommandLine, run: Path) -> None:
    arguments = ["--task", "spelling", "--row", "2", "--method", "feature_ablation", "--json"]
    code, out, _ = cli("explain", run, *arguments)
    assert code == 0
    assert json.loads(out) == json.loads((run / "explanations.jsonl").read_text())
    assert json.loads(out)["method"] == "feature_ablation"


def test_too_few_steps_are_said(cli: CommandLine, run: Path) -> None:
    arguments = ["--task", "definitions", "--row", "0", "--n-steps", "1"]
    code, _, err = cli("explain", run, *arguments)
    assert code == 0
    assert "miss completeness" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "sentimnt", "--row", "0"], "did you mean 'sentiment'?"),
        (["--task", "sentiment", "--row", "77"], "has no test row 77"),
        (["--task", "sentiment", "--row", "0", "--split", "tset"], "did you mean 'test'?"),
        (["--task", "sentiment", "--row", "0", "--method", "gradients"], "is not known"),
    ],
)
def test_mistakes_are_named(
    cli: CommandLine, run: Path, arguments: list[str], message: str
) -> None:
    code, _, err = cli("explain", run, *arguments)
    assert code == 2
    assert message in err
    assert not (run / "explanations.jsonl").exists()


def test_the_missing_package_is_named(
    cli: CommandLine, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    code, _, err = cli("explain", run, "--task", "sentiment", "--row", "0")
    assert code == 2
    assert "pip install 'mtlcore[explain]'" in err
