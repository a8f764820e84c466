"""`mtlcore baseline`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mtlcore.cli.console import only_results_on_stdout, warn
from mtlcore.cli.options import AsJson, Overrides, SplitName, Tasks


def baseline(
    source: Annotated[
        Path, typer.Argument(metavar="RUN|RECIPE", help="The folder of a run, or a YAML file.")
    ],
    overrides: Overrides = None,
    task: Tasks = None,
    auxiliary: Annotated[
        bool, typer.Option("--auxiliary", help="Baselines of the auxiliary tasks too.")
    ] = False,
    split: SplitName = "test",
    resume: Annotated[
        str | None,
        typer.Option(metavar="[auto|PATH]", help="Go on from the newest checkpoint, or from PATH."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a single-task adapter for every task, all in one run, and compare with them."""
    from mtlcore.evaluation.baseline import prepare, train

    loaded = prepare(source, overrides or (), tasks=task or None, auxiliary=auxiliary)
    with only_results_on_stdout():
        run = train(loaded, resume=True if resume == "auto" else resume or False)
        scores = run.evaluate(split, save_as=split, resamples="auto")
        found = None
        if source.is_dir():
            from mtlcore.evaluation.compare import compare

            found = compare(source, [run.folder], split=split, tasks=list(run.recipe.tasks))
    if as_json:
        typer.echo(json.dumps(scores.to_json() if found is None else found, indent=2))
        return
    from rich.console import Console

    console = Console()
    console.print(scores.table(f"single-task baselines on {split}"))
    if found is not None:
        from mtlcore.evaluation.compare import table

        for other in found["others"]:
            console.print(table(found, other))
            for note in other["notes"]:
                warn(note)
    typer.echo(f"run folder: {run.folder}")
