"""`mtlcore init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mtlcore.cli.console import only_results_on_stdout, warn
from mtlcore.terminal import plain


def init(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Files of rows, or folders with some.")
    ],
    model: Annotated[
        str | None, typer.Option(metavar="NAME_OR_PATH", help="The model to fine-tune.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The recipe.")] = Path("recipe.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite the recipe.")] = False,
) -> None:
    """Write a commented recipe for files of rows; their formats are guessed."""
    from mtlcore.init.write import init as write

    with only_results_on_stdout():
        found = write(files, model=model, out=out, force=force)
    for task in found:
        name = task.files.name
        if task.best is None:
            warn(plain(f"{name} stands in the recipe as a comment: {task.problem}"))
            continue
        typer.echo(plain(f"{name}: {task.best.format}: {task.best.guess.why}"))
        for other in task.others:
            typer.echo(plain(f"  or {other.format}: {other.guess.why}"))
        bad = task.bad or [task.best.problem] * bool(task.best.problem)
        if bad:
            warn(plain(f"{name} has bad rows, the first: {bad[0]}"))
    typer.echo(f"written: {out}")
