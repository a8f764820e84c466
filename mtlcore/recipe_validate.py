"""Plain data -> Recipe, or everything that is wrong with it in the user's words."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from mtlcore.components import WeightSchedule
from mtlcore.errors import did_you_mean, fix_of_rule, nearest, rule_of
from mtlcore.recipe import ComponentSpec, Recipe, Section, class_at
from mtlcore.recipe_checks import FieldProblem, KeyPath
from mtlcore.yaml_text import yaml_value

# values that let the rest of a recipe be checked although a required key is wrong
STAND_INS: dict[str, Any] = {
    "model": {"name_or_path": "?"},
    "name_or_path": "?",
    "tasks": {"?": {"train": "?", "format": "?"}},
    "train": "?",
    "format": "?",
    "name": "?",
    "path": "?",
    "r": 1,
    "run": "?",
}
NAMING_TASKS = ("sharing", "stages", "start")
"""Sections of which nothing can be said while it is not known which tasks there are."""


def validate(data: dict[str, Any]) -> tuple[Recipe | None, list[FieldProblem]]:
    """Check `data`; returns the recipe, or None and all problems."""
    try:
        return Recipe.model_validate(data), []
    except ValidationError as error:
        details = error.errors()
    if details[0]["type"] == "between_fields":
        return None, list(details[0]["ctx"]["problems"])
    problems = _described(details, data)
    wrong = [problem.path for problem in problems]
    meant = missing_keys(data, wrong)
    told = [problem for problem in problems if problem.path not in meant]
    return None, told + _between_the_right_fields(data, [*wrong, *meant])


def _between_the_right_fields(data: dict[str, Any], wrong: Sequence[KeyPath]) -> list[FieldProblem]:
    """Check the rules between fields with everything at `wrong` taken out."""
    rest = copy.deepcopy(data)
    for path in wrong:
        take_out(rest, path)
    try:
        Recipe.model_validate(rest)
    except ValidationError as error:
        details = error.errors()
        if details[0]["type"] == "between_fields":
            found: list[FieldProblem] = details[0]["ctx"]["problems"]
            if ("tasks",) in wrong:
                found = [problem for problem in found if problem.path[0] not in NAMING_TASKS]
            return [
                problem
                for problem in found
                if not any(problem.path[: len(path)] == path for path in wrong)
                and not any(_overlap(read, path) for read in problem.reads for path in wrong)
            ]
    return []


def take_out(data: dict[str, Any], path: KeyPath) -> None:
    """Remove what stands at `path`; a stand-in comes where something is required."""
    parent: Any = data
    for part in path[:-1]:
        try:
            parent = parent[part]
        except (KeyError, IndexError, TypeError):
            return
    last = path[-1]
    if isinstance(parent, list) and isinstance(last, int):
        parent[last] = "?"
    elif isinstance(parent, dict):
        parent.pop(last, None)
        if len(path) == 2 and path[0] == "tasks":  # keep the task's name
            parent[last] = {"train": "?", "format": "?"}
        elif class_at(path) is not None and str(last) in STAND_INS:
            parent[last] = copy.deepcopy(STAND_INS[str(last)])


def _overlap(one: KeyPath, other: KeyPath) -> bool:
    short = min(len(one), len(other))
    return one[:short] == other[:short]


def _described(details: Sequence[ErrorDetails], data: dict[str, Any]) -> list[FieldProblem]:
    """One problem per key path: a union of types gives several errors at one place."""
    problems: dict[KeyPath, FieldProblem] = {}
    for error in details:
        path = _path_in_data(error["loc"], data)
        problem = _problem(error, path)
        if problem.path not in problems:
            problems[problem.path] = problem
        elif error["type"].endswith("_type"):
            first = problems[problem.path]
            wanted = first.message.split(", found")[0]
            wanted = f"{wanted} or {_wanted(error)}"
            message = f"{wanted}, found {_found(error['input'])}"
            problems[problem.path] = FieldProblem(first.path, message, fix_of_rule(wanted))
    return list(problems.values())


def missing_keys(data: dict[str, Any], wrong: Sequence[KeyPath]) -> set[KeyPath]:
    """The keys that are not in `data` because they most likely stand there misspelt."""
    found: set[KeyPath] = set()
    for *parent, last in wrong:
        known = getattr(class_at(parent), "model_fields", {})
        match = None if last in known else nearest(str(last), known)
        if match and _path_in_data((*parent, match), data) != (*parent, match):
            found.add((*parent, match))
    return found


def _path_in_data(loc: Sequence[str | int], data: Any) -> KeyPath:
    """The part of pydantic's location that the user wrote."""
    path: list[str | int] = []
    here = data
    for part in loc:
        inside = isinstance(here, Mapping) and part in here
        if not inside and not (isinstance(here, list) and isinstance(part, int)):
            break
        here = here[part]
        path.append(part)
    return tuple(path)


