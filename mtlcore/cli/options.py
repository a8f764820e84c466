"""Options that several verbs have."""

from __future__ import annotations

from typing import Annotated

import typer

from mtlcore.errors import UserError, did_you_mean

SPLITS = ("train", "eval", "test")


def _known_split(split: str) -> str:
    if split not in SPLITS:
        raise UserError(f"--split {split!r} is none", fix=did_you_mean(split, SPLITS))
    return split


Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="e.g. training.learning_rate=1e-4"),
]
SplitName = Annotated[
    str, typer.Option("--split", help="test, eval or train.", callback=_known_split)
]
Tasks = Annotated[list[str] | None, typer.Option("--task", help="Only this task; repeatable.")]
Step = Annotated[
    int | None,
    typer.Option("--step", help="Use the checkpoint of this step.", min=0),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Resamples = Annotated[
    int | None, typer.Option(help="Bootstrap resamples of the 95% intervals; 0 is none.", min=0)
]
