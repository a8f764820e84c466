"""`mtlcore review`."""

from __future__ import annotations

import json
from pathlib import Path

from mtlcore.testing.command_line import CommandLine


def test_review_shows_rows_before_and_after(cli: CommandLine, run: Path) -> None:
    code, out, _ = cli("review", run, "--rows", "1", "--task", "sentiment")
    assert code == 0
    for word in ("sentiment: accuracy by row", "before", "after", "why", "Review:"):
        assert word in out
    code, out, _ = cli("review", run, "--rows", "1", "--task", "sentiment", "--json")
    assert code == 0
    assert out == (run / "review.jsonl").read_text()
    assert {line["task"] for line in map(json.loads, out.splitlines())} == {"sentiment"}


def test_bad_arguments_are_refused(cli: CommandLine, run: Path) -> None:
    for args, said in (
        (["--split", "tset"], "did you mean 'test'?"),
        (["--rows", "0"], "--rows 0 shows nothing"),
        (["--against", run / "nowhere"], "holds no run"),
    ):
        code, out, err = cli("review", run, *args)
        assert (code, out) == (2, "")
        assert said in err
