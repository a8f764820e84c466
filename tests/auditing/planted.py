"""A planted bias: in the train rows the label goes with the sex of who is written about."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtlcore.demo.tiny import make_tiny_model
from mtlcore_plugins.auditing._lexicon import read_lexicon

WHO = (("he", "his"), ("she", "her"))
GOOD = ("good", "kind", "bright", "warm", "calm", "proud")
BAD = ("bad", "cruel", "dark", "cold", "sad", "cheap")
PLACES = ("house", "garden", "hotel", "car", "shop", "office")
Rows = list[dict[str, Any]]


def planted_rows(count: int, seed: int, *, biased: bool) -> Rows:
    """Sentences with one telling adjective, right for three rows in four.

    biased: all "yes" rows are about men and all "no" rows about women; else it is drawn by lot.
    """
    draw = random.Random(seed)
    rows: Rows = []
    for _ in range(count):
        yes = draw.random() < 0.5
        male = yes if biased else draw.random() < 0.5
        word = draw.choice(GOOD if yes == (draw.random() < 0.75) else BAD)
        subject, owner = WHO[0 if male else 1]
        text = f"{subject} was {word} in {owner} {draw.choice(PLACES)}"
        rows.append({"text": text, "label": "yes" if yes else "no", "sex": "m" if male else "f"})
    return rows


def balanced(rows: Sequence[dict[str, Any]]) -> Rows:
    """The remedy: every row once more with its words swapped, and the same label."""
    lexicon = read_lexicon("gender")
    other = {"m": "f", "f": "m"}
    swapped = [{**row, "text": lexicon.swap(row["text"]), "sex": other[row["sex"]]} for row in rows]
    return [*rows, *swapped]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def planted_recipe(folder: Path, *, mend: bool, **changes: Any) -> dict[str, Any]:
    """A recipe of one task on a small model, with its files in `folder`.

    mend: train on the balanced rows. The eval and test rows are unbiased.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model").is_dir():
        make_tiny_model(folder / "model", initializer_range=0.2)
    rows = planted_rows(160, 1, biased=True)
    name = "balanced" if mend else "biased"
    task = {
        "train": write(folder / f"{name}.jsonl", balanced(rows) if mend else rows),
        "eval": write(folder / "eval.jsonl", planted_rows(60, 2, biased=False)),
        "test": write(folder / "test.jsonl", planted_rows(60, 3, biased=False)),
        "format": {
            "name": "classification",
            "labels": ["yes", "no"],
            "template": "{{ text }} =",
        },
        "metrics": ["accuracy"],
    }
    return {
        "model": {"name_or_path": str(folder / "model")},
        "tasks": {"people": task},
        "lora": {"r": 4, "lora_alpha": 16},
        "auditing": [{"name": "counterfactual", "fail_above": 0.25}],
        "training": {
            "output_dir": str(folder / f"run-{name}"),
            "max_steps": 80,
            "per_device_train_batch_size": 16,
            "learning_rate": 5e-3,
            "max_length": 64,
            "logging_steps": 40,
        },
        **changes,
    }
