"""`mtlcore generate`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from mtlcore.cli.console import only_results_on_stdout
from mtlcore.cli.options import Step


def generate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PROMPT]...", help="Without any: one per line of stdin."),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="One for all prompts, or one for each prompt in their order."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
    step: Step = None,
) -> None:
    """Continue prompts, of one task or of several in one batch."""
    from mtlcore.errors import UserError

    prompts = prompts or [line for line in sys.stdin.read().splitlines() if line.strip()]
    if not prompts:
        raise UserError("there is no prompt", fix='mtlcore generate RUN "some text"')
    names: list[str | None] = [*task] if task else [None]
    if len(names) == 1:
        names *= len(prompts)
    if len(names) != len(prompts):
        raise UserError(
            f"{len(prompts)} prompts, but --task is given {len(names)} times",
            fix="give one task for all prompts, or one for each",
        )

    from mtlcore.api import load

    with only_results_on_stdout():
        outputs = load(run, step=step, tasks=filter(None, names)).generate(prompts, names)
    for prompt, name, output in zip(prompts, names, outputs, strict=True):
        if as_json:
            row = {"task": name, "prompt": prompt, "output": output}
            typer.echo(json.dumps(row, ensure_ascii=False))
        else:
            typer.echo(output)
