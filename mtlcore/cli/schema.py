"""`mtlcore schema`."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def schema(
    field: Annotated[
        str | None, typer.Option(help="Only this key, e.g. training.learning_rate.")
    ] = None,
) -> None:
    """Print the JSON schema of recipes, with the options of the installed components."""
    from mtlcore.plugin_cache import describe_components
    from mtlcore.schema import part_of_schema, recipe_schema

    whole = recipe_schema(describe_components())
    typer.echo(json.dumps(part_of_schema(whole, field) if field else whole, indent=2))
