"""Coverage-guided fuzzing with atheris (`pip install 'mtlcore[fuzz]'`).

    python -m tests.fuzz.atheris_targets recipe --seconds 600
    python -m tests.fuzz.atheris_targets rows --seconds 600 --findings folder

Inputs that raise anything but a UserError are written to the folder, and the fuzzer goes on. The
last line of stdout is JSON: target, seconds, executions, findings, and the files that were written.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["mtlcore", "ruamel"]):
    from tests.fuzz.inputs import FILES, RECIPE, read_recipe_bytes, read_row_bytes

NAMES = tuple(FILES)


def recipe_target(data: bytes, folder: Path) -> None:
    """The bytes are a recipe."""
    read_recipe_bytes(data, folder)


def rows_target(data: bytes, folder: Path) -> None:
    """The first byte chooses the kind of file, the others are its content."""
    if data:
        read_row_bytes(NAMES[data[0] % len(NAMES)], data[1:], folder)


TARGETS: dict[str, tuple[Callable[[bytes, Path], None], list[bytes]]] = {
    "recipe": (recipe_target, [RECIPE]),
    "rows": (rows_target, [bytes([i]) + data for i, data in enumerate(FILES.values())]),
}


class Fuzzer:
    """Feeds a target until its time is over; each kind of finding is kept once."""

    def __init__(self, name: str, seconds: float, findings: Path) -> None:
        self.name, self.folder = name, findings
        self.target, self.seeds = TARGETS[name]
        self.started = time.monotonic()
        self.end = self.started + seconds
        self.executions = self.count = 0
        self.kinds: dict[str, str] = {}
        self.place = Path(tempfile.mkdtemp(prefix="mtlcore-fuzz-"))

    def one(self, data: bytes) -> None:
        """Run the target on one input."""
        if time.monotonic() > self.end:
            self.report()
            os._exit(1 if self.count else 0)  # libFuzzer has no other way out
        self.executions += 1
        try:
            self.target(data, self.place)
        except Exception as error:
            self.count += 1
            last = traceback.extract_tb(error.__traceback__)[-1]
            kind = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
            if kind not in self.kinds:
                self.folder.mkdir(parents=True, exist_ok=True)
                file = self.folder / f"{self.name}-{len(self.kinds)}"
                file.write_bytes(data)
                self.kinds[kind] = str(file)

    def report(self) -> None:
        """Print the counts as one line of JSON."""
        line = {
            "target": self.name,
            "seconds": round(time.monotonic() - self.started, 1),
            "executions": self.executions,
            "findings": self.count,
            "kinds": self.kinds,
        }
        print(json.dumps(line), flush=True)


def main() -> None:
    """Parse the command line and fuzz."""
    parser = argparse.ArgumentParser()
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    options = parser.parse_args()
    fuzzer = Fuzzer(options.target, options.seconds, options.findings)
    corpus = Path(tempfile.mkdtemp(prefix="mtlcore-corpus-"))
    for number, seed in enumerate(fuzzer.seeds):
        (corpus / str(number)).write_bytes(seed)
    flags = ["-max_len=4096", "-timeout=60", "-rss_limit_mb=4096", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], fuzzer.one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
