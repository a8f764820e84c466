"""`mtlcore predict`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from mtlcore.cli.console import only_results_on_stdout
from mtlcore.cli.options import Step


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    file: Annotated[
        str,
        typer.Argument(metavar="[FILE|-]", help="The rows; default stdin, as JSON lines."),
    ] = "-",
    *,
    task: Annotated[str, typer.Option(help="The task that answers.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the answers here.")
    ] = None,
    step: Step = None,
) -> None:
    """Answer new rows of a task, which need no label: one JSON object per row."""
    from mtlcore.data.sources import read_file, rows_of_text
    from mtlcore.errors import UserError

    stdin = file == "-"
    rows = rows_of_text(sys.stdin.buffer.read(), "stdin") if stdin else read_file(Path(file))
    if not rows and not rows.bad:
        raise UserError("there is no row", where=rows.path, fix="give one JSON object per line")

    from dataclasses import asdict

    from mtlcore.api import load

    with only_results_on_stdout():
        answers = load(run, step=step, tasks=[task]).predict_rows(task, rows)
    lines = [json.dumps(asdict(answer), ensure_ascii=False) for answer in answers]
    if out is None:
        for line in lines:
            typer.echo(line)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    typer.echo(str(out))
