"""Bytes of a file -> rows: JSON lines, JSON, CSV, TSV, parquet and plain text."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from mtlcore.data.fields import kind_of
from mtlcore.errors import counted

Row = dict[str, Any]

WIDE_BOMS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
MOST_LEVELS = 100
"""Rows nested deeper are bad: what walks through them is recursive."""
SPACE = re.compile(r"[ \t\n\r]*")


class DamagedFileError(Exception):
    """The file as a whole cannot be read; `line` where that is known (from 1), `fix` what helps."""

    def __init__(self, message: str, line: int | str | None = None, *, fix: str = "") -> None:
        super().__init__(message)
        self.line = line
        self.fix = fix


@dataclass
class Table:
    """What a reader found: rows, where each begins (text files), places that hold no row.

    A place is a line from 1; in a JSON list "line, row" with the row from 0, as a list may stand on
    one line.
    """

    rows: list[Row] = field(default_factory=list)
    lines: list[int | str] | None = field(default_factory=list)
    columns: tuple[str, ...] | None = None
    """The file's own header; None where each row has its own keys."""
    bad: list[tuple[int | str, str]] = field(default_factory=list)

    def take(self, value: Any, line: int | str, doubled: str | None) -> None:
        """Note a value of a JSON file: a row if it is one; `doubled` is a key that it has twice."""
        if doubled is not None:
            self.bad.append((line, f"the key {doubled!r} stands twice in one object"))
        elif not isinstance(value, dict):
            self.bad.append((line, f"a JSON object is expected, found {kind_of(value)}"))
        elif _is_deeper(value, MOST_LEVELS):
            self.bad.append((line, f"nested more than {MOST_LEVELS} levels deep"))
        else:
            self.add(value, line)

    def add(self, row: Row, line: int | str) -> None:
        """Note one good row of a text file."""
        assert self.lines is not None
        self.rows.append(row)
        self.lines.append(line)


class _Decoder(json.JSONDecoder):
    """Notes a key that stands twice in an object: `json` takes the last value in silence."""

    def __init__(self) -> None:
        super().__init__(object_pairs_hook=self._object)
        self.doubled: str | None = None

    def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
        """One value and where it ends."""
        self.doubled = None
        return super().raw_decode(s, idx)

    def _object(self, pairs: list[tuple[str, Any]]) -> Row:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            self.doubled = next(name for name in names if names.count(name) > 1)
        return found


def read_json_lines(data: bytes) -> Table:
    """One JSON object per line; a BOM, CRLF and blank lines are accepted."""
    table, decoder = Table(), _Decoder()
    # Split at \n only: JSON texts may hold other line separators, such as U+2028.
    for number, line in enumerate(io.BytesIO(_without_bom(data)), start=1):
        if not line.strip():
            continue
        try:
            row = decoder.decode(line.decode().rstrip("\r\n"))
        except UnicodeDecodeError as error:
            table.bad.append((number, _not_utf8(error)))
        except json.JSONDecodeError as error:
            table.bad.append((number, f"broken JSON: {error.msg} (column {error.colno})"))
        except (ValueError, RecursionError) as error:
            table.bad.append((number, f"unreadable JSON: {error}"))
        else:
            table.take(row, number, decoder.doubled)
    return table


def read_json(data: bytes) -> Table:
    """A JSON list of objects; JSON lines under this name are read as what they are."""
    if not data.lstrip(codecs.BOM_UTF8 + b" \t\r\n").startswith(b"["):
        table = read_json_lines(data)
        if table.bad and not table.rows:
            line, why = table.bad[0]
            raise DamagedFileError(
                f"{why}; a list of objects, or one object per line, is expected", line
            )
        return table
    text, table, decoder = _decode(data), Table(), _Decoder()
    position, line = text.index("[") + 1, 1
    start = element = 0
    position = _skip_space(text, position)
    more = text[position : position + 1] != "]"
    while more:
        position = _skip_space(text, position)
        line += text.count("\n", start, position)
        start = position
        try:
            row, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise DamagedFileError(f"broken JSON: {error.msg}", error.lineno) from None
        except (ValueError, RecursionError) as error:
            raise DamagedFileError(f"unreadable JSON: {error}", line) from None
        table.take(row, f"{line}, row {element}", decoder.doubled)
        element += 1
        position = _skip_space(text, position)
        more = text[position : position + 1] == ","
        if not more and text[position : position + 1] != "]":
            raise DamagedFileError("broken JSON: ',' or ']' is missing", _line_of(text, position))
        position += more
    if text[position + 1 :].strip():
        raise DamagedFileError("broken JSON: something follows the list", _line_of(text, position))
    return table


