"""`mtlcore review`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mtlcore.cli.console import only_results_on_stdout
from mtlcore.cli.options import SplitName, Tasks


def review(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    against: Annotated[
        str, typer.Option(metavar="OTHER|base", help="Another run, or the untrained model.")
    ] = "base",
    split: SplitName = "test",
    task: Tasks = None,
    rows: Annotated[int, typer.Option(help="Rows per task of each kind.")] = 5,
    max_rows: Annotated[
        int | None, typer.Option(help="Answer at most so many rows per task.", min=1)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """Show outputs before and after training: the worst, best and most changed rows."""
    from mtlcore.evaluation.review import review, table

    with only_results_on_stdout():
        lines = review(
            run, against=against, split=split, tasks=task or None, rows=rows, max_rows=max_rows
        )
    if as_json:
        for line in lines:
            typer.echo(json.dumps(line, ensure_ascii=False, default=str))
        return
    from rich.console import Console

    console = Console()
    for name in dict.fromkeys(line["task"] for line in lines):
        console.print(table(name, [line for line in lines if line["task"] == name]))
