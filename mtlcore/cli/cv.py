"""`mtlcore cv`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from mtlcore.cli.console import only_results_on_stdout
from mtlcore.cli.options import AsJson, Overrides


def cv(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="The YAML file.")],
    overrides: Overrides = None,
    folds: Annotated[int, typer.Option(help="How many; each is the eval split once.")] = 5,
    by: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Rows with one value stay in one fold (patient)."),
    ] = None,
    stratify: Annotated[
        str | None,
        typer.Option(metavar="COLUMN|none", help="Equal shares in all folds; default the label."),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(metavar="[auto]", help="Keep finished folds, go on with the interrupted one."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Cross-validate a recipe: k runs, mean and standard deviation of every score."""
    from mtlcore.errors import UserError
    from mtlcore.recipe_file import read_recipe

    if resume not in (None, "auto"):
        raise UserError(f"--resume {resume!r}: folds go on as a whole", fix="give --resume alone")

    loaded = read_recipe(recipe, overrides or ())

    from mtlcore.evaluation.folds import FOLDER, cross_validate, table

    with only_results_on_stdout():
        found = cross_validate(loaded, folds, by=by, stratify=stratify, resume=resume == "auto")
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    from rich.console import Console

    Console().print(table(found))
    typer.echo(f"runs: {loaded.output_dir / FOLDER}")
