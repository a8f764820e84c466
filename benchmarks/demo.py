"""The demo with several seeds: `python -m benchmarks.demo --folder runs/demo-seeds`.

For each task the tuned model against the untuned one and the best answer that needs no model. A
seed whose folder already holds a finished demo is read, not run again: a demo takes 10 minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.harness import Result, main, result
from mtlcore.demo.run import run_demo

SEEDS = (0, 1, 2)


def check() -> None:
    """The tiny demo ends with numbers for five tasks, and its untuned scores repeat."""
    found = []
    for seed in (0, 1):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "demo"
            with contextlib.redirect_stdout(sys.stderr):
                run_demo(True, ["training.max_steps=2", f"training.seed={seed}"], out)
            found.append(summary_of(out))
    assert len(found[0]["tasks"]) == 5
    for name, task in found[0]["tasks"].items():
        assert task["before"] == found[1]["tasks"][name]["before"], f"{name}: before differs"


def summary_of(folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return summary


def measure(options: argparse.Namespace) -> list[Result]:
    """Scores of all seeds; the target is to be above both others with every seed."""
    summaries = []
    for seed in options.seeds:
        folder = options.folder / f"seed-{seed}"
        if not (folder / "summary.json").is_file():
            with contextlib.redirect_stdout(sys.stderr):  # stdout is for the JSON line
                run_demo(False, [f"training.seed={seed}"], folder)
        summaries.append(summary_of(folder))
    results = []
    for name in summaries[0]["tasks"]:
        tasks = [summary["tasks"][name] for summary in summaries]
        unit = tasks[0]["metric"]
        for when in ("trivial", "before"):
            results.append(result(name, when, [task[when] for task in tasks], unit))
        values = [task["after"] for task in tasks]
        results.append(result(name, "after", values, unit))
        margins = [task["after"] - max(task["before"], task["trivial"]) for task in tasks]
        worst = result(name, "after - the better of both, worst seed", [min(margins)], unit)
        results.append(replace(worst, target=0.0, met=worst.value > 0))
        for seed, value in zip(options.seeds, values, strict=True):
            results.append(result(name, f"after, seed {seed}", [value], unit))
    for when in ("trivial", "before", "after"):
        results.append(result("overall", when, [s["overall"][when] for s in summaries], "0 to 1"))
    results.append(result("demo", "wall", [s["seconds"] for s in summaries], "s", target=600))
    return results


def run(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.demo", epilog="--json and --record: see benchmarks/harness.py"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--folder", type=Path, default=Path("runs/demo-seeds"))
    options, rest = parser.parse_known_args(argv)
    main("demo", check, functools.partial(measure, options), argv=rest)


if __name__ == "__main__":
    run()
