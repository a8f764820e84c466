"""What is left of a recipe when the keys that are wrong are taken out, for checks to go on with."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError, model_validator

from mtlcore.recipe import ComponentSpec, HeadRecipe, Recipe, SourceRecipe, class_at
from mtlcore.recipe_checks import KeyPath, problems_between_fields
from mtlcore.recipe_validate import missing_keys, take_out

LENIENT: dict[str, Any] = {"on_bad_row": "warn", "max_length": 1_000_000}
"""What stands in for a wrong value whose default would blame the rows."""
READING = ("train", "format", "columns")
"""The keys of a task without which its rows cannot be read as they are meant."""


class _Rest(Recipe):
    """A recipe whose rules between fields were told already."""

    @model_validator(mode="after")
    def _rules_between_fields(self) -> _Rest:
        return self


@dataclass(frozen=True)
class Rest:
    """A recipe without its wrong keys.

    `spoiled` are the key paths of which nothing more can be said: what was taken out, with the
    whole component or head where it was a part of one.
    """

    recipe: Recipe
    spoiled: frozenset[KeyPath] = frozenset()

    def is_spoiled(self, path: KeyPath) -> bool:
        """Whether a key, or one that it lies under, was taken out."""
        return any(path[: len(wrong)] == wrong for wrong in self.spoiled)

    def readable_tasks(self) -> list[str]:
        """The tasks whose rows can be read as they are meant."""
        return [name for name in self.recipe.tasks if not self._is_lost(name)]

    def _is_lost(self, task: str) -> bool:
        whole = {("tasks",), ("tasks", task), *(("tasks", task, key) for key in READING)}
        below = {("tasks", task, key) for key in ("format", "columns")}
        return any(path in whole or path[:3] in below for path in self.spoiled)


def rest_of(data: dict[str, Any], wrong: Iterable[KeyPath]) -> Rest:
    """Take out what is wrong, and whatever does not hold without it, until a recipe is left."""
    rest = copy.deepcopy(data)
    wrong = list(wrong)
    gone = missing_keys(rest, wrong)
    _remove(rest, wrong, gone)
    while True:
        try:
            recipe = _Rest.model_validate(rest)
        except ValidationError as error:
            _remove(rest, [tuple(detail["loc"]) for detail in error.errors()], gone)
            continue
        inconsistent = [
            problem
            for problem in problems_between_fields(recipe)
            if problem.path[:1] not in gone and _must_go(problem.path, recipe)
        ]
        if not inconsistent:
            return Rest(recipe, frozenset(map(_unit, gone)))
        _remove(rest, [problem.path for problem in inconsistent], gone)


def _must_go(path: KeyPath, recipe: Recipe) -> bool:
    """Whether adapters, stages or splits could not be made while this is in the recipe."""
    is_task_of_stage = path[0] == "stages" and len(path) == 4
    is_split = path[0] == "tasks" and path[2:3] == ("split",)
    return path[0] in ("sharing", "start") or is_task_of_stage or is_split or not recipe.tasks


def _remove(data: dict[str, Any], paths: Sequence[KeyPath], gone: set[KeyPath]) -> None:
    """Take out every path, the last items of lists first; of one that is gone, what is around."""
    for path in sorted(paths, key=_order, reverse=True):
        while path in gone and len(path) > 1:
            path = path[:-1]
        gone.add(path)
        parent = _at(data, path[:-1])
        last = path[-1]
        if isinstance(parent, list) and isinstance(last, int):
            # A component keeps its place, or those behind it would lose theirs.
            parent[last : last + 1] = ["?"] if class_at(path) is ComponentSpec else []
        elif isinstance(parent, dict):
            take_out(data, path)
            if class_at(path) is SourceRecipe:  # without a file the rows would be split
                parent[last] = "?"
            elif str(last) in LENIENT and class_at(path) is not None:
                parent[last] = LENIENT[str(last)]


def _at(data: Any, path: KeyPath) -> Any:
    for part in path:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _order(path: KeyPath) -> list[tuple[int, str]]:
    return [(part, "") if isinstance(part, int) else (-1, part) for part in path]


def _unit(path: KeyPath) -> KeyPath:
    """The component, head or file that a key is part of; else the key itself."""
    for end in range(1, len(path)):
        if class_at(path[:end]) in (ComponentSpec, HeadRecipe):
            return path[:end]
    is_file = class_at(path[:-1]) is SourceRecipe and path[-1] == "path"
    return path[:-1] if is_file else path
