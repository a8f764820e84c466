"""`mtlcore evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mtlcore.cli.console import only_results_on_stdout
from mtlcore.cli.options import AsJson, Resamples, SplitName, Step, Tasks


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    split: SplitName = "test",
    task: Tasks = None,
    resamples: Resamples = None,
    step: Step = None,
    as_json: AsJson = False,
) -> None:
    """Score a run, task by task."""
    from mtlcore.api import load

    with only_results_on_stdout():
        scores = load(run, step=step, tasks=task or ()).evaluate(
            split,
            tasks=task or None,
            save_as=split,
            resamples="auto" if resamples is None else resamples,
        )
    if as_json:
        typer.echo(json.dumps(scores.to_json(), indent=2))
        return
    from rich.console import Console

    Console().print(scores.table())
