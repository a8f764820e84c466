"""Whatever bytes come: a recipe, rows or a text, or an error with place; nothing else, soon."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load, save
from transformers import AutoTokenizer

from mtlcore.data.example import RowError
from mtlcore.data.template import RowTemplate
from mtlcore.demo.tiny import TOKENIZER as SMALL
from mtlcore.errors import UserError
from tests.fuzz.inputs import FILES, RECIPE, read_recipe_bytes, read_row_bytes
from tests.fuzz.strategies import as_yaml, damaged, structures

TOKENIZER = AutoTokenizer.from_pretrained(SMALL)
MOST_SECONDS = 20  # of one input, on a busy machine: each takes milliseconds
examples = settings(
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def in_time(function: Callable[..., object], *args: object) -> None:
    started = time.monotonic()
    function(*args)
    assert time.monotonic() - started < MOST_SECONDS


def test_the_seeds_are_good(tmp_path: Path) -> None:
    """Or the damage would be done to what is refused at once."""
    from mtlcore.data.sources import read_file
    from mtlcore.recipe_file import read_recipe

    (tmp_path / "recipe.yaml").write_bytes(RECIPE)
    assert list(read_recipe(tmp_path / "recipe.yaml").recipe.tasks) == ["reviews", "notes"]
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
        rows = read_file(tmp_path / name)
        assert len(rows) > 0
        assert rows.bad == []


@examples
@given(data=st.binary(max_size=200))
def test_any_bytes_as_a_recipe(data: bytes, tmp_path: Path) -> None:
    in_time(read_recipe_bytes, data, tmp_path)


@examples
@given(data=damaged(RECIPE))
def test_a_damaged_recipe(data: bytes, tmp_path: Path) -> None:
    in_time(read_recipe_bytes, data, tmp_path)


@examples
@given(value=structures())
def test_any_structure_as_a_recipe(value: Any, tmp_path: Path) -> None:
    in_time(read_recipe_bytes, as_yaml(value), tmp_path)


@pytest.mark.parametrize("name", FILES)
@examples
@given(data=st.data())
def test_any_and_damaged_bytes_as_rows(name: str, data: st.DataObject, tmp_path: Path) -> None:
    content = data.draw(st.binary(max_size=200) | damaged(FILES[name]))
    in_time(read_row_bytes, name, content, tmp_path)


@examples
@given(
    source=st.text(max_size=30)
    | damaged(b"{% if a %}{{ a | upper }}{% endif %}{{ b * 3 }}").map(
        lambda data: data.decode(errors="replace")
    ),
    row=st.dictionaries(st.sampled_from("ab"), st.none() | st.integers() | st.text(max_size=5)),
)
def test_any_template_on_any_row(source: str, row: dict[str, Any]) -> None:
    try:
        template = RowTemplate(source, option="template")
    except ValueError:
        return
    with suppress(RowError, UserError):
        template.render(row, TOKENIZER).encode()


GOOD_TENSORS = save(
    {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(1, dtype=torch.bfloat16)}
)


@examples
@given(data=st.binary(max_size=100) | damaged(GOOD_TENSORS))
def test_damaged_safetensors_are_refused_or_tensors(data: bytes) -> None:
    """The library's own promise, on which checkpoints rely."""
    try:
        found = load(data)
    except (SafetensorError, json.JSONDecodeError, KeyError):
        return
    assert all(isinstance(tensor, torch.Tensor) for tensor in found.values())
