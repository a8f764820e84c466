"""What a plugin package tests: the conformance checks, and a run by mtlcore's fixtures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mtlcore_one_of_each import (
    LastRows,
    LossAverages,
    Median,
    NewestFirst,
    RoundRobin,
    SmallWeights,
)

from mtlcore.components import Component
from mtlcore.testing import check_sampler, check_stateful


@pytest.mark.parametrize("cls", [RoundRobin, NewestFirst])
def test_rows_are_planned_alike_whatever_happens(cls: type[Component]) -> None:
    check_sampler(cls)


@pytest.mark.parametrize("cls", [LastRows, LossAverages, SmallWeights])
def test_a_resumed_run_goes_on_exactly(cls: type[Component]) -> None:
    check_stateful(cls)


def test_a_recipe_names_them(tiny_recipe: Callable[..., Path], run_cli: Callable[..., Any]) -> None:
    recipe = tiny_recipe("sampling=round_robin", "overall=median", "training.max_steps=3")
    code, _, errors = run_cli("train", recipe, "regularization=[small_weights]")
    assert code == 0, errors
    lines = (recipe.parent / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    assert [max(step["rows"], key=step["rows"].get) for step in steps] == [*steps[0]["rows"]]
    assert all(step["penalties"]["small_weights"] > 0 for step in steps)


def test_the_median_is_found_by_its_name(plugin_manager: Callable[..., Any]) -> None:
    assert list(plugin_manager(Median).components()) == [("overall", "median")]
