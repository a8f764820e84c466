"""What the columns of unknown rows hold, for formats that guess how to read them."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

from mtlcore.data.example import RowError
from mtlcore.data.fields import checked_text

MANY = 10
"""So many rows of one value, on average, are those of a label set."""
FILLED = 0.9
"""A column of texts has one in so many of the rows."""
ABOUT_ROWS = (
    "id", "idx", "index", "uuid", "guid", "key", "source", "url", "uri", "link", "split", "date",
    "year", "time", "timestamp", "created", "lang", "language", "author", "user", "username",
    "license", "file", "filename", "path", "version",
)  # fmt: skip
"""Columns that say where a row comes from, not what it says."""
KEYWORDS = (
    "and", "else", "false", "False", "if", "in", "is", "loop", "none", "None", "not", "or",
    "recursive", "row", "self", "true", "True",
)  # fmt: skip
"""Words that a template cannot use as the name of a column."""


class Columns:
    """The columns of some rows, in order of appearance, with their values that are not null.

    Columns whose names are no valid Unicode are left out: no recipe could name them.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.rows = len(rows)
        self.values: dict[str, list[Any]] = {}
        for row in rows:
            for name, value in row.items():
                if value is not None and _is_text(name):
                    self.values.setdefault(name, []).append(value)

    def named(self, names: Sequence[str], among: Collection[str] | None = None) -> str | None:
        """The column with the earliest of some names, whatever its case, `_`, `-` and spaces."""
        known = {plain_name(column): column for column in reversed([*self.values])}
        for name in names:
            column = known.get(plain_name(name))
            if column is not None and (among is None or column in among):
                return column
        return None

    @cached_property
    def texts(self) -> list[str]:
        """Columns of texts in nearly every row, but those that only say where rows come from."""
        return [
            column
            for column, values in self.values.items()
            if plain_name(column) not in ABOUT_ROWS
            and all(isinstance(value, str) for value in values)
            and sum(not value.isspace() and value != "" for value in values) >= FILLED * self.rows
        ]

    def various(self, but: Collection[str] = ()) -> list[str]:
        """The texts that differ from row to row, without some columns."""
        return [
            column
            for column in self.texts
            if column not in but and 2 * self.distinct(column) > min(self.rows, 20)
        ]

    def distinct(self, column: str) -> int:
        """How many different values a column has."""
        return len(
            {json.dumps(value, sort_keys=True, default=str) for value in self.values[column]}
        )

    def mean_words(self, column: str) -> float:
        """Words per value of a column of texts."""
        values = self.values[column]
        return sum(len(value.split()) for value in values) / max(1, len(values))


def plain_name(column: str) -> str:
    """A column's name for comparisons: no case, only letters and digits."""
    return re.sub(r"[\W_]+", "", column.casefold())


def slot(column: str) -> str:
    """A column in a template: `{{ text }}`, or `{{ row["my text"] }}` for other names."""
    if column.isidentifier() and column.isascii() and column not in KEYWORDS:
        return f"{{{{ {column} }}}}"
    return f"{{{{ row[{json.dumps(column, ensure_ascii=False)}] }}}}"


def lines_template(columns: Sequence[str], answer: str) -> str:
    """A template with a line for each column, `Name: value`, and a last one for the answer."""
    lines = [f"{title(column)}: {slot(column)}".removeprefix(": ") for column in columns]
    return "\n".join([*lines, f"{title(answer) or 'Answer'}:"])


def title(column: str) -> str:
    """A column's name as a word of a prompt; "" if it is none."""
    words = column.replace("_", " ").strip()
    return words[:1].upper() + words[1:] if re.fullmatch(r"[\w ]+", words) else ""


def quoted(*columns: str) -> str:
    """Columns as they are told to the user: 'a', 'b'."""
    return ", ".join(map(repr, columns))


def _is_text(name: str) -> bool:
    try:
        checked_text(name, "a column")
    except RowError:
        return False
    return True
