"""Every component of mtlcore keeps the rules that plugins are checked against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from mtlcore.plugins import ComponentInfo, PluginManager
from mtlcore.testing import check_sampler, check_stateful, check_weighting

CHECKS = {
    "sampling": check_sampler,
    "rows": check_sampler,
    "weighting": check_weighting,
    "regularization": check_stateful,
    "replay": check_stateful,
    "monitoring": check_stateful,
}
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "dwa": {"window": 1},  # so that the few steps hold several windows
    "ewc": {"rows": 4},
    "fixed": {"weights": {"sentiment": 1.0, "spelling": 2.0, "definitions": 0.5}},
    "group_balanced": {"column": "label"},
    "self_paced": {"window": 2},
    "staged": {"begin": {"spelling": 3, "definitions": 8}},
}
"""Of components that have none by default, or that would do nothing in so short a run."""
RECIPES = {"gradient_similarity": ["tasks.spelling.role=auxiliary"]}
VARIANTS: list[tuple[str, str, Mapping[str, Any]]] = [
    ("weighting", "pcgrad", {"scope": "layer"}),
    ("weighting", "imtl_g", {"scope": "layer"}),
    ("weighting", "fairgrad", {"alpha": 1.0}),
    ("weighting", "famo", {"lower_bound": 0.5}),
    ("weighting", "upgrad", {"scope": "factor"}),
    ("weighting", "aligned_mtl", {"scale": "median", "scope": "layer"}),
    ("weighting", "coba", {"window": 3, "first_looks": 2}),
    ("weighting", "gradvac", {"scope": "layer", "beta": 0.5}),
    ("weighting", "mgda", {"normalization": "loss+"}),
    ("weighting", "gradient_similarity", {"rule": "damp", "smoothing": 0.5, "fade": "cosine"}),
    ("weighting", "gradient_similarity", {"main": {"name": "pcgrad", "scope": "layer"}}),
    ("weighting", "gradient_similarity", {"main": "famo", "until": 0.5}),
    ("weighting", "gradient_similarity", {"main": "graddrop"}),
    ("weighting", "self_paced", {"rule": "linear", "window": 1}),
    ("rows", "curriculum", {"difficulty": "loss", "start": 0.2}),
    ("sampling", "task_curriculum", {"order": ["definitions", "spelling", "sentiment"]}),
    ("rows", "stratified", {"by": "cluster", "clusters": 3, "emphasis": 0.5}),
]
"""Options with state or draws of their own."""


def components() -> list[ComponentInfo]:
    manager = PluginManager.load(environ={"MTLCORE_NO_PLUGINS": "1"})
    return [info for info in manager.components().values() if info.kind in CHECKS]


@pytest.mark.parametrize("info", components(), ids=lambda info: f"{info.kind}-{info.name}")
def test_every_component_conforms(info: ComponentInfo) -> None:
    CHECKS[info.kind](info.cls, OPTIONS.get(info.name), recipe=RECIPES.get(info.name, ()))


@pytest.mark.parametrize(("kind", "name", "options"), VARIANTS)
def test_so_do_their_other_forms(kind: str, name: str, options: Mapping[str, Any]) -> None:
    [cls] = [info.cls for info in components() if (info.kind, info.name) == (kind, name)]
    CHECKS[kind](cls, options, recipe=RECIPES.get(name, ()))
