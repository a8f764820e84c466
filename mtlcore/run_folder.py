"""Whether a run can be begun in a folder, and what another one can be begun from."""

from __future__ import annotations

import tempfile
from pathlib import Path

from mtlcore.checkpoint_store import checkpoints, newest_until, step_of
from mtlcore.errors import UserError
from mtlcore.system_errors import FIXES


def require_writable(folder: Path) -> None:
    """Refuse a folder that cannot be made, or not be written to; leaves nothing behind."""
    path = folder.absolute()
    try:
        place = next(parent for parent in (path, *path.parents) if parent.is_dir())
        tempfile.TemporaryDirectory(dir=place, prefix=".mtlcore-").cleanup()
    except OSError as error:
        what = "cannot be written to" if path.is_dir() else "cannot be made"
        raise UserError(
            f"the folder {folder} {what}: {error.strerror or error} (tried in {place})",
            where="training.output_dir",
            fix=FIXES.get(error.errno or 0, "choose another training.output_dir"),
        ) from None


def require_no_run(folder: Path, said: str = "") -> None:
    """Refuse a folder in which a run was begun; `said` is what that means where it is asked."""
    if (folder / "metrics.jsonl").exists() or checkpoints(folder):
        raise UserError(
            f"{folder} already holds a run{said}",
            where="training.output_dir",
            fix="go on with --resume, choose another training.output_dir, or delete the folder",
        )


def start_anew(run_folder: Path, last_good: int) -> str:
    """A fix: what to begin a new run from, if this one was sound up to a step."""
    found = newest_until(run_folder, last_good)
    if found is None:
        return f"begin anew (there is no checkpoint of step {last_good} or before)"
    return (
        f"begin another run (another training.output_dir) from the weights of {found}: "
        f"start: {{run: {run_folder}, step: {step_of(found)}}}"
    )
