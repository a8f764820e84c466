"""Where rows come from: files, folders written by `datasets`, and the Hugging Face hub."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from mtlcore.data.readers import READERS, DamagedFileError, Row, Table, read_json
from mtlcore.errors import UserError, did_you_mean, name_one_in, nearest, nearest_file

if TYPE_CHECKING:
    from datasets import Dataset

    from mtlcore.recipe import SourceRecipe

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
SAVED_MARKS = ("dataset_info.json", "state.json", "dataset_dict.json")
PACKED_RATIO = 200  # texts reach 3 to 20, a file of one row a million times 250 to 1000
SMALL = 2**26
GZIP = b"\x1f\x8b"
"""How every gz file begins."""
KINDS = "jsonl, json, csv, tsv, txt (each also .gz), parquet"


@dataclass(frozen=True)
class Rows(Sequence[Row]):
    """The rows of one source, with the place each came from.

    `fingerprint` is the sha256 of the file's bytes, or the one that `datasets` keeps. `bad` holds
    "file:line: why" of lines that are no row.
    """

    path: str
    fingerprint: str
    parts: tuple[tuple[str, Table], ...]
    """Each file and what it held; one part unless the recipe lists `data_files`."""
    _ends: list[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        ends = list(accumulate(len(table.rows) for _, table in self.parts))
        object.__setattr__(self, "_ends", ends)

    def __len__(self) -> int:
        return self._ends[-1]

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        (_, table), place = self._find(index)
        return table.rows[place]

    def __iter__(self) -> Iterator[Row]:
        for _, table in self.parts:
            yield from table.rows

    def line(self, index: int) -> str:
        """ "file:line" for text files, "file, row 3" (from 0) for others."""
        (path, table), place = self._find(index)
        return f"{path}, row {place}" if table.lines is None else f"{path}:{table.lines[place]}"

    @property
    def bad(self) -> list[str]:
        """ "file:line: why" of each line that is no row."""
        return [f"{path}:{line}: {why}" for path, table in self.parts for line, why in table.bad]

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that some row has, in order of appearance."""
        found: dict[str, None] = {}
        for _, table in self.parts:
            if table.columns is not None:
                found.update(dict.fromkeys(table.columns))
                continue
            for row in table.rows:
                if row.keys() - found.keys():
                    found.update(dict.fromkeys(row))
        return tuple(found)

    def _find(self, index: int) -> tuple[tuple[str, Table], int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        part = bisect_right(self._ends, index)
        return self.parts[part], index - (self._ends[part - 1] if part else 0)


def load_rows(source: SourceRecipe, task: str, where: str) -> Rows:
    """Read all rows of a source.

    A local path wins over a hub name. Raises UserError if there is nothing to read or the file as
    a whole is damaged; single lines that are no row are in `Rows.bad`.
    """
    path = Path(source.path).expanduser()
    if path.is_file():
        _refuse_hub_options(source, ("name", "split", "revision", "data_files"), where)
        return _read_files([path], str(path), where)
    if path.is_dir():
        _refuse_hub_options(source, ("name", "revision"), where)
        return _read_folder(source, path, where)
    if "://" in source.path:
        raise UserError(
            f"{source.path} is an address, and rows are not read from addresses",
            where=where,
            fix="download the file and name it here",
        )
    looks_local = path.is_absolute() or source.path.startswith((".", "~")) or file_ending(path)
    # `rows.jsnl` beside rows.jsonl is a misspelt file, and the hub need not be asked for it.
    near = bool(path.suffix) and _has_near_file(path)
    if looks_local or near or not HUB_NAME.fullmatch(source.path):
        raise _missing(path, where)
    return _read_hub(source, task, where)


def read_file(path: Path) -> Rows:
    """Read all rows of one local file."""
    if path.is_dir():
        raise UserError(
            f"{path} is a folder, and one file is read", fix=f"name a file in it: {_files_in(path)}"
        )
    if not path.is_file():
        raise _missing(path, "")
    return _read_files([path], str(path), "")


def rows_of_text(data: bytes, name: str) -> Rows:
    """The rows of JSON lines (or a JSON list) that lie in no file."""
    try:
        return Rows(name, hashlib.sha256(data).hexdigest(), ((name, read_json(data)),))
    except DamagedFileError as error:
        place = name if error.line is None else f"{name}:{error.line}"
        raise UserError(f"{place}: {error}", fix="give one JSON object per line") from None


def _read_files(paths: Sequence[Path], name: str, where: str) -> Rows:
    parts: list[tuple[str, Table]] = []
    digest = hashlib.sha256()
    for path in paths:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}", where=where) from None
        digest.update(data)
        parts.append((str(path), _read_file(path, data, where)))
    return Rows(name, digest.hexdigest(), tuple(parts))


