"""The demo: one model, five tasks, scores before and after, adapters that stock PEFT loads."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from mtlcore.cache import cache_folder
from mtlcore.commands import resume_command
from mtlcore.demo.model import fetch_model
from mtlcore.demo.tiny import make_tiny_model
from mtlcore.errors import UserError
from mtlcore.recipe_file import read_recipe

if TYPE_CHECKING:
    from mtlcore.data.example import Example
    from mtlcore.data.tasks import Task
    from mtlcore.evaluation.predictions import Prediction
    from mtlcore.evaluation.scores import Scores
    from mtlcore.run import Run

RECIPE = Path(__file__).parent / "recipe.yaml"
TINY = ("training.max_steps=60", "training.learning_rate=0.003", "training.logging_steps=20")
"""What `--tiny` changes: a random model of two layers has nothing to unlearn."""
INPUT_COLUMNS = {
    "translation": ("english",),
    "definitions": ("word", "example"),
    "spelling": ("text",),
}
"""The columns that a lazy answer to a generative task could copy."""


def run_demo(tiny: bool = False, overrides: Sequence[str] = (), out: Path | None = None) -> None:
    """Score the untuned model, train it on the five tasks, score it again, export, and report.

    Writes a run folder (default runs/demo, or runs/demo-tiny) with summary.json:
    ``{"tasks": {name: {"metric", "before", "after", "trivial", "rows"}}, "overall": {"before",
    "after", "trivial"}, "seconds"}``. An earlier demo in that folder is moved aside, and said so.
    """
    console = Console()
    started = time.perf_counter()
    folder = out or Path("runs") / ("demo-tiny" if tiny else "demo")
    if tiny:
        model = make_tiny_model(cache_folder() / "models" / "tiny")
    else:
        model = fetch_model(lambda line: console.print(line, highlight=False))
    given = [f"model.name_or_path={model}", f"training.output_dir={folder}"]
    loaded = read_recipe(RECIPE, [*given, *(TINY if tiny else ()), *overrides])
    folder = loaded.output_dir
    if folder.is_file():
        raise UserError(f"{folder} is a file", where="--out", fix="give a folder")

    from mtlcore.progress import scoring
    from mtlcore.run import Run, write_json
    from mtlcore.stop_signals import RunStopped
    from mtlcore.trainer import Trainer

    with loaded.locating_errors():
        run = Run(loaded.recipe, folder)
        run.check()
        for task in run.tasks:
            if not run.evaluators[task.name]:
                raise UserError(
                    "the demo shows a metric of every task",
                    where=f"tasks.{task.name}.metrics",
                    fix="name one, or train with `mtlcore train`",
                )
    _move_aside(folder, console)
    console.print("scoring the untuned model on the test rows")
    rows = sum(len(task.test or ()) for task in run.tasks)
    with scoring(rows) as progress:
        before = run.evaluate("test", save_as="before", progress=progress)
    try:
        with loaded.locating_errors():
            Trainer(run).train()
    except RunStopped as stopped:
        raise RunStopped(f"{stopped} (of the demo: {resume_command(folder)})") from None
    console.print("scoring the tuned model on the test rows")
    with scoring(rows) as progress:
        after = run.evaluate("test", save_as="after", progress=progress)
    for task in run.tasks:
        run.export(folder / "adapters" / task.name, task=task.name)
    run.export(folder / "adapters" / "shared", shared=True)

    summary = summarize(run, before, after, time.perf_counter() - started)
    write_json(folder / "summary.json", summary)
    console.print(table(summary))
    console.print(f"run folder   {folder}", highlight=False)
    console.print(f"adapters     {folder / 'adapters'}/<task>  (stock PEFT)", highlight=False)
    console.print(f"answers      {folder / 'predictions'}/before, /after", highlight=False)
    console.print(f"summary      {folder / 'summary.json'}", highlight=False)


def summarize(run: Run, before: Scores, after: Scores, seconds: float) -> dict[str, Any]:
    """The numbers of summary.json."""
    tasks: dict[str, dict[str, Any]] = {}
    overall: dict[str, list[float]] = {"before": [], "after": [], "trivial": []}
    for task in run.tasks:
        evaluator = run.evaluators[task.name][0]
        values = {
            "before": before.by_task[task.name].metrics[evaluator.name],
            "after": after.by_task[task.name].metrics[evaluator.name],
            "trivial": trivial_score(run, task),
        }
        for when, value in values.items():
            overall[when].append(evaluator.normalized(value))
        rows = after.by_task[task.name].rows
        tasks[task.name] = {"metric": evaluator.name, **values, "rows": rows}
    means = {when: sum(values) / len(values) for when, values in overall.items()}
    return {"tasks": tasks, "overall": means, "seconds": seconds}


def trivial_score(run: Run, task: Task) -> float:
    """The best score of an answer that needs no model.

    With options: always the one that is right most often in the train rows. Else the best of: a
    copy of an input column, the most frequent target of the train rows.
    """
    assert task.test is not None
    evaluator = run.evaluators[task.name][0]
    label = Counter(example.label for example in task.train).most_common(1)[0][0]
    if label is not None:
        return evaluator.score([_answer(e, e.options[label], label) for e in task.test])
    target = Counter(example.target for example in task.train).most_common(1)[0][0]
    candidates = [[target] * len(task.test)]
    for column in INPUT_COLUMNS.get(task.name, ()):
        candidates.append([str(example.fields[column]) for example in task.test])
    return max(
        evaluator.score([_answer(e, output) for e, output in zip(task.test, outputs, strict=True)])
        for outputs in candidates
    )


def _answer(example: Example, output: str, choice: int | None = None) -> Prediction:
    """A prediction with a given output, as the evaluators read it."""
    from mtlcore.evaluation.predictions import Prediction

    return Prediction(
        task=example.task,
        row=example.row,
        prompt=example.prompt,
        target=example.target,
        output=output,
        loss_sum=0.0,
        tokens=0,
        label=example.label,
        choice=choice,
        options=example.options,
        fields=example.fields,
    )


def table(summary: dict[str, Any]) -> Table:
    """The summary as a table."""
    shown = Table(title="five tasks, one model (test rows)")
    for column in ("task", "metric"):
        shown.add_column(column)
    for column in ("rows", "trivial answer", "untuned", "tuned"):
        shown.add_column(column, justify="right")
    for name, task in summary["tasks"].items():
        numbers = [task[when] for when in ("trivial", "before", "after")]
        digits = 1 if max(numbers) > 1 else 3  # chrF counts to 100, the others to 1
        values = [f"{number:.{digits}f}" for number in numbers]
        shown.add_row(name, task["metric"], str(task["rows"]), *values)
    shown.add_section()
    means = [f"{summary['overall'][when]:.3f}" for when in ("trivial", "before", "after")]
    shown.add_row("overall", "mean, 0 to 1", "", *means)
    return shown


def _move_aside(folder: Path, console: Console) -> None:
    """Keep an earlier demo: it is renamed, never overwritten."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    number = 1
    while (kept := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    os.replace(folder, kept)
    console.print(f"the earlier {folder} is kept as {kept}", highlight=False)
