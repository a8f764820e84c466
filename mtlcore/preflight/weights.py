"""Whether the weight files of a model folder are there and whole, by their headers alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mtlcore.errors import Problem

WHERE = "model.name_or_path"
SAFETENSORS, BINARY = "model.safetensors", "pytorch_model.bin"
LARGEST_HEADER = 100_000_000
"""The limit of the safetensors library."""


def weight_problems(folder: Path) -> Iterator[Problem]:
    """What is missing or cut short; the values themselves are not read.

    Files of torch.save (pytorch_model.bin) have no such header: they must only be there.
    """
    for name in (SAFETENSORS, BINARY):
        if (folder / name).is_file():
            yield from _of_file(folder / name)
            return
        if (folder / f"{name}.index.json").is_file():
            yield from _of_shards(folder / f"{name}.index.json")
            return
    yield Problem(
        WHERE,
        f"{folder} holds no weights: {SAFETENSORS} (or its index) is missing",
        "give a folder made by save_pretrained",
    )


def _of_shards(index: Path) -> Iterator[Problem]:
    try:
        found: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(found.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        yield Problem(WHERE, f"{index} is no index of weights: {error}", "copy the file again")
        return
    for shard in shards:
        path = index.parent / shard
        if not path.is_file():
            yield Problem(WHERE, f"{path} is missing, and {index.name} names it", "copy it again")
            continue
        yield from _of_file(path, [name for name, place in found.items() if place == shard])


def _of_file(path: Path, wanted: list[str] | None = None) -> Iterator[Problem]:
    if path.suffix != ".safetensors":
        if not path.stat().st_size:
            yield Problem(WHERE, f"{path} is empty", "copy the file again")
        return
    try:
        header, size = read_header(path)
    except (OSError, ValueError) as error:
        yield Problem(WHERE, f"{path} is damaged: {error}", "copy the file again")
        return
    actual = path.stat().st_size
    if actual != size:
        what = "cut short" if actual < size else "too long"
        message = f"{path} is {what}: {actual} bytes, and its header describes {size}"
        yield Problem(WHERE, message, "copy the file again")
    missing = [name for name in wanted or () if name not in header]
    if missing:
        message = f"{path} lacks {len(missing)} weights of its index, e.g. {missing[0]}"
        yield Problem(WHERE, message, "copy the file and its index again, from one version")


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and the size in bytes that the file must have.

    https://huggingface.co/docs/safetensors: the length of the header (8 bytes, little-endian), the
    header as JSON, the values. ValueError if it is none.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= LARGEST_HEADER:
            raise ValueError("it has no safetensors header")
        text = file.read(length)
    if len(text) < length:
        raise ValueError("it ends within its header")
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        ends = [int(tensor["data_offsets"][1]) for tensor in header.values()]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise ValueError("its safetensors header cannot be read") from None
    return header, 8 + length + max(ends, default=0)
