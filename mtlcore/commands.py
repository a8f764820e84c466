"""Command lines for users to copy."""

from __future__ import annotations

import shlex
from pathlib import Path

from mtlcore.checkpoint_store import newest_until, step_of


def resume_command(run_folder: str | Path) -> str:
    """The command that goes on with a run, wherever its folder is now."""
    recipe = shlex.quote(f"{run_folder}/recipe.yaml")
    place = shlex.quote(f"training.output_dir={run_folder}")
    return f"mtlcore train {recipe} {place} --resume"


def start_anew(run_folder: Path, last_good: int) -> str:
    """A fix: what to begin a new run from, if this one was sound up to a step."""
    found = newest_until(run_folder, last_good)
    if found is None:
        return f"begin anew: there is no checkpoint of step {last_good} or before"
    return (
        f"begin another run (another training.output_dir) from the weights of {found}: "
        f"start: {{run: {run_folder}, step: {step_of(found)}}}"
    )
