"""Hypothesis strategies: damaged copies of good files, and structures that look like recipes."""

from __future__ import annotations

import io
from typing import Any

from hypothesis import strategies as st
from ruamel.yaml import YAML

from mtlcore.recipe import Recipe, TaskRecipe, TrainingRecipe

KEYS = sorted({*Recipe.model_fields, *TaskRecipe.model_fields, *TrainingRecipe.model_fields})
ODD = [
    "",
    "*a",
    "&a ",
    "!!int ",
    "!!python/object ",
    "{",
    "[",
    "]",
    "<<: ",
    "? ",
    "|\n",
    "- ",
    "\t",
]
ODD += ["\0", "\ud7ff", '"\\ud800"', "9" * 400, ".nan", "1e999", "0x", "---\n", "%YAML 9\n", "\x85"]


@st.composite
def damaged(draw: st.DrawFn, good: bytes) -> bytes:
    """The file with some pieces cut out, repeated, or replaced."""
    data = good
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 12)))
        piece = draw(
            st.binary(max_size=8)
            | st.sampled_from([text.encode() for text in ODD])
            | st.just(data[start:end] * 3)
        )
        data = data[:start] + piece + data[end:]
    return data


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.just("a.jsonl")
)


def structures() -> st.SearchStrategy[Any]:
    """Nested mappings and lists under keys that recipes have."""
    keys = st.sampled_from(KEYS) | st.text(max_size=4)
    return st.dictionaries(
        keys,
        st.recursive(
            SCALARS,
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
            max_leaves=12,
        ),
        max_size=5,
    )


def as_yaml(value: Any) -> bytes:
    """The value in YAML."""
    stream = io.BytesIO()
    YAML(typ="safe", pure=True).dump(value, stream)
    return stream.getvalue()
