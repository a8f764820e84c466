"""What a user sees while a run trains."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from mtlcore.distributed import is_main

if TYPE_CHECKING:
    from mtlcore.evaluation.scores import Scores
    from mtlcore.records import StepRecord

LINES = 10
"""So many lines tell of rows that are scored where there is no terminal."""


def _bar(what: str, console: Console) -> Bar:
    return Bar(
        TextColumn(what),
        MofNCompleteColumn(),
        BarColumn(bar_width=20),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=console,
        disable=not (sys.stderr.isatty() and is_main()),
    )


@contextmanager
def scoring(rows: int) -> Iterator[Callable[[int], None]]:
    """Shows how many rows are answered; what it gives is told of each few that are."""
    console = Console(stderr=True, quiet=not is_main())
    done = 0
    with _bar("rows", console) as bar:
        task = bar.add_task("", total=rows)

        def answered(count: int) -> None:
            nonlocal done
            before, done = done, done + count
            bar.update(task, completed=done)
            if bar.disable and LINES * done // rows > LINES * before // rows:
                console.print(f"{done} of {rows} rows are scored", highlight=False)

        yield answered


class Progress:
    """A bar with the smoothed loss of every task; plain lines when the output is not a terminal.

    The share of pairs of tasks in conflict stands behind them, smoothed too, once it was measured.
    """

    def __init__(self, total: int, done: int, *, every: int = 10, smoothing: float = 0.9) -> None:
        self.console = Console(stderr=True, quiet=not is_main())
        self.total, self.every, self.smoothing = total, every, smoothing
        self.averages: dict[str, float] = {}
        self.conflicts: float | None = None
        self.bar = _bar("step", self.console)
        self.task = self.bar.add_task("", total=total, completed=done)

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def step(self, record: StepRecord) -> None:
        """Show the losses after one step."""
        for name, loss in record.losses.items():
            self.averages[name] = self._smoothed(self.averages.get(name), loss)
        if record.conflict_rate is not None:
            self.conflicts = self._smoothed(self.conflicts, record.conflict_rate)
        parts = [f"{name} {loss:.2f}" for name, loss in self.averages.items()]
        if self.conflicts is not None:
            parts.append(f"conflicts {self.conflicts:.0%}")
        text = "  ".join(parts)
        self.bar.update(self.task, completed=record.step, description=text)
        if self.bar.disable and (record.step % self.every == 0 or record.step == self.total):
            line = f"step {record.step}/{self.total}  {record.seconds:.1f} s  {text}"
            self.console.print(line, highlight=False, soft_wrap=True)

    def _smoothed(self, old: float | None, new: float) -> float:
        return new if old is None else self.smoothing * old + (1 - self.smoothing) * new

    def evaluation(self, step: int, scores: Scores) -> None:
        """Show the scores of an evaluation during training."""
        overall = "" if scores.overall is None else f"  overall {scores.overall:.3f}"
        by_task = "  ".join(
            f"{name} {score.loss:.3f}"
            + "".join(f" {metric} {value:.3f}" for metric, value in score.metrics.items())
            for name, score in scores.by_task.items()
        )
        self.console.print(
            f"eval at step {step}: loss {scores.loss:.3f}{overall}  ({by_task})",
            highlight=False,
            soft_wrap=True,
        )
