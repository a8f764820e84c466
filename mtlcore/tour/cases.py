"""Rows made for the tour: sentences whose label a small model can learn, with planted faults."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

GOOD = (
    "good", "fine", "great", "lovely", "bright", "warm",
    "kind", "sweet", "calm", "clear", "happy", "proud",
)  # fmt: skip
BAD = (
    "bad", "poor", "awful", "ugly", "dark", "cold",
    "cruel", "bitter", "rough", "vague", "sad", "cheap",
)  # fmt: skip
THINGS = (
    "film", "book", "song", "play", "house", "garden",
    "meal", "hotel", "phone", "car", "lamp", "coat",
)  # fmt: skip
Rows = list[dict[str, Any]]


def opinions(
    count: int,
    seed: int,
    *,
    good: Sequence[str] = GOOD,
    bad: Sequence[str] = BAD,
    things: Sequence[str] = THINGS,
    share: float = 0.5,
    flip: bool = False,
    noise: float = 0.0,
) -> Rows:
    """Sentences with one telling adjective: `share` of them good, labelled yes, the others no.

    flip: the labels the other way round. noise: so many of the labels are wrong.
    """
    draw = random.Random(seed)
    rows: Rows = []
    for _ in range(count):
        is_good = draw.random() < share
        word = draw.choice(good if is_good else bad)
        first, second = draw.sample(things, 2)
        wrong = draw.random() < noise
        rows.append(
            {
                "text": f"the {first} was {word} and the {second} was there",
                "label": "yes" if is_good ^ flip ^ wrong else "no",
                "thing": first,
            }
        )
    return rows


def dialect(count: int, seed: int, *, rare: bool) -> Rows:
    """The sentences of the many, or of the few, who use other words for good and bad."""
    part = slice(6, 8) if rare else slice(0, 6)
    rows = opinions(count, seed, good=GOOD[part], bad=BAD[part])
    return [{**row, "group": "few" if rare else "many"} for row in rows]


def task(
    folder: Path, name: str, train: Iterable[Mapping[str, Any]], **other: Any
) -> dict[str, Any]:
    """A task of a recipe: its rows are written, `eval` and `test` rows may be given in `other`."""
    task: dict[str, Any] = {
        "train": write(folder, f"{name}.train", train),
        "format": {
            "name": "classification",
            "labels": other.pop("labels", ["yes", "no"]),
            "template": other.pop("template", "{{ text }} ="),
        },
        "metrics": ["accuracy"],
        "split": {"eval": 0.0},
    }
    for split in ("eval", "test"):
        if split in other:
            task[split] = write(folder, f"{name}.{split}", other.pop(split))
    return {**task, **other}


def write(folder: Path, name: str, rows: Iterable[Mapping[str, Any]]) -> str:
    """Write rows as JSON lines -> the file's name."""
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path.name
