"""What is left of a wrong recipe is a recipe, whatever is wrong; only what is wrong is lost."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtlcore.errors import UserError
from mtlcore.recipe import Recipe
from mtlcore.recipe_checks import KeyPath
from mtlcore.recipe_components import named_components
from mtlcore.recipe_rest import Rest, rest_of
from mtlcore.recipe_validate import validate
from mtlcore.run import layout_of

WHOLE: dict[str, Any] = {
    "model": {"name_or_path": "tiny", "dtype": "float32"},
    "tasks": {
        "a": {
            "train": {"path": "a.jsonl"},
            "eval": "b.jsonl",
            "format": {"name": "classification", "labels": ["x", "y"]},
            "columns": {"text": "body"},
            "metrics": ["accuracy", {"name": "macro_f1"}],
            "head": {"name": "classification", "pooling": "mean"},
            "on_bad_row": "skip",
        },
        "train": {"train": "c.jsonl", "format": "text", "split": {"eval": 0.2}},
        "name": {"train": "c.jsonl", "format": "text", "max_rows": 3},
    },
    "lora": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
    "sharing": {"shared": 2, "groups": {"g": {"tasks": ["a", "name"], "r": 2}}, "own": 1},
    "bottleneck": {"shared": 2},
    "start": {"run": "runs/x", "own_from": {"a": "train"}},
    "stages": [{"name": "one", "tasks": ["a", "train"]}, {"name": "two", "tasks": ["name"]}],
    "weighting": {"name": "pcgrad", "scope": "layer"},
    "regularization": ["l2_anchor", {"name": "coral", "strength": 1}],
    "monitoring": ["conflicts"],
    "training": {"learning_rate": 0.1, "eval_steps": 2, "report_to": ["tensorboard"]},
    "plugins": {"load": ["x.py"], "disable": ["y"]},
}


def paths_of(value: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    """Every key path of a recipe."""
    items = enumerate(value) if isinstance(value, list) else ()
    for key, inner in value.items() if isinstance(value, dict) else items:
        yield (*path, key)
        yield from paths_of(inner, (*path, key))


JUNK = st.sampled_from([None, -3, True, "", "what", 1e400, [], {}, [7], {"name": 7}, {"z": {}}])
CHANGES = st.lists(st.tuples(st.sampled_from(sorted(paths_of(WHOLE), key=str)), JUNK), max_size=4)


def changed(changes: list[tuple[KeyPath, Any]]) -> dict[str, Any]:
    """The whole recipe with other values at some paths, as far as these are still there."""
    data = copy.deepcopy(WHOLE)
    for path, value in changes:
        parent: Any = data
        try:
            for part in path[:-1]:
                parent = parent[part]
            parent[path[-1]] = copy.deepcopy(value)
        except (KeyError, IndexError, TypeError):
            continue
    return data


def rest(data: dict[str, Any]) -> Rest:
    recipe, problems = validate(data)
    assert recipe is None
    return rest_of(data, [problem.path for problem in problems])


@settings(max_examples=400)
@given(CHANGES)
def test_the_rest_of_any_recipe_can_be_looked_at(changes: list[tuple[KeyPath, Any]]) -> None:
    data = changed(changes)
    recipe, problems = validate(data)
    if recipe is not None:
        return
    before = copy.deepcopy(data)
    found = rest_of(data, [problem.path for problem in problems])
    assert data == before
    assert isinstance(found.recipe, Recipe)
    assert found.spoiled
    assert set(found.readable_tasks()) <= set(found.recipe.tasks)
    assert named_components(found.recipe)
    with suppress(UserError):  # what a user could mend, and no crash
        layout_of(found.recipe)


def test_the_recipe_itself_is_right() -> None:
    assert validate(WHOLE) == (Recipe.model_validate(WHOLE), [])


@pytest.mark.parametrize(
    ("path", "lost"),
    [
        (("tasks", "a", "train"), ["a"]),
        (("tasks", "a", "train", "path"), ["a"]),
        (("tasks", "a", "format", "name"), ["a"]),
        (("tasks", "a", "columns", "text"), ["a"]),
        (("tasks", "train"), ["train"]),
        (("tasks", "name", "max_rows"), []),
        (("training", "learning_rate"), []),
        (("tasks",), ["?"]),
    ],
)
def test_rows_are_lost_with_the_keys_that_read_them(path: KeyPath, lost: list[str]) -> None:
    found = rest(changed([(path, -3)]))
    assert sorted(set(found.recipe.tasks) - set(found.readable_tasks())) == lost
    if "?" not in lost:
        assert found.recipe.tasks.keys() == WHOLE["tasks"].keys(), "others may name them"


def test_components_keep_their_places_and_other_items_go() -> None:
    found = rest(changed([(("regularization", 0), -3), (("stages", 0, "tasks", 0), -3)]))
    assert [spec.name for spec in found.recipe.regularization] == ["?", "coral"]
    assert found.is_spoiled(("regularization", 0))
    assert not found.is_spoiled(("regularization", 1))
    assert found.recipe.stages[0].tasks == ["train"]


def test_rows_of_a_wrong_policy_or_length_are_not_blamed() -> None:
    found = rest(changed([(("tasks", "a", "on_bad_row"), "what"), (("tasks", "a", "eval"), -3)]))
    assert found.recipe.tasks["a"].on_bad_row == "warn"
    assert found.recipe.tasks["a"].eval is not None, "or eval rows would be held out of train"
    assert found.is_spoiled(("tasks", "a", "eval"))
