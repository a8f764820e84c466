"""`mtlcore adapt`."""

from __future__ import annotations

import json
from pathlib import Path

from mtlcore.testing.command_line import CommandLine

ROWS = [{"text": f"word {number}", "label": ("odd", "even")[number % 2]} for number in range(12)]


def test_an_adaptation_goes_on_from_its_newest_checkpoint(
    cli: CommandLine, run: Path, tmp_path: Path
) -> None:
    rows = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "rows.jsonl").write_text(rows, encoding="utf-8")
    new = {"train": str(tmp_path / "rows.jsonl"), "format": "classification"}
    (tmp_path / "new.yaml").write_text(json.dumps({"tasks": {"parity": new}}), encoding="utf-8")
    command = ["adapt", run, "--task", tmp_path / "new.yaml", "--max-steps", 2]
    command += ["--output-dir", tmp_path / "adapted"]
    code, out, _ = cli(*command)
    assert code == 0
    assert f"run folder: {tmp_path / 'adapted'}" in "".join(out.splitlines())
    before = json.loads((tmp_path / "adapted" / "forgetting.json").read_text())
    assert list(before["new_tasks"]) == ["parity"]
    assert "loss" in out and "new" in out  # noqa: PT018
    code, _, err = cli(command[0], "--resume", *command[1:])
    assert code == 0
    assert "resumed from" in err
    assert "there is nothing left to train" in err
    assert json.loads((tmp_path / "adapted" / "forgetting.json").read_text()) == before
