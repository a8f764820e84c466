"""Faults that a run survives: `python -m benchmarks.faults`.

Each fault hits a small run (two stages, replay, an auditor, dropout, accumulation, best weights)
which then goes on with `--resume`. It survives if it comes to its end with the weights and the log
of a run that nothing happened to, bit for bit; else it is lost.

    SIGKILL, SIGTERM    at random moments, from the start of the process on
    damage              each file of the newest checkpoint cut, changed in a bit, emptied, deleted,
                        or replaced by a link
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.harness import Result, main, result
from mtlcore.checkpoint_store import checkpoints
from mtlcore.demo.tiny import make_tiny_model
from tests.faults import DAMAGES, FILES, differences, end_after, recipe_in, seconds_of_a_run

MOMENTS = 50  # of each signal


class Case:
    """A folder with a recipe, and what its run comes to when it is left alone."""

    def __init__(self, root: Path) -> None:
        model = make_tiny_model(root / "model")
        for name in ("first", "whole", "hit"):  # the first also starts the server of processes
            (root / name).mkdir()
            recipe_in(root / name, model)
        seconds_of_a_run(root / "first" / "recipe.yaml")
        self.seconds = seconds_of_a_run(root / "whole" / "recipe.yaml")
        self.whole, self.hit = root / "whole" / "run", root / "hit" / "run"
        self.recipe = root / "hit" / "recipe.yaml"

    def goes_on(self) -> bool:
        """Whether the run that was hit comes to the same end; it is removed then."""
        try:
            seconds_of_a_run(self.recipe)
            found = differences(self.hit, self.whole)
        except AssertionError as error:
            found = [str(error)]
        if found:
            print(f"lost: {found}", file=sys.stderr)
        shutil.rmtree(self.hit, ignore_errors=True)
        return not found

    def signals(self, number: signal.Signals, count: int) -> list[bool]:
        """End it at so many moments, each before its end."""
        draw, survived = random.Random(int(number)), []
        while len(survived) < count:
            code = end_after(self.recipe, draw.uniform(0, self.seconds), number)
            went_on = self.goes_on()
            if code != 0:
                survived.append(went_on)
        return survived

    def damages(self, files: Sequence[str]) -> list[bool]:
        """Every damage to each of these files of the newest checkpoint of a finished run."""
        survived = []
        seconds_of_a_run(self.recipe)
        finished = self.hit.rename(self.hit.with_name("finished"))
        for file in files:
            for damage in DAMAGES:
                shutil.copytree(finished, self.hit, symlinks=True)
                damage(checkpoints(self.hit)[-1] / file)
                survived.append(self.goes_on())
        return survived


def check() -> None:
    """A run that nothing happened to is the same each time, and a changed one is seen."""
    with tempfile.TemporaryDirectory() as folder:
        case = Case(Path(folder))
        seconds_of_a_run(case.recipe)
        assert differences(case.hit, case.whole) == [], "two runs differ"
        lines = (case.hit / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (case.hit / "metrics.jsonl").write_text("".join(lines[:-1]), encoding="utf-8")
        assert differences(case.hit, case.whole), "a lost line is not seen"


def measure(moments: int, files: Sequence[str] = FILES) -> list[Result]:
    """Faults tried, survived and lost, by kind."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        case = Case(Path(folder))
        kinds: dict[str, Callable[[], list[bool]]] = {
            "SIGKILL": lambda: case.signals(signal.SIGKILL, moments),
            "SIGTERM": lambda: case.signals(signal.SIGTERM, moments),
            "damage": lambda: case.damages(files),
        }
        for kind, hit in kinds.items():
            survived = hit()
            counts = {
                "tried": len(survived),
                "survived": sum(survived),
                "lost": len(survived) - sum(survived),
            }
            found += [
                result(kind, name, [count], "faults", target=0 if name == "lost" else None)
                for name, count in counts.items()
            ]
    return found


def run(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--moments", type=int, default=MOMENTS, help="of each signal")
    parser.add_argument("--files", nargs="*", default=FILES, help="of a checkpoint, to damage")
    options, rest = parser.parse_known_args(argv)
    main("faults", check, lambda: measure(options.moments, options.files), argv=rest)


if __name__ == "__main__":
    run()