def read_csv(data: bytes, *, delimiter: str = ",") -> Table:
    """Comma-separated values with a header line; every value is a text."""
    text, table = _decode(data), Table()
    with _unlimited_cells():
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        line = 1
        try:
            header = next(reader, None)
            if header is None:
                raise DamagedFileError("the file is empty; a header line is expected")
            doubled = {name for name in header if header.count(name) > 1}
            if doubled:
                names = ", ".join(map(repr, sorted(doubled)))
                raise DamagedFileError(f"the header names {names} more than once", 1)
            if delimiter == "," and len(header) == 1:
                _require_commas(header[0])
            line = reader.line_num + 1
            for cells in reader:
                if len(cells) == len(header):
                    table.add(dict(zip(header, cells, strict=True)), line)
                elif cells:
                    why = f"{counted(len(cells), 'cell')} where the header has {len(header)}"
                    table.bad.append((line, why))
                line = reader.line_num + 1
        except csv.Error as error:
            raise DamagedFileError(
                f"broken row: {error} (is a quote inside it doubled?)", line
            ) from None
    table.columns = tuple(header)
    return table


def _require_commas(only_column: str) -> None:
    """Refuse a file whose one column is several, divided by something else."""
    for separator, said, fix in (
        ("\t", "tabs", "give it the ending .tsv"),
        (";", "';'", "save it with commas"),
    ):
        if separator in only_column:
            raise DamagedFileError(f"this csv is separated by {said}, not by commas", 1, fix=fix)


def read_tsv(data: bytes) -> Table:
    """Tab-separated values with a header line."""
    return read_csv(data, delimiter="\t")


def read_text(data: bytes) -> Table:
    """Plain text: each paragraph, up to a blank line, is a row with the column text."""
    table, lines, first = Table(columns=("text",)), list[str](), 0
    for number, line in enumerate([*_decode(data).split("\n"), ""], start=1):
        if line.strip():
            first = first if lines else number
            lines.append(line.rstrip("\r"))
        elif lines:
            table.add({"text": "\n".join(lines)}, first)
            lines = []
    return table


def read_parquet(data: bytes) -> Table:
    """A parquet file."""
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        content = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
        return Table(content.to_pylist(), None, tuple(content.column_names))
    except (pyarrow.ArrowException, OSError) as error:
        raise DamagedFileError(f"not a whole parquet file: {error}") from None
    except (ValueError, OverflowError) as error:  # a text in no UTF-8, a date after the year 9999
        raise DamagedFileError(f"a value cannot be read: {error}") from None


READERS: dict[str, Callable[[bytes], Table]] = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
    ".txt": read_text,
}
"""The reader of each file-name ending; all but parquet also with .gz after it."""


def _is_deeper(value: Any, levels: int) -> bool:
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return False
    return levels == 0 or any(_is_deeper(inner, levels - 1) for inner in value)


def _without_bom(data: bytes) -> bytes:
    if data.startswith(WIDE_BOMS):
        raise DamagedFileError("the file is UTF-16; save it as UTF-8", 1)
    return data.removeprefix(codecs.BOM_UTF8)


def _decode(data: bytes) -> str:
    data = _without_bom(data)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = 1 + data.count(b"\n", 0, error.start)
        raise DamagedFileError(_not_utf8(error), line) from None


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8 (byte 0x{error.object[error.start]:02x}); save the file as UTF-8"


def _line_of(text: str, position: int) -> int:
    return 1 + text.count("\n", 0, position)


def _skip_space(text: str, position: int) -> int:
    match = SPACE.match(text, position)
    return match.end() if match else position


@contextmanager
def _unlimited_cells() -> Iterator[None]:
    """Lift the csv module's limit of 131,072 characters a cell."""
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)
