"""`mtlcore export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mtlcore.cli.console import only_results_on_stdout
from mtlcore.cli.options import Step

MODEL_FILES = ("config.json", "adapter_config.json", "model.safetensors")


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    task: Annotated[str | None, typer.Option(help="The adapter of this task alone.")] = None,
    shared: Annotated[
        bool, typer.Option("--shared", help="The part that all tasks share.")
    ] = False,
    merged: Annotated[
        bool, typer.Option("--merged", help="A full model: the task's, or the shared one.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder to write to.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a model or adapter.")] = False,
    step: Step = None,
) -> None:
    """Write stock PEFT adapters, or a full model; without flags the adapters of all tasks."""
    from mtlcore.errors import UserError

    if shared and (task or merged):
        other = "--task" if task else "--merged"
        raise UserError(f"--shared and {other} exclude each other", fix="give one of them")

    if out is not None and not force:
        taken = [name for name in MODEL_FILES if (out / name).is_file()]
        if taken:
            raise UserError(
                f"{out} holds a model or an adapter ({taken[0]})",
                where="--out",
                fix="choose another folder, or write over it with --force",
            )

    from mtlcore.api import load

    with only_results_on_stdout():
        loaded = load(run, step=step, tasks=[task] if task else ())
        if merged:
            written = [loaded.export(out or run / "merged" / (task or ""), task=task, merged=True)]
        elif shared:
            written = [loaded.export(out or run / "shared", shared=True)]
        elif task:
            written = [loaded.export(out or run / "adapters" / task, task=task)]
        else:
            folder = out or run / "adapters"
            written = [loaded.export(folder / name, task=name) for name in loaded.recipe.tasks]
    for path in written:
        typer.echo(path)
