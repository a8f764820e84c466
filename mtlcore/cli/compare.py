"""`mtlcore compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mtlcore.cli.console import only_results_on_stdout, warn


def compare(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    others: Annotated[
        list[Path], typer.Argument(metavar="OTHER...", help="Runs to compare it with.")
    ],
    split: Annotated[str, typer.Option(help="test, eval or train.")] = "test",
    task: Annotated[list[str] | None, typer.Option(help="Only this task; repeatable.")] = None,
    resamples: Annotated[
        int | None,
        typer.Option(help="Bootstrap resamples of the 95% intervals; 0 is none.", min=0),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare runs on the same rows: differences with intervals, and delta_m."""
    from mtlcore.errors import UserError, did_you_mean

    splits = ("train", "eval", "test")
    if split not in splits:
        raise UserError(f"--split {split!r} is none", fix=did_you_mean(split, splits))

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
