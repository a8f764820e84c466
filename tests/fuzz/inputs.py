"""What the fuzz tests and the fuzzers share: seeds, readers, and the only errors they may raise."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet

from mtlcore.data.sources import load_rows
from mtlcore.errors import Problem, UserError
from mtlcore.recipe import SourceRecipe
from mtlcore.recipe_file import read_recipe

RECIPE = b"""\
# a recipe with a bit of everything
extends: []
model: {name_or_path: some/model, dtype: float32, trust_remote_code: false}
tasks:
  reviews: &reviews
    train: {path: someone/reviews, split: train}
    format: {name: classification, labels: [yes, "no"], template: "{{ text }}\\n"}
    columns: {text: body}
    metrics: [accuracy, {name: macro_f1}]
    loss_weight: 1.5
    split: {eval: 0.1, by: author}
  notes:
    <<: *reviews
    generation: {max_new_tokens: 8, temperature: .5}
lora: {r: 4, lora_alpha: 8, target_modules: [q_proj]}
sharing: {shared: 4, own: 2, groups: {texts: {tasks: [reviews, notes], r: 2}}}
weighting: pcgrad
sampling: {name: temperature, temperature: 2.0}
regularization: [{name: l2_anchor, strength: 1e-2}]
stages:
  - {name: first, tasks: [reviews, notes], max_steps: 5}
training:
  output_dir: runs/x
  learning_rate: 5e-3
plugins: {disable: [nothing]}
"""
JSON_LINES = '{"text": "één", "n": [1, {"a": null}]}\n\n{"text": "\\u2028", "n": -1e5}\r\n'.encode()


def _parquet() -> bytes:
    content = io.BytesIO()
    columns = {"text": ["one", "two", None], "n": [1.5, float("nan"), 2.0], "l": [[1], [], None]}
    pyarrow.parquet.write_table(pyarrow.table(columns), content)
    return content.getvalue()


FILES = {
    "a.jsonl": JSON_LINES,
    "a.jsonl.gz": gzip.compress(JSON_LINES, mtime=0),
    "a.json": b'[{"text": "a", "n": 1},\n {"text": "b", "n": [true]}]\n',
    "a.csv": b'text,n\n"a ""b"", c",1\n\n"two\nlines",2\n',
    "a.tsv": b"text\tn\na\t1\n",
    "a.parquet": _parquet(),
    "a.txt": b"one\ntwo\n\nthree\n",
}
"""A small good file of every kind."""


def read_recipe_bytes(data: bytes, folder: Path) -> None:
    """Read bytes as a recipe: they give one, or a UserError whose message can be shown."""
    path = folder / "recipe.yaml"
    path.write_bytes(data)
    _accept(lambda: read_recipe(path).recipe.model_dump(mode="json"))


def read_row_bytes(name: str, data: bytes, folder: Path) -> None:
    """Read bytes as a file of rows: each row has a place, each line that is none a reason."""
    path = folder / name
    path.write_bytes(data)

    def read() -> None:
        rows = load_rows(SourceRecipe(path=str(path)), "a", "tasks.a.train")
        assert all(isinstance(row, dict) and rows.line(i) for i, row in enumerate(rows))
        assert all(isinstance(name, str) for name in rows.columns)
        assert all(bad.startswith(f"{path}:") for bad in rows.bad)

    _accept(read)


def _accept(read: Callable[[], object]) -> None:
    problems = [Problem("recipe.yaml", "is none")]
    try:
        read()
    except UserError as error:
        problems = error.problems
    assert problems
    assert all(problem.where and problem.message for problem in problems)
