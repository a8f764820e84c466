"""How the command line prints errors and warnings."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager, redirect_stdout
from typing import TextIO

import typer

from mtlcore.errors import MtlcoreError, Problem, RecipeError, UserError
from mtlcore.terminal import plain


def print_error(error: MtlcoreError) -> None:
    """What is wrong in red, then how to mend it; on stderr."""
    if isinstance(error, RecipeError):
        for problem in error.problems:
            _print_problem(problem)
        if error.fix:
            typer.echo(f"  fix: {error.fix}", err=True)
        count = len(error.problems)
        if count > 1:
            _red(f"{count} problems")
    elif isinstance(error, UserError):
        _print_problem(error.problem)
    else:
        _red(f"error: {error}")


def print_failure(text: str) -> None:
    """One red line on stderr for what was done, and found to be bad."""
    _red(f"failed: {text}")


def warn(text: str) -> None:
    """One line on stderr."""
    typer.secho(plain(f"warning: {text}"), fg="yellow", err=True, color=_color())


def only_results_on_stdout() -> AbstractContextManager[TextIO]:
    """While it lasts, what notes, libraries and plugins print goes to stderr."""
    return redirect_stdout(sys.stderr)


def _print_problem(problem: Problem) -> None:
    where = problem.where.replace("\n", "\\n")
    _red(f"error: {where}: {problem.message}" if where else f"error: {problem.message}")
    if problem.fix:
        typer.echo(plain(f"  fix: {problem.fix}"), err=True)


def _red(text: str) -> None:
    typer.secho(plain(text), fg="red", err=True, color=_color())


def _color() -> bool | None:
    """None: colours on a terminal only. https://no-color.org"""
    return False if os.environ.get("NO_COLOR") else None
