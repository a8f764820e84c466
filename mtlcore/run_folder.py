"""Whether a run can be begun in a folder, seen before anything is read."""

from __future__ import annotations

import tempfile
from pathlib import Path

from mtlcore.checkpoint_store import checkpoints
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
