"""`mtlcore audit`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mtlcore.cli.console import only_results_on_stdout
from mtlcore.cli.options import AsJson, SplitName, Step
from mtlcore.cli.train import exit_if_audit_failed

if TYPE_CHECKING:
    from rich.table import Table

    from mtlcore.components import Finding
    from mtlcore.run import Run


def audit(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Options of --auditor, e.g. lexicon=age"),
    ] = None,
    auditor: Annotated[
        str | None, typer.Option(help="This one, in place of those of the recipe.")
    ] = None,
    split: SplitName = "test",
    max_rows: Annotated[
        int | None, typer.Option(help="At most so many rows of each task.", min=1)
    ] = None,
    step: Step = None,
    as_json: AsJson = False,
) -> None:
    """Look for bias in a run's answers; ends with 3 if something is beyond its limit."""
    from mtlcore.errors import UserError

    if options and auditor is None:
        raise UserError(f"{options[0]} is an option of no auditor", fix="name it: --auditor NAME")
    given = read_options(options or [])

    from mtlcore.api import load

    with only_results_on_stdout():
        loaded = load(run, step=step)
        auditors = None if auditor is None else [create(loaded, auditor, given)]
        if auditors is None and not loaded.plugins.implements("mtlcore_audit"):
            raise UserError(
                "the recipe of this run has no auditors",
                where=str(run),
                fix=f"name one with --auditor: {', '.join(known_auditors(loaded))}",
            )
        findings = loaded.audit(split, auditors, max_rows=max_rows)
    if as_json:
        typer.echo(json.dumps([finding.to_json() for finding in findings], indent=2, default=str))
    else:
        from rich.console import Console

        Console().print(table(findings, split))
    exit_if_audit_failed(loaded)


def read_options(texts: list[str]) -> dict[str, Any]:
    """`key=value` -> the values as YAML has them."""
    from mtlcore.errors import UserError
    from mtlcore.recipe_yaml import UnreadableError, parse_value

    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UserError(f"{text!r} is no option", fix="write key=value, e.g. lexicon=age")
        try:
            found[name] = parse_value(value, f"command line, {name}")
        except UnreadableError as error:
            raise UserError(
                error.problem.message, where=error.problem.where, fix=error.problem.fix
            ) from None
    return found


def create(run: Run, name: str, options: dict[str, Any]) -> Any:
    """An auditor of that name, registered with the run."""
    from mtlcore.recipe import ComponentSpec

    auditor = run.plugins.create("auditing", ComponentSpec(name=name, options=options), "--auditor")
    run.plugins.register(auditor)
    return auditor


def known_auditors(run: Run) -> list[str]:
    """The names of all auditors."""
    return sorted(name for kind, name in run.plugins.components() if kind == "auditing")


def table(findings: list[Finding], split: str) -> Table:
    """One line per finding."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=f"audit of the {split} rows")
    for column in ("task", "finding", "value", "what was found"):
        shown.add_column(column, justify="right" if column == "value" else "left")
    for finding in findings:
        value = finding.to_json()["value"]
        message = Text(("failed: " if finding.failed else "") + finding.message)
        number = "" if value is None else f"{value:.3f}"
        row = (Text(finding.task), Text(finding.name), number, message)
        shown.add_row(*row, style="red" if finding.failed else None)
    return shown
