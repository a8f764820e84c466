"""What a command left in a folder, and the command line itself."""

from __future__ import annotations

from pathlib import Path

from mtlcore.testing.command_line import CommandLine

__all__ = ["CommandLine", "contents"]


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its bytes, every folder with None."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }
