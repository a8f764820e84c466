"""What a folder holds, with the sha256 of each file: written last, and checked before use.

`manifest.json` is JSON in one exact spelling with a sha256 of itself, so that a change of any byte
in it, too, is seen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mtlcore.errors import UserError
from mtlcore.files import naming, sha256_of, sync

MANIFEST = "manifest.json"
FORMAT = 1


class DamagedError(UserError):
    """A file of a sealed folder is missing or is not what was written."""


def seal(folder: Path) -> None:
    """Write the manifest of every file in a folder; all of it is on the disk afterwards."""
    files = {}
    for path in sorted(folder.iterdir()):
        sync(path)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    manifest = folder / MANIFEST
    with naming(manifest):
        manifest.write_bytes(_spelled({"format": FORMAT, "files": files}))
    sync(manifest)
    sync(folder)


def verify(folder: Path, names: Iterable[str] | None = None) -> None:
    """Raise DamagedError unless files (default: all of the manifest) are as they were sealed."""
    with _reading(folder, "the folder"):
        if folder.is_symlink():
            raise _damaged(folder, "the folder is a link")
    with _reading(folder, MANIFEST):
        files = _read(folder)
    for name in files if names is None else names:
        if name not in files:
            raise _damaged(folder, f"{MANIFEST} does not name {name}")
        with _reading(folder, name):
            _verify_file(folder, name, files[name])


def _verify_file(folder: Path, name: str, expected: dict[str, Any]) -> None:
    path = folder / name
    if path.is_symlink() or not path.is_file():
        raise _damaged(folder, f"{name} {'is a link' if path.is_symlink() else 'is missing'}")
    size, written = path.stat().st_size, expected["bytes"]
    if size != written:
        raise _damaged(folder, f"{name} has {size:,} bytes, {written:,} were written")
    if sha256_of(path) != expected["sha256"]:
        raise _damaged(folder, f"{name} was changed since it was written (its sha256 differs)")


@contextmanager
def _reading(folder: Path, name: str) -> Iterator[None]:
    """What cannot be read is damaged: there may be another checkpoint that can."""
    try:
        yield
    except OSError as error:
        what = error.strerror or str(error)
        raise _damaged(folder, f"{name} cannot be read: {what}") from error


def _read(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / MANIFEST
    if path.is_symlink() or not path.is_file():
        raise _damaged(folder, f"{MANIFEST} {'is a link' if path.is_symlink() else 'is missing'}")
    data = path.read_bytes()
    try:
        manifest = json.loads(data)
        del manifest["sha256"]
        as_written = data == _spelled(manifest)
    except (ValueError, KeyError, TypeError, RecursionError):  # ValueError: no JSON, no UTF-8
        as_written = False
    if not as_written:
        raise _damaged(folder, f"{MANIFEST} was changed since it was written")
    files: dict[str, dict[str, Any]] | None = manifest.get("files")
    if manifest.get("format") != FORMAT or not isinstance(files, dict):
        raise _damaged(folder, f"{MANIFEST} has the unknown format {manifest.get('format')!r}")
    for name, entry in files.items():
        if Path(name).name != name:
            raise _damaged(folder, f"{MANIFEST} names {name!r}, which is no file of the folder")
        if not _tells_bytes(entry):
            raise _damaged(folder, f"{MANIFEST} does not tell the bytes and sha256 of {name}")
    return files


def _tells_bytes(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and type(entry.get("bytes")) is int
        and type(entry.get("sha256")) is str
    )


def _spelled(manifest: dict[str, Any]) -> bytes:
    body = json.dumps(manifest, indent=2, sort_keys=True)
    digest = hashlib.sha256(body.encode()).hexdigest()
    return (json.dumps({**manifest, "sha256": digest}, indent=2, sort_keys=True) + "\n").encode()


def _damaged(folder: Path, message: str) -> DamagedError:
    return DamagedError(
        message,
        where=str(folder),
        fix="copy it anew, or name another one (evaluate: --step N, adapt: start.step=N, train: "
        "--resume FOLDER), or move it away",
    )
