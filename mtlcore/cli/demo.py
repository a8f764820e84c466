"""`mtlcore demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mtlcore.cli.options import Overrides


def demo(
    overrides: Overrides = None,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="A very small model made on the spot; no download.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder to write to.")] = None,
) -> None:
    """Train and score a small model on five small tasks."""
    from mtlcore.demo.run import run_demo

    run_demo(tiny, tuple(overrides or ()), out)