def _read_file(path: Path, data: bytes, where: str) -> Table:
    ending = file_ending(path)
    if not ending:
        raise UserError(
            f"cannot tell what kind of file {path} is",
            where=where,
            fix=f"give it a known ending: {KINDS}",
        )
    if ending.endswith(".gz"):
        if data and not data.startswith(GZIP):
            raise UserError(f"{path} is not gzip", where=where, fix="give it a name without .gz")
        data = _unpacked(path, data, where)
    try:
        return READERS[ending.removesuffix(".gz")](data)
    except DamagedFileError as error:
        place = str(path) if error.line is None else f"{path}:{error.line}"
        fix = error.fix or f"mend the file {path}"
        raise UserError(f"{place}: {error}", where=where, fix=fix) from None


def _unpacked(path: Path, data: bytes, where: str) -> bytes:
    """The content of a gz file; one that was made to fill the memory is a UserError."""
    most = max(PACKED_RATIO * len(data), SMALL)
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            content = stream.read(most + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(
            f"{path} is cut short or damaged: {error}",
            where=where,
            fix="copy or download the file again",
        ) from None
    if len(content) > most:
        raise UserError(
            f"{path} unpacks to more than {PACKED_RATIO} times its size, which rows do not",
            where=where,
            fix="if you trust it, unpack it yourself and name the file that comes out",
        )
    return content


def file_ending(path: Path) -> str:
    """The known ending of a file name, e.g. ".jsonl.gz"; empty if there is none."""
    name = path.name.lower()
    for ending in READERS:
        if name.endswith(ending):
            return ending
        if name.endswith(ending + ".gz") and ending != ".parquet":
            return ending + ".gz"
    return ""


def _files_in(folder: Path) -> str:
    """The first files that can be read, for a message."""
    files = sorted(child.name for child in folder.iterdir() if file_ending(child))
    return ", ".join(files[:10]) or "none is readable"


def _read_folder(source: SourceRecipe, path: Path, where: str) -> Rows:
    if source.data_files is not None:
        _refuse_hub_options(source, ("split",), where)
        return _read_files(_listed_files(source.data_files, path, where), str(path), where)
    if not any((path / mark).is_file() for mark in SAVED_MARKS):
        raise UserError(
            f"{path} is a folder, but not one written by save_to_disk of `datasets`",
            where=where,
            fix=f"name its files in data_files: {_files_in(path)}",
        )
    import datasets

    try:
        content = datasets.load_from_disk(str(path))
    except Exception as error:  # datasets raises what its many readers raise
        raise UserError(
            f"`datasets` cannot read {path}: {_first_line(error)}",
            where=where,
            fix="write the folder again with save_to_disk",
        ) from None
    return _from_dataset(content, source, str(path), where)


def _listed_files(names: str | list[str], folder: Path, where: str) -> list[Path]:
    found: list[Path] = []
    for name in [names] if isinstance(names, str) else names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(
                f"{name!r} is not inside the folder {folder}",
                where=f"{where}.data_files",
                fix="name that folder in `path`, or the file itself",
            )
        try:
            matches = sorted(folder.glob(name)) if "*" in name else [folder / name]
        except ValueError as error:
            raise UserError(
                f"{name!r} is no pattern: {error}",
                where=f"{where}.data_files",
                fix="write *.jsonl, or **/*.jsonl for folders below",
            ) from None
        if not matches or not matches[0].is_file():
            raise _missing(folder / name, f"{where}.data_files")
        found += matches
    return found


def _read_hub(source: SourceRecipe, task: str, where: str) -> Rows:
    import datasets

    try:
        content = datasets.load_dataset(
            source.path,
            source.name,
            split=source.split,
            revision=source.revision,
            data_files=source.data_files,
        )
    except Exception as error:  # network, hub, cache and file errors have no common base
        raise UserError(
            f"task {task!r}: {source.path!r} is neither a local path nor a hub data set that can "
            f"be loaded: {type(error).__name__}: {_first_line(error)}",
            where=where,
            fix=_missing(Path(source.path), where).problem.fix
            + "; without a network, save the rows to a file and name it here: "
            "train: data/rows.jsonl",
        ) from None
    return _from_dataset(content, source, source.path, where)


def _from_dataset(content: Any, source: SourceRecipe, name: str, where: str) -> Rows:
    """The rows of a Dataset, or of the chosen split of a DatasetDict."""
    import datasets

    if isinstance(content, datasets.DatasetDict):
        splits = [str(split) for split in content]
        chosen = source.split or (splits[0] if len(splits) == 1 else None)
        if chosen is None:
            raise UserError(
                f"{name} has several splits: {', '.join(splits)}",
                where=where,
                fix=f"choose one: {{path: {source.path}, split: {splits[0]}}}",
            )
        if chosen not in splits:
            message = f"{name} has no split {chosen!r}"
            raise UserError(message, where=where, fix=did_you_mean(chosen, splits))
        content = content[chosen]
    elif source.split and str(content.split or source.split) != source.split:
        message = f"{name} holds the split {str(content.split)!r}, not {source.split!r}"
        raise UserError(message, where=where, fix="take `split` away")
    data: Dataset = content
    name = f"{name}, split {data.split}" if data.split else name
    table = Table(data.to_list(), None, tuple(data.column_names))
    # The library's own fingerprint: it follows the content through its cache and to the disk.
    return Rows(name, str(data._fingerprint), ((name, table),))


def _refuse_hub_options(source: SourceRecipe, options: Sequence[str], where: str) -> None:
    """An option without an effect is an error: it would be believed to have one."""
    for option in options:
        if getattr(source, option) is not None:
            raise UserError(
                f"`{option}` has no meaning for the local path {source.path}",
                where=f"{where}.{option}",
                fix=f"take `{option}` away",
            )


def _has_near_file(path: Path) -> bool:
    names = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else []
    return any(file_ending(Path(name)) and nearest_file(path.name, [name]) for name in names)


def _missing(path: Path, where: str) -> UserError:
    """The error of a path that is not there, with the nearest name that is."""
    parent = path.parent
    if path.exists():
        what = f"{path} is no file with an end, but a pipe, a socket or a device"
        return UserError(what, where=where, fix="write the rows to a file")
    if path.is_symlink():
        what = f"{path} is a link to {os.readlink(path)}, which does not exist"
        return UserError(what, where=where, fix="mend the link, or name the file itself")
    if parent.is_dir():
        match = nearest_file(path.name, (child.name for child in parent.iterdir()))
        fix = f"did you mean {parent / match}?" if match else name_one_in(parent.resolve())
        return UserError(f"no such file: {path}", where=where, fix=fix)
    while not parent.is_dir() and parent != parent.parent:
        child, parent = parent, parent.parent
    match = nearest(child.name, (other.name for other in parent.iterdir() if other.is_dir()))
    fix = f"did you mean the folder {parent / match}?" if match else name_one_in(path.parent)
    return UserError(f"no such file: {path} (there is no folder {child})", where=where, fix=fix)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
