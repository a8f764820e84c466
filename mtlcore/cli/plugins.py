"""`mtlcore plugins`: what is installed, what it does, and what is wrong with it."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from mtlcore.errors import UserError, counted, did_you_mean
from mtlcore.plugin_cache import Description, build_description, describe_plugins

app = typer.Typer(help="List, describe and check plugins.", no_args_is_help=True)

PIPE_WIDTH = 400
"""Columns of a table that no terminal shows: nothing is folded, for grep."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_plugins(
    kind: Annotated[str, typer.Option(help="Only components of this kind.")] = "",
    as_json: AsJson = False,
) -> None:
    """List every component that a recipe can name, with its paper."""
    found = describe_plugins()
    rows = found["components"]
    if kind:
        kinds = {row["kind"] for row in rows}
        if kind not in kinds:
            raise UserError(f"no components of kind {kind!r}", fix=did_you_mean(kind, kinds))
        rows = [row for row in rows if row["kind"] == kind]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table("kind", "name", Column("summary", overflow="fold"), "from")
    for row in rows:
        origin = f"{row['distribution']} {row['version']}"
        summary = Text(row["summary"])
        if row["paper"]:
            summary.append(f"\n{row['paper']}", style="dim")
        table.add_row(row["kind"], row["name"], summary, origin)
    console = Console()
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        console.width = PIPE_WIDTH
    console.print(table)
    for problem in _problems(found):
        typer.echo(f"warning: {problem}; see `mtlcore plugins doctor`", err=True)


@app.command()
def info(
    name: Annotated[str, typer.Argument(help="A component's name, or kind/name.")],
    as_json: AsJson = False,
) -> None:
    """Show what a component does, its paper and its options."""
    every = describe_plugins()["components"]
    kind, _, plain = name.rpartition("/")
    rows = [row for row in every if row["name"] == plain and kind in ("", row["kind"])]
    if not rows:
        known = {row["name"] for row in every} | {f"{row['kind']}/{row['name']}" for row in every}
        raise UserError(f"no component is called {name!r}", fix=did_you_mean(name, known))
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    console = Console()
    for row in rows:
        console.print(f"{row['kind']}/{row['name']}", style="bold", highlight=False)
        console.print(f"{row['module']} of {row['distribution']} {row['version']}\n", markup=False)
        console.print(row["doc"], markup=False, highlight=False, soft_wrap=True)
        if row["options"]["properties"]:
            console.print(_options_table(row["options"]))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Load every plugin and say what is wrong; ends with 1 if anything is."""
    found = build_description()
    problems = _problems(found)
    if as_json:
        report = {**found, "components": len(found["components"])}
        typer.echo(json.dumps(report, indent=2))
    else:
        origins = sorted({f"{row['distribution']} {row['version']}" for row in found["components"]})
        typer.echo(f"{len(found['components'])} components from {', '.join(origins)}")
        for plugin in found["disabled"]:
            typer.echo(f"not loaded: plugin {plugin}")
        for problem in problems:
            typer.echo(f"problem: {problem}")
        typer.echo("all plugins can be used" if not problems else counted(len(problems), "problem"))
    if problems:
        raise typer.Exit(1)


def _problems(found: Description) -> list[str]:
    return [*found["broken"], *found["conflicts"]]


def _options_table(options: dict[str, Any]) -> Table:
    table = Table("option", "type", "default")
    for name, schema in options["properties"].items():
        default = "required" if name in options["required"] else json.dumps(schema.get("default"))
        table.add_row(name, _in_words(schema), default)
    return table


def _in_words(schema: dict[str, Any]) -> str:
    """A JSON schema in a few words: `integer >= 1 or null`."""
    if "anyOf" in schema:
        return " or ".join(_in_words(part) for part in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(str(value) for value in schema["enum"])
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    words = [str(schema.get("type", "any"))]
    words += [f"{sign} {schema[rule]}" for rule, sign in signs.items() if rule in schema]
    for inner in ("items", "additionalProperties"):
        if isinstance(schema.get(inner), dict):
            words.append(f"of {_in_words(schema[inner])}")
    return " ".join(words)


if __name__ == "__main__":
    app()
