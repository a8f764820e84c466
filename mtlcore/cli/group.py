"""`mtlcore group`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mtlcore.cli.console import only_results_on_stdout, warn
from mtlcore.cli.options import AsJson
from mtlcore.errors import UserError, require_free

if TYPE_CHECKING:
    from mtlcore.grouping import Grouping


def group(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run trained with the monitor affinity.")
    ],
    groups: Annotated[str, typer.Option(metavar="K|auto", help="How many groups.")] = "auto",
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="Rank of each group's adapter; default half of the shared rank."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default plan.yaml in the run's folder.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Group tasks that help each other, and write the recipe part that gives groups adapters."""
    count = _count(groups)

    from mtlcore import grouping

    path = run / grouping.PLAN if out is None else out
    with only_results_on_stdout():
        require_free(path, force)
        found = grouping.group(run, count)
        part = grouping.write_plan(run, found, path, rank=rank, overwrite=force)
    for note in found.notes:
        warn(note)
    if as_json:
        result = {"run": str(run), **found.to_json(), **part, "plan": str(path)}
        typer.echo(json.dumps(result, indent=2))
        return
    _print(found)
    typer.echo(f"written: {path}")


def _count(groups: str) -> int | None:
    if groups == "auto":
        return None
    try:
        return int(groups)
    except ValueError:
        raise UserError(f"--groups {groups!r} is no number", fix="give a number, or auto") from None


def _print(found: Grouping) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="similarity is 1 for tasks of equal gradients, below 0 in conflict")
    for column in ("group", "tasks"):
        table.add_column(column)
    for column in ("similarity within", "to others", "conflict within", "to others"):
        table.add_column(column, justify="right")
    rows = [*found.groups.items(), *(("(alone)", [task]) for task in found.alone)]
    for name, tasks in rows:
        within, outward = found.within(tasks), found.outward(tasks)
        table.add_row(
            name,
            escape(", ".join(tasks)),
            _number(within["similarity"], "+.3f"),
            _number(outward["similarity"], "+.3f"),
            _number(within["conflict"], ".1%"),
            _number(outward["conflict"], ".1%"),
        )
    console = Console()
    console.print(table)
    tried = ", ".join(f"{k}: {value:.3f}" for k, value in found.silhouettes.items())
    typer.echo(f"silhouette by number of groups: {tried}")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
