"""Which files belong to one task, and which split each of them is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mtlcore.data.sources import SAVED_MARKS, file_ending
from mtlcore.errors import Problem, UserError
from mtlcore.recipe import SourceRecipe

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "eval": "eval",
    "evaluation": "eval",
    "dev": "eval",
    "val": "eval",
    "valid": "eval",
    "validation": "eval",
    "test": "test",
    "testing": "test",
}
SHARD = re.compile(r"[-_.]?\d+-of-\d+$")
"""Files of one data set in parts: train-00000-of-00002.parquet."""
DATASET_DICT = "dataset_dict.json"


@dataclass
class TaskFiles:
    """A task by the names of its files: split -> where its rows are."""

    name: str
    sources: dict[str, SourceRecipe] = field(default_factory=dict)


@dataclass(frozen=True)
class _Found:
    """A source with what its name says: the folder of its task, the task's name, the split."""

    folder: Path
    name: str
    split: str
    path: Path
    part: str | None = None
    """The split inside a saved folder; None for a file."""


def tasks_of_files(paths: Sequence[Path], problems: list[Problem]) -> list[TaskFiles]:
    """Group files, and the files in folders, into tasks.

    `reviews_train.jsonl`, `reviews.test.csv`, `reviews/dev.jsonl` and `test/reviews.jsonl` are
    splits of the task `reviews`; a name without a split is that of train rows. Told in `problems`
    and left out: a file that is not there or has no known ending, a task with two files of one
    split or without train rows.
    """
    groups: dict[tuple[Path, str], list[_Found]] = {}
    for found in _all_found(paths, problems):
        groups.setdefault((found.folder, found.name), []).append(found)
    tasks: dict[str, TaskFiles] = {}
    for (folder, name), members in groups.items():
        safe = _free_name(name, folder, tasks)
        try:
            tasks[safe] = TaskFiles(safe, _sources(safe, members))
        except UserError as error:
            problems += error.problems
    return list(tasks.values())


def _all_found(paths: Sequence[Path], problems: list[Problem]) -> Iterator[_Found]:
    seen: set[tuple[Path, str | None]] = set()
    for path in paths:
        try:
            here = list(_found_at(path))
        except UserError as error:
            problems += error.problems
            continue
        for found in here:
            key = (found.path.resolve(), found.part)
            if key not in seen:
                seen.add(key)
                yield found


def _found_at(path: Path) -> Iterator[_Found]:
    if str(path).startswith("~"):  # the shell has left it: it is a name, and not a home folder
        path = path.absolute()
    if path.is_file():
        if not file_ending(path):
            raise UserError(
                f"cannot tell what kind of file {path} is",
                fix="give it a known ending, e.g. .jsonl or .csv",
            )
        yield _by_name(path)
    elif not path.is_dir():
        raise UserError(f"no such file: {path}", fix="name files of rows, or folders with some")
    elif any((path / mark).is_file() for mark in SAVED_MARKS):
        yield from _saved(path)
    else:
        files = [f for f in sorted(path.rglob("*")) if f.is_file() and file_ending(f)]
        files = [f for f in files if f.suffix.lower() != ".txt"]  # notes, more often than rows
        files = [f for f in files if not _is_hidden(f.relative_to(path))]
        if not files:
            raise UserError(f"{path} has no file of rows", fix="name files of rows")
        yield from map(_by_name, files)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _saved(path: Path) -> Iterator[_Found]:
    """The splits of a folder written by `save_to_disk` of `datasets`."""
    file = path / DATASET_DICT
    if not file.is_file():
        yield _Found(path.parent, path.resolve().name, "train", path, None)
        return
    try:
        splits = list(json.loads(file.read_text(encoding="utf-8"))["splits"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} names no splits: {error}", fix="save the data set again") from None
    for split in splits:
        known = SPLIT_WORDS.get(str(split).casefold())
        if known is not None:
            yield _Found(path.parent, path.resolve().name, known, path, str(split))


def _by_name(path: Path) -> _Found:
    """What a file's name says; where it is a split alone, the folder's name is the task's."""
    stem = SHARD.sub("", path.name[: -len(file_ending(path))])
    folder = path.parent
    split, name = _split_and_rest(stem)
    if split is None and (above := SPLIT_WORDS.get(folder.resolve().name.casefold())):
        return _Found(folder.parent, name, above, path)
    if not name:
        return _Found(folder.parent, folder.resolve().name, split or "train", path)
    return _Found(folder, name, split or "train", path)


def _split_and_rest(stem: str) -> tuple[str | None, str]:
    """ "reviews_test" -> ("test", "reviews"): the split stands last, or first."""
    words = re.split(r"([\W_]+)", stem)
    for end, rest in ((-1, words[:-2]), (0, words[2:])):
        split = SPLIT_WORDS.get(words[end].casefold())
        if split is not None:
            return split, "".join(rest)
    return None, stem


def _free_name(name: str, folder: Path, taken: Iterable[str]) -> str:
    """A task's name: letters, digits, _ and -; with the folder's name if two tasks have it."""
    safe = _safe(name)
    if safe in taken:
        safe = _safe(f"{folder.resolve().name}_{name}")
    number, first = 2, safe
    while safe in taken:
        safe, number = f"{first}_{number}", number + 1
    return safe


def _safe(name: str) -> str:
    safe = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_-") or "task"
    return f"{safe}_task" if safe == "shared" else safe  # the adapter of all tasks is called so


def _sources(name: str, members: Sequence[_Found]) -> dict[str, SourceRecipe]:
    """Split -> source, in the order train, eval, test."""
    found: dict[str, SourceRecipe] = {}
    for split in dict.fromkeys(SPLIT_WORDS.values()):
        mine = [member for member in members if member.split == split]
        if len(mine) == 1:
            found[split] = SourceRecipe(path=str(mine[0].path), split=mine[0].part)
        elif mine:
            found[split] = _shards(name, split, mine)
    if "train" not in found:
        raise UserError(
            f"task {name!r} has no train rows: {', '.join(str(m.path) for m in members)}",
            fix="name its train file too, or call the file so that it is not taken for a split",
        )
    return found


def _shards(name: str, split: str, members: Sequence[_Found]) -> SourceRecipe:
    """Parts of one data set in one folder; other files of one split are an error."""
    stems = [member.path.name[: -len(file_ending(member.path))] for member in members]
    folders = {member.path.parent for member in members}
    if len(folders) > 1 or not all(map(SHARD.search, stems)):
        names = ", ".join(str(member.path) for member in members)
        raise UserError(
            f"several files are the {split} rows of task {name!r}: {names}",
            fix="name one of them, or give them names of different tasks or splits",
        )
    return SourceRecipe(
        path=str(folders.pop()), data_files=sorted(member.path.name for member in members)
    )
