"""`mtlcore train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mtlcore.cli.console import print_failure
from mtlcore.cli.options import Overrides

if TYPE_CHECKING:
    from mtlcore.run import Run

AUDIT_FAILED = 3
"""Exit code of a run that was trained and saved, and then failed an audit."""


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="The YAML file.")],
    overrides: Overrides = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="[auto|PATH]",
            help="Go on from the newest checkpoint, or from the one at PATH.",
        ),
    ] = None,
) -> None:
    """Train a recipe."""
    from mtlcore.recipe_file import read_recipe

    loaded = read_recipe(recipe, overrides or ())  # says what is wrong before torch takes seconds

    from mtlcore.api import train

    run = train(loaded, resume=True if resume == "auto" else resume or False)
    typer.echo(f"run folder: {run.folder}")
    exit_if_audit_failed(run)


def exit_if_audit_failed(run: Run) -> None:
    """End with 3 if the last audit found something beyond its limit."""
    failed = [finding for finding in run.findings if finding.failed]
    for finding in failed:
        print_failure(f"audit {finding.name} of {finding.task}: {finding.message}")
    if failed:
        raise typer.Exit(AUDIT_FAILED)


def complete_bare_resume(args: list[str]) -> list[str]:
    """`--resume` without a value means `--resume auto`.

    What follows is no value when it is a flag, a `key=value`, the recipe itself or, of verbs that
    take a run, its folder.
    """
    completed = []
    takes_run = args[:1] != ["train"]
    for arg, following in zip(args, [*args[1:], None], strict=False):
        completed.append(arg)
        if arg == "--resume" and (
            following is None
            or following.startswith("-")
            or "=" in following
            or following.endswith((".yaml", ".yml"))
            or (takes_run and Path(following, "recipe.yaml").is_file())
        ):
            completed.append("auto")
    return completed
