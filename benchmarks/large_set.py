"""The eight tasks of the larger set, which `python -m mtlcore.demo.build_data --large` makes.

Five are the demo's, with more and longer rows. Where rows come from: mtlcore/demo/ATTRIBUTION.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtlcore.cache import cache_folder
from mtlcore.demo.run import RECIPE
from mtlcore.errors import UserError
from mtlcore.recipe_file import read_part

FILES = {"train": "train", "eval": "dev", "test": "test"}
QUESTION = "{{ passage }}\nQuestion: {{ question }}\nAnswer:"
ADDED: dict[str, dict[str, Any]] = {
    "boolq": {
        "format": {"name": "classification", "labels": ["no", "yes"], "template": QUESTION},
        "columns": {"text": "passage", "label": "label"},
        "metrics": ["accuracy"],
    },
    "siqa": {
        "format": {"name": "multiple_choice", "template": QUESTION, "calibration": "Answer:"},
        "metrics": ["accuracy"],
    },
    "entities": {
        "format": {
            "name": "prompt_completion",
            "template": "List people, organizations and locations: {{ text }}\nEntities:",
        },
        "columns": {"completion": "entities"},
        "metrics": ["rouge_l"],
        "generation": {"max_new_tokens": 96},
    },
}
NAMES = (*read_part(RECIPE)["tasks"], *ADDED)


def tasks(names: Sequence[str] = NAMES, folder: Path | None = None) -> dict[str, dict[str, Any]]:
    """The part `tasks` of a recipe; `folder` holds <task>/<split>.jsonl (default: in the cache)."""
    folder = folder or cache_folder() / "benchmark"
    known = read_part(RECIPE)["tasks"] | ADDED
    found = {}
    for name in names:
        if not (folder / name).is_dir():
            raise UserError(
                f"there is no {folder / name}", fix="python -m mtlcore.demo.build_data --large"
            )
        files = {split: str(folder / name / f"{file}.jsonl") for split, file in FILES.items()}
        found[name] = known[name] | files
    return found
