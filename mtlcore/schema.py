"""The JSON schema of recipes, for editors and for `mtlcore schema`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mtlcore.errors import UserError, did_you_mean
from mtlcore.recipe import Recipe

Schema = dict[str, Any]
DRAFT = "https://json-schema.org/draft/2020-12/schema"
KIND_OF_SLOT = {
    "weighting": "weighting",
    "sampling": "sampling",
    "regularization": "regularization",
    "auditing": "auditing",
    "format": "format",
    "metrics": "evaluation",
    "rows": "rows",
    "monitoring": "monitoring",
    "replay": "replay",
    "overall": "overall",
}
SPEC = {"$ref": "#/$defs/ComponentSpec"}


def recipe_schema(components: Iterable[Mapping[str, Any]]) -> Schema:
    """The schema (draft 2020-12) of a recipe with the given components.

    `components` are rows with kind, name, summary and options ({"properties", "required"}).
    """
    schema = Recipe.model_json_schema()
    definitions: Schema = schema.pop("$defs")
    definitions["ComponentSpec"] = _component(
        {"name": {"type": "string", "minLength": 1}}, ["name"]
    )
    definitions["ComponentSpec"]["additionalProperties"] = True
    _short_form(definitions, "ComponentSpec")
    for name in ("SourceRecipe", "HeadRecipe", "StartRecipe"):
        _short_form(definitions, name)
    definitions["PluginsRecipe"] = {
        "anyOf": [definitions["PluginsRecipe"], {"type": "array", "items": {"type": "string"}}]
    }
    rows = list(components)
    for slot, kind in KIND_OF_SLOT.items():
        mine = [row for row in rows if row["kind"] == kind]
        if mine:
            definitions[f"component_{slot}"] = _choice(mine)
            holder = schema if slot in schema["properties"] else definitions["TaskRecipe"]
            _point_to(holder["properties"][slot], f"#/$defs/component_{slot}")
    extends = {
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
        "description": "Recipe files that this one is laid over; the later ones win.",
    }
    schema["properties"] = {"extends": extends, **schema["properties"]}
    return {"$schema": DRAFT, **schema, "$defs": definitions}


def part_of_schema(schema: Schema, field: str) -> Schema:
    """The schema of one dotted key: `lora.r`, `tasks.any_name.overlong`, `weighting.pcgrad`."""
    found, gone = schema, ""
    for part in field.split("."):
        inside = _inside(found, schema)
        if part not in inside and "*" not in inside:
            raise UserError(
                f"there is no key {part!r} under {gone}" if gone else f"there is no key {part!r}",
                where="--field",
                fix=did_you_mean(part, inside),
            )
        described = found = inside[part if part in inside else "*"]
        gone = f"{gone}.{part}" if gone else part
        if "$ref" in found:  # a description beside the reference says more than its target's
            found = _target(found["$ref"], schema) | {
                k: v for k, v in described.items() if k[0] != "$"
            }
    used = _references(found, schema)
    return {**found, "$defs": used} if used else found


def _component(properties: Schema, required: list[str]) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _short_form(definitions: Schema, name: str) -> None:
    """Allow plain text in place of the mapping."""
    definitions[name] = {"anyOf": [{"type": "string", "minLength": 1}, definitions[name]]}


def _choice(rows: list[Mapping[str, Any]]) -> Schema:
    """A name, or a mapping with the name and exactly that component's options."""
    forms: list[Schema] = []
    names = [row["name"] for row in rows if not row["options"].get("required")]
    if names:
        forms.append({"enum": names})
    for row in rows:
        options = row["options"]
        properties = {"name": {"const": row["name"]}, **options.get("properties", {})}
        form = _component(properties, ["name", *options.get("required", [])])
        forms.append({"title": row["name"], "description": row.get("summary", ""), **form})
    return {"anyOf": forms}


def _point_to(slot: Schema, reference: str) -> None:
    """Let a slot (a component, a list, or null) refer to its own choice of components."""
    if "items" in slot:
        slot["items"] = {"$ref": reference}
    elif "anyOf" in slot:  # or null
        slot["anyOf"] = [{"$ref": reference}, *slot["anyOf"][1:]]
    else:
        slot["$ref"] = reference


def _target(reference: str, schema: Schema) -> Schema:
    target: Schema = schema["$defs"][reference.rpartition("/")[2]]
    return target


def _inside(schema: Schema, whole: Schema) -> Schema:
    """The keys below a schema; "*" stands for any name, a component's name for its form."""
    found: Schema = {}
    if "$ref" in schema:
        found |= _inside(_target(schema["$ref"], whole), whole)
    for form in schema.get("anyOf", ()):
        name = form.get("properties", {}).get("name", {}).get("const")
        found |= {name: form} if name else _inside(form, whole)
    if "items" in schema:
        found |= _inside(schema["items"], whole)
    found |= schema.get("properties", {})
    if isinstance(schema.get("additionalProperties"), dict):
        found["*"] = schema["additionalProperties"]
    return found


def _references(schema: Any, whole: Schema, found: Schema | None = None) -> Schema:
    """All definitions that a part refers to."""
    found = {} if found is None else found
    if isinstance(schema, dict):
        name = str(schema.get("$ref", "")).rpartition("/")[2]
        if name and name not in found:
            found[name] = whole["$defs"][name]
            _references(found[name], whole, found)
    for item in schema.values() if isinstance(schema, dict) else schema:
        if isinstance(item, dict | list):
            _references(item, whole, found)
    return found
