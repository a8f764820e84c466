"""Paths of a recipe: files are found beside the recipe that names them, or reported."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mtlcore.errors import name_one_in, nearest_file
from mtlcore.recipe_checks import FieldProblem, KeyPath
from mtlcore.recipe_yaml import Document

DATA_ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".gz", ".zst")
LOCAL_STARTS = ("./", "../", "/", "~", ".\\")


def resolve_paths(document: Document) -> list[FieldProblem]:
    """Make the paths of existing files absolute, in place; returns the local ones not found."""
    problems: list[FieldProblem] = []
    for parent, key, path, endings in _all_paths(document.data):
        value = parent[key]
        if not isinstance(value, str) or "://" in value:
            continue
        folders = document.place(path).folders
        try:
            found = _find(value, folders)
        except OSError as error:  # a name that is too long, a folder that may not be looked into
            problems.append(
                FieldProblem(path, f"cannot be read: {error.strerror}", "mend the path")
            )
            continue
        local = value.startswith(LOCAL_STARTS) or value.lower().endswith(endings)
        if found is None and local and path[0] != "start":  # a resumed run needs it no more
            problems.append(FieldProblem(path, f"no such file: {value}", _near(value, folders)))
        elif found is not None:
            parent[key] = str(found)
    return problems + _file_in_the_way(document)


def _file_in_the_way(document: Document) -> list[FieldProblem]:
    """What stands where training.output_dir should be made, relative to where one stands."""
    training = document.data.get("training")
    value = training.get("output_dir") if isinstance(training, dict) else None
    if not isinstance(value, str) or not value:
        return []
    folder = Path(value)
    message = ""
    try:
        files = [path for path in (folder, *folder.parents) if path.is_file()]
        message = f"no folder can be made at {value}: {files[0]} is a file" if files else ""
    except OSError as error:
        message = f"no folder can be made there: {error.strerror}"
    where = ("training", "output_dir")
    return [FieldProblem(where, message, "choose another folder")] if message else []


def _all_paths(data: dict[str, Any]) -> Iterator[tuple[Any, Any, KeyPath, tuple[str, ...]]]:
    """(container, key, key path, endings of local files) of every value that is a path."""
    tasks = data.get("tasks")
    for name, task in tasks.items() if isinstance(tasks, dict) else ():
        for split in ("train", "eval", "test") if isinstance(task, dict) else ():
            source, path = task.get(split), ("tasks", name, split)
            if isinstance(source, str):
                yield task, split, path, DATA_ENDINGS
            elif isinstance(source, dict) and "path" in source:
                yield source, "path", (*path, "path"), DATA_ENDINGS
    model = data.get("model")
    if isinstance(model, dict) and "name_or_path" in model:
        yield model, "name_or_path", ("model", "name_or_path"), ()
    start = data.get("start")
    if isinstance(start, str):
        yield data, "start", ("start",), ()
    elif isinstance(start, dict) and "run" in start:
        yield start, "run", ("start", "run"), ()
    auditing = data.get("auditing")
    for index, spec in enumerate(auditing if isinstance(auditing, list) else ()):
        for option, value in spec.items() if isinstance(spec, dict) else ():
            if isinstance(value, str) and value.startswith(LOCAL_STARTS):
                yield spec, option, ("auditing", index, option), ()
    plugins = data.get("plugins")
    files = plugins.get("load") if isinstance(plugins, dict) else plugins
    for index in range(len(files)) if isinstance(files, list) else ():
        where: KeyPath = ("plugins", "load") if isinstance(plugins, dict) else ("plugins",)
        yield files, index, (*where, index), (".py",)


def _find(value: str, folders: Sequence[Path]) -> Path | None:
    path = Path(value).expanduser()
    for folder in folders:
        if (folder / path).exists():
            return Path(os.path.abspath(folder / path))
    return None


def _near(value: str, folders: Sequence[Path]) -> str:
    """The nearest name in the folder where the file should be."""
    path = Path(value).expanduser()
    looked_in = [(folder / path).parent for folder in folders]
    for folder in looked_in:
        if (folder / path.name).is_symlink():
            return f"it is a link to {os.readlink(folder / path.name)}, which is not there"
        names = [file.name for file in folder.iterdir()] if folder.is_dir() else []
        if name := nearest_file(path.name, names):
            return f"did you mean {str(Path(value).with_name(name))!r}?"
    places = " or ".join(dict.fromkeys(os.path.normpath(folder) for folder in looked_in))
    if any(folder.is_dir() for folder in looked_in):
        return name_one_in(places)
    return f"there is no folder {places}; name a path that is there"
