"""Texts of users on their way to a terminal."""

from __future__ import annotations


def plain(text: str) -> str:
    """Without control characters, which a terminal would obey; line ends stay."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
