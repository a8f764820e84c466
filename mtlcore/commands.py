"""Command lines for users to copy."""

from __future__ import annotations

import shlex
from pathlib import Path


def resume_command(run_folder: str | Path) -> str:
    """The command that goes on with a run, wherever its folder is now."""
    recipe = shlex.quote(f"{run_folder}/recipe.yaml")
    place = shlex.quote(f"training.output_dir={run_folder}")
    return f"mtlcore train {recipe} {place} --resume"
