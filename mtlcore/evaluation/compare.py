"""One run against others on the same rows: differences with intervals, and delta_m.

Attentive Single-Tasking of Multiple Tasks (Maninis et al., CVPR 2019),
https://arxiv.org/abs/1904.08918, section 4

    delta_m = 100 / T  sum_t  1 / |M_t|  sum_{m in M_t}  s_m (a_tm - b_tm) / |b_tm|

a and b are metric m of task t in the run and in the other one (single-task models, as a rule),
s_m is 1 where more is better and -1 where less is better: percent, positive is better. As in
LibMTL, a task's metrics are averaged first. A task without a metric has its loss. Intervals come
from a paired bootstrap: both runs are scored on the same draws of rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mtlcore.errors import UserError
from mtlcore.evaluation import bootstrap
from mtlcore.evaluation.bootstrap import Resamples
from mtlcore.evaluation.kept import KeptRun, answers_of
from mtlcore.run import write_json

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from mtlcore.components import Evaluator
    from mtlcore.evaluation.predictions import Prediction

COMPARISON = "comparison.json"
CONVENTION = "mean over tasks of the relative gain over the other run, percent, positive is better"


@dataclass(frozen=True)
class Metric:
    """One metric of one task in two runs; `evaluator` None is the loss."""

    name: str
    evaluator: Evaluator | None
    mine: float
    other: float
    mine_drawn: Tensor  # [B] on the draws of rows
    other_drawn: Tensor  # [B] on the same draws

    @property
    def greater_is_better(self) -> bool:
        return self.evaluator is not None and self.evaluator.greater_is_better

    @property
    def sign(self) -> int:
        return 1 if self.greater_is_better else -1

    @property
    def gain(self) -> float | None:
        """Relative gain in percent, positive is better; None where the other has 0."""
        if self.other == 0:
            return None
        return 100 * self.sign * (self.mine - self.other) / abs(self.other)

    @property
    def gain_drawn(self) -> Tensor:
        """[B] the same on each draw; not finite where the other has 0."""
        return 100 * self.sign * (self.mine_drawn - self.other_drawn) / self.other_drawn.abs()

    def to_json(self) -> dict[str, Any]:
        """The numbers of one line of the table; low and high are of the difference."""
        found = bootstrap.interval(self.mine_drawn - self.other_drawn)
        return {
            "run": self.mine,
            "other": self.other,
            "difference": self.mine - self.other,
            "low": found.low if found else None,
            "high": found.high if found else None,
            "gain": self.gain,
            "greater_is_better": self.greater_is_better,
        }


def compare(
    run: str | Path,
    others: Sequence[str | Path],
    *,
    split: str = "test",
    tasks: Sequence[str] | None = None,
    resamples: Resamples = "auto",
) -> dict[str, Any]:
    """Compare a run with others, task by task, and write it to ``comparison.json`` in its folder.

    Answers are read from ``predictions/<split>/`` of each run where they are of its last weights,
    else made anew. The metrics are those of the run's recipe. Runs with other tasks or other rows
    are refused; `tasks` chooses some that all have.
    """
    bootstrap.require_resamples(resamples)
    if not others:
        raise UserError("there is no run to compare with", fix="mtlcore compare RUN OTHER")
    mine = KeptRun(run, split)
    theirs = [KeptRun(other, split) for other in others]
    names = _tasks(mine, theirs, tasks)
    metrics = [metric for name in names for metric in mine.evaluators[name]]
    count = bootstrap.count_for(metrics, resamples)
    answers = answers_of([mine, *theirs], names)
    found = {
        "run": mine.name,
        "split": split,
        "resamples": count,
        "convention": CONVENTION,
        "others": [
            _against(mine, other, names, answers[0], given, count)
            for other, given in zip(theirs, answers[1:], strict=True)
        ],
    }
    write_json(mine.folder / COMPARISON, found)
    return found


def _tasks(mine: KeptRun, theirs: Sequence[KeptRun], asked: Sequence[str] | None) -> list[str]:
    """The tasks to compare: those asked for, or all; an auxiliary one only where all have it."""
    if asked is not None:
        for run in (mine, *theirs):
            run.require_tasks(asked)
        return list(dict.fromkeys(asked))
    names = [
        name
        for name in mine.recipe.tasks
        if not mine.is_auxiliary(name) or all(name in other.recipe.tasks for other in theirs)
    ]
    for other in theirs:
        main = [name for name in other.recipe.tasks if not other.is_auxiliary(name)]
        common = [name for name in names if name in other.recipe.tasks]
        for one, its, there in ((mine, names, other), (other, main, mine)):
            missing = [name for name in its if name not in there.recipe.tasks]
            if missing:
                chosen = " ".join(f"--task {name}" for name in common)
                raise UserError(
                    f"{there.name} has no task {', '.join(missing)}, which {one.name} has",
                    fix=f"compare what both have: {chosen}" if chosen else "they share no task",
                )
    return names


def _against(
    mine: KeptRun,
    other: KeptRun,
    names: Sequence[str],
    my_answers: dict[str, list[Prediction]],
    other_answers: dict[str, list[Prediction]],
    count: int,
) -> dict[str, Any]:
    notes: list[str] = []
    seed = mine.recipe.training.seed
    tasks: dict[str, Any] = {}
    drawn: list[Tensor] = []  # [B] gain of each task that counts
    main = [name for name in names if not mine.is_auxiliary(name)] or list(names)
    counted: dict[str, float] = {}
    pairs: dict[str, tuple[Metric, Evaluator]] = {}
    for name in names:
        evaluators: list[Evaluator | None] = [*mine.evaluators[name]] or [None]
        metrics = [
            metric_of_both(evaluator, my_answers[name], other_answers[name], count, seed, name)
            for evaluator in evaluators
        ]
        if metrics[0].evaluator is not None and name in main:
            pairs[name] = metrics[0], metrics[0].evaluator
        known = [metric for metric in metrics if metric.gain is not None]
        notes += [
            f"{name}: {metric.name} of {other.name} is 0, so a relative gain over it is undefined "
            "and left out of delta_m"
            for metric in metrics
            if metric.gain is None
        ]
        gain = None
        if known:
            gain = sum(metric.gain or 0.0 for metric in known) / len(known)
            if name in main:
                counted[name] = gain
                drawn.append(torch.stack([metric.gain_drawn for metric in known]).mean(0))
        tasks[name] = {
            "rows": len(my_answers[name]),
            "role": mine.recipe.tasks[name].role,
            "gain": gain,
            "metrics": {metric.name: metric.to_json() for metric in metrics},
        }
    found = bootstrap.interval(torch.stack(drawn).mean(0)) if drawn else None
    if found is not None and found.resamples < count:
        notes.append(
            f"the interval of delta_m leaves out {count - found.resamples} of {count} draws, in "
            f"which a score of {other.name} is 0"
        )
    return {
        "run": other.name,
        "name": other.folder.name,
        "delta_m": sum(counted.values()) / len(counted) if counted else None,
        "delta_m_interval": found.to_json() if found else None,
        "delta_m_tasks": list(counted),
        "lost": [name for name, gain in counted.items() if gain < 0],
        "overall": _overall(mine, pairs),
        "tasks": tasks,
        "notes": notes,
    }


def metric_of_both(
    evaluator: Evaluator | None,
    my_rows: Sequence[Prediction],
    other_rows: Sequence[Prediction],
    count: int,
    *key: object,
) -> Metric:
    """One metric of two runs, on all rows and on the same `count` draws of them.

    `evaluator` None is the loss. The same key and number of rows give the same draws.
    """
    if evaluator is None:
        values = [
            sum(row.loss_sum for row in rows) / sum(row.tokens for row in rows)
            for rows in (my_rows, other_rows)
        ]
        drawn = [
            bootstrap.resample_losses(rows, count, *key) if count else torch.empty(0)
            for rows in (my_rows, other_rows)
        ]
        return Metric("loss", None, values[0], values[1], drawn[0], drawn[1])
    for rows in (my_rows, other_rows):
        evaluator.require(rows)
    values = [float(evaluator.score(rows)) for rows in (my_rows, other_rows)]
    drawn = [bootstrap.resample(evaluator, rows, count, *key) for rows in (my_rows, other_rows)]
    return Metric(evaluator.name, evaluator, values[0], values[1], drawn[0], drawn[1])


def _overall(mine: KeptRun, pairs: dict[str, tuple[Metric, Evaluator]]) -> dict[str, Any] | None:
    """The overall scores of both runs, by the aggregator of the first."""
    if not pairs:
        return None
    aggregate = mine.aggregator.aggregate

    def overall(values: dict[str, float]) -> float:
        if any(map(math.isnan, values.values())):  # an aggregator may lose it
            return math.nan
        return float(aggregate({n: pairs[n][1].normalized(v) for n, v in values.items()}))

    run = overall({name: metric.mine for name, (metric, _) in pairs.items()})
    other = overall({name: metric.other for name, (metric, _) in pairs.items()})
    differences = []
    for index in range(len(next(iter(pairs.values()))[0].mine_drawn)):
        try:
            differences.append(
                overall(
                    {name: float(metric.mine_drawn[index]) for name, (metric, _) in pairs.items()}
                )
                - overall(
                    {name: float(metric.other_drawn[index]) for name, (metric, _) in pairs.items()}
                )
            )
        except (UserError, ValueError, ArithmeticError):
            differences.append(math.nan)
    found = bootstrap.interval(torch.tensor(differences, dtype=torch.float64))
    return {
        "run": run,
        "other": other,
        "difference": run - other,
        "low": found.low if found else None,
        "high": found.high if found else None,
    }


def table(comparison: dict[str, Any], other: dict[str, Any]) -> Table:
    """A rich table of the run against one of the others."""
    from rich.table import Table

    title = f"{comparison['run']} against {other['run']} on {comparison['split']}"
    title += f"\ndelta_m {_delta_m(other)}: {comparison['convention']}"
    found = Table(title=title.replace("[", "\\["))
    for column in ("task", "rows", "metric", "run", "other", "difference (95%)", "gain"):
        right = column not in ("task", "metric")
        found.add_column(column, justify="right" if right else "left")
    for name, task in other["tasks"].items():
        for place, (metric, values) in enumerate(task["metrics"].items()):
            label = f"{name} (auxiliary)" if task["role"] == "auxiliary" else name
            found.add_row(
                label if place == 0 else "",
                str(task["rows"]) if place == 0 else "",
                metric if values["greater_is_better"] else f"{metric} (less is better)",
                *_numbers(values),
                "undefined" if values["gain"] is None else f"{values['gain']:+.1f}%",
            )
    if other["overall"] is not None:
        found.add_section()
        found.add_row("all", "", "overall", *_numbers(other["overall"]), "")
    return found


def _delta_m(other: dict[str, Any]) -> str:
    if other["delta_m"] is None:
        return "undefined"
    text = f"{other['delta_m']:+.2f}%"
    if other["delta_m_interval"] is not None:
        low, high = other["delta_m_interval"]["low"], other["delta_m_interval"]["high"]
        text += f" [{low:+.2f}, {high:+.2f}]"
    main = [name for name, task in other["tasks"].items() if task["role"] == "main"]
    left_out = [name for name in main if name not in other["delta_m_tasks"]]
    return text + (f" without {', '.join(left_out)}" if left_out else "")


def _numbers(values: dict[str, Any]) -> tuple[str, str, str]:
    difference = f"{values['difference']:+.3f}"
    if values["low"] is not None:
        difference += f" \\[{values['low']:+.3f}, {values['high']:+.3f}]"
    return f"{values['run']:.3f}", f"{values['other']:.3f}", difference
