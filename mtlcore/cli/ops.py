"""`mtlcore ops`."""

from __future__ import annotations

import json

import typer

from mtlcore.cli.options import AsJson


def ops(as_json: AsJson = False) -> None:
    """Show which kernels can run here, and which run unasked."""
    from dataclasses import asdict

    import mtlcore.ops  # noqa: F401  (its modules declare their kernels)
    from mtlcore.ops import backend

    statuses = backend.table()
    if as_json:
        typer.echo(json.dumps([asdict(status) for status in statuses], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("op", "backend", "available", "default on", "why not")
    for status in statuses:
        available = "yes" if status.available else "no"
        defaults = ", ".join(status.default_on)
        table.add_row(status.op, status.backend, available, defaults, status.reason)
    Console().print(table)
