from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from mtlcore.errors import UserError
from mtlcore.plugins import describe_components
from mtlcore.recipe import Recipe
from mtlcore.schema import KIND_OF_SLOT, part_of_schema, recipe_schema

ROWS: list[dict[str, Any]] = [
    {
        "kind": "weighting",
        "name": "pcgrad",
        "summary": "Project.",
        "options": {"properties": {"scope": {"enum": ["model", "layer"]}}, "required": []},
    },
    {
        "kind": "weighting",
        "name": "fixed",
        "summary": "Fixed.",
        "options": {"properties": {"weights": {"type": "object"}}, "required": ["weights"]},
    },
    {
        "kind": "evaluation",
        "name": "accuracy",
        "summary": "Share.",
        "options": {"properties": {}, "required": []},
    },
]


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if "$ref" in part:
            yield part["$ref"]
        part = list(part.values())
    for item in part if isinstance(part, list) else ():
        yield from references(item)


@pytest.mark.parametrize("rows", [[], ROWS])
def test_the_schema_is_json_and_its_references_exist(rows: list[dict[str, Any]]) -> None:
    schema = recipe_schema(rows)
    assert json.loads(json.dumps(schema)) == schema
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    for reference in references(schema):
        assert reference.removeprefix("#/$defs/") in schema["$defs"]


def test_the_schema_has_every_key_and_its_description() -> None:
    schema = recipe_schema([])
    assert set(schema["properties"]) == {"extends", *Recipe.model_fields}
    for key in schema["properties"].values():
        assert key["description"]
    assert schema["required"] == ["model", "tasks"]


def test_slots_offer_the_installed_components_with_their_options() -> None:
    schema = recipe_schema(ROWS)
    assert schema["properties"]["weighting"]["$ref"] == "#/$defs/component_weighting"
    metrics = schema["$defs"]["TaskRecipe"]["properties"]["metrics"]
    assert metrics["items"] == {"$ref": "#/$defs/component_metrics"}
    names, pcgrad, fixed = schema["$defs"]["component_weighting"]["anyOf"]
    assert names == {"enum": ["pcgrad"]}  # `fixed` has an option that must be given
    assert pcgrad["properties"]["scope"] == {"enum": ["model", "layer"]}
    assert pcgrad["additionalProperties"] is False
    assert fixed["required"] == ["name", "weights"]


def test_slots_without_components_take_any_name() -> None:
    schema = recipe_schema(ROWS)
    assert schema["properties"]["sampling"]["$ref"] == "#/$defs/ComponentSpec"


def test_every_slot_exists_in_the_recipe() -> None:
    schema = recipe_schema([{**ROWS[2], "kind": kind} for kind in set(KIND_OF_SLOT.values())])
    assert {f"component_{slot}" for slot in KIND_OF_SLOT} <= set(schema["$defs"])


def test_the_schema_of_what_is_installed() -> None:
    schema = recipe_schema(describe_components())
    forms = schema["$defs"]["component_weighting"]["anyOf"]
    assert "equal" in forms[0]["enum"]


def test_parts_are_found_by_dotted_keys() -> None:
    schema = recipe_schema(ROWS)
    rate = part_of_schema(schema, "training.learning_rate")
    assert (rate["default"], rate["exclusiveMinimum"]) == (2e-4, 0)
    assert part_of_schema(schema, "tasks.anything.overlong")["default"] == "truncate"
    assert part_of_schema(schema, "weighting.pcgrad.scope") == {"enum": ["model", "layer"]}
    assert part_of_schema(schema, "sharing.groups.g.r")["exclusiveMinimum"] == 0
    model = part_of_schema(schema, "model")
    assert model["description"] == "The language model to fine-tune."
    task = part_of_schema(schema, "tasks.a")
    for reference in references(task):
        assert reference.removeprefix("#/$defs/") in task["$defs"]


def test_unknown_parts_name_the_nearest_key() -> None:
    with pytest.raises(UserError, match="'learning_rate'"):
        part_of_schema(recipe_schema(ROWS), "training.learnin_rate")
    with pytest.raises(UserError, match="no key 'x' under lora"):
        part_of_schema(recipe_schema(ROWS), "lora.x")
