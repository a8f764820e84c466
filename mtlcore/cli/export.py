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

    from mtlcore.api import load

    with only_results_on_stdout():
        loaded = load(run, step=step, tasks=[task] if task else ())
        kind = "merged" if merged else "shared" if shared else "adapters"
        folder = out or run / (kind if step is None else f"{kind}-step-{step}")
        names = [task] if task or merged or shared else list(loaded.recipe.tasks)
        if out is not None and (task or merged or shared):
            targets = [out]  # for one thing, and just that
        else:
            targets = [folder / (name or "") for name in names]
        if out is not None and not force:
            for target in targets:
                _require_free(target)
        written = [
            loaded.export(target, task=name, merged=merged, shared=shared)
            for name, target in zip(names, targets, strict=True)
        ]
    for path in written:
        typer.echo(path)


def _require_free(folder: Path) -> None:
    from mtlcore.errors import UserError

    taken = [name for name in MODEL_FILES if (folder / name).is_file()]
    if taken:
        raise UserError(
            f"{folder} holds a model or an adapter ({taken[0]})",
            where="--out",
            fix="choose another folder, or write over it with --force",
        )
