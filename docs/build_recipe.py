"""Write docs/recipe.md from the recipe's schema: python docs/build_recipe.py."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mtlcore.recipe
from mtlcore import recipe_aliases
from mtlcore.components import Component
from mtlcore.plugins import PluginManager
from mtlcore.recipe import Recipe

PAGE = Path(__file__).parent / "recipe.md"
INTRODUCTION = """\
# The recipe

<!-- Written by docs/build_recipe.py: change the descriptions in mtlcore/recipe.py, then run it. -->

A recipe is one YAML file: a model, its tasks, and how they are learned together. Only `model` and
`tasks` must be there. Unknown keys are refused with the nearest spelling, and all that is wrong is
said at once, each with file, line and fix.

```yaml
model: {name_or_path: HuggingFaceTB/SmolLM2-135M-Instruct}
tasks:
  sentiment: {train: data/reviews.jsonl, format: classification, metrics: [accuracy, macro_f1]}
  french:
    train: data/en_fr.jsonl
    format: {name: prompt_completion, template: "Translate to French: {{ english }}\\nFrench:"}
    columns: {completion: french}
    metrics: [chrf]
sharing: {shared: 16, own: 8}
weighting: pcgrad
training: {learning_rate: 2e-4, max_steps: 1000}
```

* **Order.** Defaults, then the files named by `extends`, then the file, then `key=value` from the
  command line. Mappings are merged, everything else is replaced; naming another component drops
  the options of the old one. On the command line a component is named first, wherever its name
  stands, and then has its options. `regularization.0.strength=5` reaches into a list.
* **Paths** of data, models and plugins are relative to the file that holds them; on the command
  line first to the current folder, then to the recipe's. `output_dir` is relative to
  the current folder.
* **Components** (kinds of `weighting`, `sampling`, `format` ...) are written as a name or as
  `{name: ..., option: ...}`. Their options are at the end of this page; `mtlcore plugins list`
  shows what is installed, `mtlcore plugins info NAME` one of them.
* **The schema** for editors is printed by `mtlcore schema`; `mtlcore schema --field lora.r` prints
  one key.
"""
# Where a key is found -> the section that describes what stands there.
SECTIONS = (
    ("", "Recipe"),
    ("model", "ModelRecipe"),
    ("tasks.&lt;name&gt;", "TaskRecipe"),
    ("tasks.&lt;name&gt;.train, .eval, .test", "SourceRecipe"),
    ("tasks.&lt;name&gt;.split", "SplitRecipe"),
    ("tasks.&lt;name&gt;.generation", "GenerationRecipe"),
    ("tasks.&lt;name&gt;.head", "HeadRecipe"),
    ("tasks.&lt;name&gt;.cleaning", "CleaningRecipe"),
    ("lora", "LoraRecipe"),
    ("sharing", "SharingRecipe"),
    ("sharing.groups.&lt;name&gt;", "GroupRecipe"),
    ("bottleneck", "BottleneckRecipe"),
    ("stages", "StageRecipe"),
    ("start", "StartRecipe"),
    ("training", "TrainingRecipe"),
    ("plugins", "PluginsRecipe"),
)
NAMES = {
    "ComponentSpec": "component",
    "SourceRecipe": "path or mapping",
    "HeadRecipe": "name or mapping",
    "StartRecipe": "folder or mapping",
}
SIGNS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
LIMITS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def page() -> str:
    """The whole page."""
    schema = Recipe.model_json_schema()
    definitions = {"Recipe": schema, **schema["$defs"]}
    lines = [INTRODUCTION]
    for where, name in SECTIONS:
        keys = _keys(definitions[name], getattr(mtlcore.recipe, name))
        lines += [f"## {where or 'The top level'}", "", *keys, ""]
    lines += ["## Components", "", *_components(), *_other_tools()]
    return "\n".join(lines).rstrip() + "\n"


def _keys(section: Mapping[str, Any], model: type[mtlcore.recipe.Section]) -> Iterator[str]:
    description = section.get("description", "").split("\n")[0]
    yield from (description, "", "| key | value | default | |", "|---|---|---|---|")
    for key, schema in section["properties"].items():
        default = "**required**" if key in section.get("required", ()) else _default(schema)
        words = _words(schema)
        if "anyOf" in schema:  # the schema leaves the limits of an optional number out
            limits = _limits(model.model_fields[key].metadata)
            words = words.replace("number", f"number {limits}") if limits else words
        yield f"| `{key}` | {_cell(words)} | {default} | {_cell(schema['description'])} |"


def _limits(metadata: Sequence[Any]) -> str:
    """`> 0` of annotated-types' Gt(0)."""
    return " ".join(
        f"{sign} {getattr(rule, name):g}"
        for rule in metadata
        for name, sign in LIMITS.items()
        if hasattr(rule, name)
    )


