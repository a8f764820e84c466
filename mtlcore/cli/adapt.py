"""`mtlcore adapt`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mtlcore.cli.console import only_results_on_stdout
from mtlcore.cli.options import AsJson, Overrides
from mtlcore.cli.train import exit_if_audit_failed


def adapt(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    task: Annotated[
        Path, typer.Option(metavar="FILE", help="YAML with the new tasks: `tasks: {name: ...}`.")
    ],
    overrides: Overrides = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps.")] = None,
    output_dir: Annotated[Path | None, typer.Option(help="Default RUN-<new tasks>.")] = None,
    resume: Annotated[
        str | None,
        typer.Option(metavar="[auto|PATH]", help="Go on from the newest checkpoint, or from PATH."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Teach a finished run new tasks; shows their scores and what became of the old ones."""
    from mtlcore.adaptation import FORGETTING
    from mtlcore.adaptation import adapt as add_tasks

    with only_results_on_stdout():
        found = add_tasks(
            run,
            task,
            overrides or (),
            max_steps=max_steps,
            output_dir=output_dir,
            resume=True if resume == "auto" else resume or False,
        )
    result = json.loads((found.folder / FORGETTING).read_text(encoding="utf-8"))
    if as_json:
        typer.echo(json.dumps({"run": str(found.folder), **result}, indent=2))
    else:
        _print(result)
        typer.echo(f"run folder: {found.folder}")
    exit_if_audit_failed(found)


def _print(result: dict[str, object]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"tasks before and after, on {result['split']}")
    for column in ("task", "metric", "before", "after", "change"):
        table.add_column(column, justify="left" if column in ("task", "metric") else "right")
    rows, new = result["tasks"], result["new_tasks"]
    assert isinstance(rows, dict)
    assert isinstance(new, dict)
    for name, row in rows.items():
        numbers = [f"{row[key]:.3f}" for key in ("before", "after")]
        table.add_row(name, row["metric"], *numbers, f"{row['change']:+.3f}")
    for name, row in new.items():
        table.add_row(name, row["metric"], "", f"{row['after']:.3f}", "new")
    if isinstance(mean := result["mean_change"], float):
        table.add_section()
        table.add_row("mean of the old", "", "", "", f"{mean:+.3f}")
    Console().print(table)
