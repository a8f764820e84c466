"""Checked access to the columns of one row, for formats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtlcore.data.example import RowError


def kind_of(value: object) -> str:
    """What a value is, in the words of JSON: 'null', 'a number', 'a list'."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return f"the number {value}"
    names: dict[type, str] = {str: "a text", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


def value_of(row: Mapping[str, Any], column: str) -> Any:
    """The row's value in `column`; RowError if the row lacks it."""
    try:
        return row[column]
    except KeyError:
        raise RowError(f"column {column!r} is missing", missing=column) from None


def text_of(row: Mapping[str, Any], column: str) -> str:
    """The row's text in `column`; RowError if it is missing, not a text, or not valid Unicode."""
    value = value_of(row, column)
    if not isinstance(value, str):
        raise RowError(f"column {column!r} must be a text, found {kind_of(value)}")
    return checked_text(value, f"column {column!r}")


def checked_text(text: str, what: str) -> str:
    """`text` itself; RowError if it holds a NUL or half a surrogate pair: a file misread."""
    if "\0" in text:
        raise RowError(f"{what} holds a NUL character at {text.index(chr(0))}: is the file UTF-16?")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            message = f"{what} is not valid Unicode at character {error.start} (half a pair)"
            raise RowError(message) from None
    return text
