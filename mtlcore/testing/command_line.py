"""The command line, run in this process; nothing in it is replaced."""

from __future__ import annotations

import pytest

from mtlcore.cli import main


class CommandLine:
    """`cli("train", "recipe.yaml")` gives exit code, stdout and stderr.

    Variables that a command sets are as before when the test is over.
    """

    def __init__(
        self, capture: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.capture = capture
        for what in ("NO", "LOAD", "DISABLE"):
            monkeypatch.setenv(f"MTLCORE_{what}_PLUGINS", "")  # now it is restored at the end
            monkeypatch.delenv(f"MTLCORE_{what}_PLUGINS")
        monkeypatch.setenv("COLUMNS", "120")

    def __call__(self, *args: object) -> tuple[int, str, str]:
        self.capture.readouterr()  # what came before is not this command's
        with pytest.raises(SystemExit) as caught:
            main([str(arg) for arg in args])
        captured = self.capture.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err