def _problem(error: ErrorDetails, path: KeyPath) -> FieldProblem:
    kind, value = error["type"], error["input"]
    if kind == "missing":
        name = str(error["loc"][-1])
        message = f"`{name}` is missing"
        if isinstance(value, dict) and path:  # where it would stand
            path = (*path, name)
        fix = _flat_form(value) if name == "name" else ""
        return FieldProblem(path or (name,), message, fix or _how_to_add(path, name))
    if kind == "extra_forbidden":
        return FieldProblem(path, f"unknown key `{path[-1]}`", _right_key(path))
    if value is None:
        return FieldProblem(path, "is empty", "give it a value, or remove the key")
    wanted = _wanted(error)
    message = f"{wanted}, found {_found(value)}"
    fix = fix_of_rule(wanted)
    if kind == "number_type" and isinstance(value, str):
        fix = f"write {value} without quotes"
    if kind == "literal_error":
        match = nearest(str(value), re.findall(r"'([^']*)'", error["ctx"]["expected"]))
        fix = f"did you mean {match!r}?" if match else fix
    return FieldProblem(path, message, fix)


def _how_to_add(path: KeyPath, name: str) -> str:
    """The description of a required field as the fix."""
    parent = class_at(path[:-1])
    if isinstance(parent, type) and issubclass(parent, Section) and name in parent.model_fields:
        return f"add `{name}: ...`: {parent.model_fields[name].description}"
    return f"add `{name}: ...`"


def _flat_form(value: Any) -> str:
    """How `{pcgrad: {every: 5}}` is written: a component's options stand beside its name."""
    options = value.get("options") if isinstance(value, dict) else None
    if not isinstance(options, dict) or len(options) != 1:
        return ""
    [(name, inside)] = options.items()
    if not isinstance(inside, dict) or "name" in inside:
        return ""
    return f"if {name} is the component's name, write {yaml_value({'name': name, **inside})}"


def _right_key(path: KeyPath) -> str:
    """The nearest spelling, or the section in which the key belongs."""
    key = str(path[-1])
    known = class_at(path[:-1]).model_fields
    if match := nearest(key, known):
        return f"did you mean {match!r}?"
    sections: dict[str, Any] = {}
    for name in Recipe.model_fields:
        section = class_at((name, "any")) if name == "tasks" else class_at((name,))
        if section is not ComponentSpec and hasattr(section, "model_fields"):
            sections["tasks.<name>" if name == "tasks" else name] = section.model_fields
    for where, inside in sections.items():
        if key in inside:
            return f"it belongs under `{where}`"
    for where, inside in sections.items() if len(path) == 1 else ():
        if match := nearest(key, inside):
            return f"did you mean `{where}.{match}`?"
    if len(path) == 1 and key in {option.name for option in fields(WeightSchedule)}:
        return f"it is an option of a weighting: `weighting: {{name: ..., {key}: ...}}`"
    return did_you_mean(key, known)


def _wanted(error: ErrorDetails) -> str:
    """What should stand there, without pydantic's jargon."""
    if error["type"] in ("model_type", "model_attributes_type"):
        return "should be " + _mapping_words(str(error.get("ctx", {}).get("class_name", "")))
    return rule_of(error, "should")


def _mapping_words(class_name: str) -> str:
    if class_name == "ComponentSpec":
        return "a component's name, or `{name: ..., option: ...}`"
    if class_name == "SourceRecipe":
        return "a path, or `{path: ...}`"
    if class_name == "HeadRecipe":
        return "`classification`, or `{name: classification, pooling: ...}`"
    if class_name == "StartRecipe":
        return "the folder of a run, or `{run: ...}`"
    return "a mapping of keys to values"


def _found(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
