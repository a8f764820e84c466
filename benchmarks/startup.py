"""How long light verbs take from the shell: `python -m benchmarks.startup`."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.harness import Result, interleave, main, result

ROUNDS = 9
TARGETS = {"mtlcore --help": 0.5, "mtlcore schema": 0.8}  # seconds
HEAVY = ("torch", "transformers", "datasets", "pydantic")
LOADED = (
    "import sys\nfrom mtlcore.cli import main\n"
    "try: main(['--help'])\n"
    "except SystemExit: pass\n"
    f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
)


def run(*args: str) -> str:
    """One verb in a fresh process."""
    command = [sys.executable, "-m", "mtlcore.cli", *args]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def check() -> None:
    """--help imports nothing heavy, and the schema is JSON; this also fills the schema's cache."""
    command = [sys.executable, "-c", LOADED]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Commands" in done.stdout, done.stdout
    assert done.stderr.strip().endswith("[]"), f"--help imports {done.stderr.strip()}"
    assert "properties" in json.loads(run("schema"))


def measure() -> list[Result]:
    """Wall times, with an empty Python process beside them."""
    empty = [sys.executable, "-c", "pass"]
    times = interleave(
        {
            "python -c pass": lambda: subprocess.run(empty, check=True),
            "mtlcore --help": lambda: run("--help"),
            "mtlcore schema": lambda: run("schema"),
        },
        ROUNDS,
    )
    return [
        result(case, "wall", values, "s", target=TARGETS.get(case))
        for case, values in times.items()
    ]


if __name__ == "__main__":
    main("startup", check, measure)
