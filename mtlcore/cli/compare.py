"""`mtlcore compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mtlcore.cli.console import only_results_on_stdout, warn
from mtlcore.cli.options import AsJson, Resamples, SplitName, Tasks


def compare(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    others: Annotated[
        list[Path], typer.Argument(metavar="OTHER...", help="Runs to compare it with.")
    ],
    split: SplitName = "test",
    task: Tasks = None,
    resamples: Resamples = None,
    as_json: AsJson = False,
) -> None:
    """Compare runs on the same rows: differences with intervals, and delta_m."""
    from mtlcore.evaluation.compare import compare, table

    with only_results_on_stdout():
        found = compare(
            run,
            others,
            split=split,
            tasks=task or None,
            resamples="auto" if resamples is None else resamples,
        )
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    from rich.console import Console

    console = Console()
    for other in found["others"]:
        console.print(table(found, other))
        for note in other["notes"]:
            warn(note)
