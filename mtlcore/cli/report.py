"""`mtlcore report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mtlcore.cli.options import AsJson


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    show: Annotated[bool, typer.Option("--open", help="Show the page in the browser.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write one HTML page about a run, from the files in its folder."""
    from mtlcore.report import write_report

    page = write_report(run)
    if as_json:
        typer.echo(json.dumps({"page": str(page), "bytes": page.stat().st_size}))
    else:
        typer.echo(f"wrote {page}")
    if show:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())
