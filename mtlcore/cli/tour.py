"""`mtlcore tour`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mtlcore.cli.options import AsJson


def tour(
    row: Annotated[list[str] | None, typer.Option(help="Only this row; repeatable.")] = None,
    folder: Annotated[Path, typer.Option(help="Made anew: cases and runs.")] = Path("runs/tour"),
    page: Annotated[Path | None, typer.Option(help="Also write the table as Markdown.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show each remedy at work: one command, and what it moved. Ends with 1 if one did not help."""
    from mtlcore.tour.page import markdown
    from mtlcore.tour.tour import Tour, choose, take

    chosen = choose(row or ())
    place = Tour(folder)
    results = []
    for number, one in enumerate(chosen, start=1):
        aim = f"{number:2}/{len(chosen)} {one.remedy}: {one.quantity} should be {one.better}"
        typer.echo(aim, err=True)
        result = take(place, one)
        results.append(result)
        typer.echo(
            f"      {result.command}\n"
            f"      {result.without:.4g} without, {result.with_remedy:.4g} with: {result.verdict}"
            f"  ({result.seconds:.0f} s)",
            err=as_json,
        )
    if as_json:
        typer.echo(json.dumps([result.to_json() for result in results], indent=2))
    if page is not None:
        page.write_text(markdown(results), encoding="utf-8")
    if not all(result.moved for result in results):
        raise typer.Exit(1)