def _components() -> Iterator[str]:
    """Every component that comes with mtlcore, by kind, with its options."""
    manager = PluginManager(environ={"MTLCORE_NO_PLUGINS": "1"})
    manager.discover()
    rows = manager.describe()
    common = {info.kind: _common_options(info.cls) for info in manager.components().values()}
    for kind in sorted({row["kind"] for row in rows}):
        yield from (f"### {kind}", "")
        first = next(row for row in rows if row["kind"] == kind)
        if common[kind]:
            yield from (f"Of every {kind}: {_options(first, common[kind])}.", "")
        yield from ("| name | options | |", "|---|---|---|")
        for row in rows:
            if row["kind"] != kind:
                continue
            names = [name for name in row["options"]["properties"] if name not in common[kind]]
            options = _options(row, names)
            paper = f" Paper: {row['paper']}" if row["paper"] else ""
            yield f"| `{row['name']}` | {_cell(options)} | {_cell(row['summary'] + paper)} |"
        yield ""


def _common_options(cls: type[Component]) -> list[str]:
    """Names of the options that all of a kind have."""
    common = cls.common_options
    return [field.name for field in dataclasses.fields(common)] if common else []


def _options(row: Mapping[str, Any], names: Sequence[str]) -> str:
    properties, required = row["options"]["properties"], row["options"]["required"]
    return "; ".join(
        f"`{name}`, "
        + ("required" if name in required else _default(properties[name]))
        + f" ({_words(properties[name])})"
        for name in names
    )


def _other_tools() -> Iterator[str]:
    yield from ("## Names of other tools", "", "These are read with a note.", "")
    yield from ("| name | whose | read as |", "|---|---|---|")
    for name, (section, ours, whose) in recipe_aliases.RENAMED.items():
        yield f"| `{name}` | {whose} | `{section}.{ours}` |"
    for section, names in recipe_aliases.RENAMED_INSIDE.items():
        for name, (ours, whose) in names.items():
            inside = "tasks.&lt;name&gt;" if section == "tasks" else section
            yield f"| `{name}`, inside {inside} | {whose} | `{ours}` |"
    for name, (ours, whose) in recipe_aliases.RENAMED_TASK_WIDE.items():
        yield f"| `{name}` | {whose} | `{ours}` of every task |"
    yield from ("", "Keys of `training`, `model` and `lora` may stand at the top level, and so may")
    yield "`overlong` and `on_bad_row`, which then go to every task without its own."
    yield from ("", "These change nothing with the value shown, and are refused with another:", "")
    for name, (values, reason) in recipe_aliases.ALREADY_SO.items():
        shown = " or ".join(f"`{_json(value)}`" for value in values)
        yield f"* `{name}`: {shown}; {reason}"
    yield from ("", "These are not supported yet, and are refused unless they are off:", "")
    for name, instead in recipe_aliases.NOT_YET.items():
        yield f"* `{name}`; {instead}"


def _words(schema: Mapping[str, Any]) -> str:
    """A JSON schema in a few words: `whole number ≥ 1, or none`."""
    if "anyOf" in schema:
        kinds = [_words(part) for part in schema["anyOf"]]
        return " or ".join(kinds)
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return NAMES.get(name, "mapping")
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {_words(schema['items'])}"
    if kind == "object":
        inside = schema.get("additionalProperties")
        return f"name → {_words(inside)}" if isinstance(inside, Mapping) else "mapping"
    plain = {"integer": "whole number", "string": "text", "boolean": "true, false", "null": "none"}
    words = [plain.get(kind, kind)]
    words += [f"{sign} {schema[rule]:g}" for rule, sign in SIGNS.items() if rule in schema]
    return " ".join(words)


def _default(schema: Mapping[str, Any]) -> str:
    default = schema.get("default")
    if default is None:
        return "none"
    if isinstance(default, dict) and default:  # a section: its own table has the values
        return "see its table"
    return f"`{_json(default)}`"


def _json(value: Any) -> str:
    if isinstance(value, float) and 0 < abs(value) < 1e-3:
        return f"{value:g}"  # 1e-08, not 0.00000001
    return value if isinstance(value, str) else json.dumps(value)


def _cell(text: str) -> str:
    text = text.replace("|", "\\|").replace("\n", " ")
    return re.sub(r"<(\w[^<>]*)>", r"&lt;\1&gt;", text)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
