"""The options of a component: its constructor's keyword arguments, checked and described."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticSchemaGenerationError

from mtlcore.components import Component
from mtlcore.errors import (
    Problem,
    RecipeError,
    UserError,
    did_you_mean,
    fix_of_rule,
    is_quoted_number,
    rule_of,
)

# A field may not be called like a member of BaseModel, an option may: fields have a prefix.
PREFIX = "option_"


def option_model(cls: type[Component]) -> type[BaseModel]:
    """A pydantic model of the constructor's arguments, and of the options that its kind has.

    Raises UserError for arguments that a recipe cannot give: untyped, positional, `**kwargs`, of a
    type that is not known or that JSON values do not fill, or called like an option of the kind.
    """
    fields = _common_fields(cls)
    parameters: list[inspect.Parameter] = []
    if cls.__init__ is not object.__init__:
        parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    try:
        hints = typing.get_type_hints(cls.__init__, include_extras=True) if parameters else {}
        for parameter in parameters:
            _check_parameter(cls, parameter)
            name = parameter.name
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[PREFIX + name] = (hints[name], Field(default, alias=name))
        config = ConfigDict(extra="forbid", allow_inf_nan=False)
        return create_model(cls.__name__, __config__=config, **fields)
    except NameError as error:
        raise UserError(
            f"a type of the options of {cls.kind} {cls.name!r} is not known: {error}",
            fix="import it outside of `if TYPE_CHECKING:`",
        ) from error
    except PydanticSchemaGenerationError as error:
        reason, *_ = str(error).splitlines()
        raise UserError(
            f"an option of {cls.kind} {cls.name!r} has a type that no recipe can give: {reason}",
            fix="use numbers, text, booleans, lists or dicts of them, or a pydantic model",
        ) from error


def _check_parameter(cls: type[Component], parameter: inspect.Parameter) -> None:
    name = parameter.name
    option = f"option {name!r} of {cls.kind} {cls.name!r}"
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        raise UserError(
            f"{option} stands for any number of arguments",
            fix="give each option a name and a type: `def __init__(self, *, c: float = 1.0)`",
        )
    if parameter.kind is not parameter.KEYWORD_ONLY or parameter.annotation is parameter.empty:
        raise UserError(
            f"{option} must be a typed keyword-only argument",
            fix=f"write `def __init__(self, *, {name}: float = 1.0)`, with its own type",
        )
    if name in _common_names(cls):
        raise UserError(
            f"{option} must have another name: every {cls.kind} has an option {name!r}",
            fix="call it something else",
        )


def _common_fields(cls: type[Component]) -> dict[str, Any]:
    if cls.common_options is None:
        return {}
    hints = typing.get_type_hints(cls.common_options, include_extras=True)
    return {
        PREFIX + field.name: (hints[field.name], Field(field.default, alias=field.name))
        for field in dataclasses.fields(cls.common_options)
    }


def common_part(cls: type[Component], options: dict[str, Any]) -> Any:
    """Take those of `cls.common_options` out of the checked options; None if none is given."""
    common = cls.common_options
    given = {name: options.pop(name) for name in _common_names(cls) if name in options}
    return common(**given) if common and given else None


def _common_names(cls: type[Component]) -> list[str]:
    common = cls.common_options
    return [field.name for field in dataclasses.fields(common)] if common else []


def check_options(
    cls: type[Component],
    options: Mapping[str, Any],
    where: str,
    others: Iterable[type[Component]] = (),
) -> dict[str, Any]:
    """The given options, checked and converted; all that is wrong with them is one RecipeError.

    others: components that may have an option that this one has not; they are named.
    """
    model = option_model(cls)
    if quoted := list(_quoted_numbers(cls, model, options, where)):
        raise RecipeError(quoted)
    try:
        checked = model.model_validate(dict(options))
    except ValidationError as error:
        found: dict[str, list[Any]] = {}
        for item in error.errors():  # a union of types gives several for one value
            found.setdefault(str(item["loc"][0]), []).append(item)
        raise RecipeError(
            _problem(cls, items[0], where, others)
            if len(items) == 1
            else _no_type_fits(cls, name, items, options[name], where)
            for name, items in found.items()
        ) from None
    return {name.removeprefix(PREFIX): getattr(checked, name) for name in checked.model_fields_set}


def _quoted_numbers(
    cls: type[Component], model: type[BaseModel], options: Mapping[str, Any], where: str
) -> Iterator[Problem]:
    """Numbers that are given as text, which pydantic takes unless it is strict."""
    try:
        model.model_validate(dict(options), strict=True)
    except ValidationError as error:
        for item in error.errors():
            value = item["input"]
            if item["type"] in ("int_type", "float_type") and is_quoted_number(value):
                option = ".".join(str(part) for part in item["loc"])
                message = f"{cls.kind}.{option} must be a number, found {value!r}"
                yield Problem(f"{where}.{item['loc'][0]}", message, f"write {value} without quotes")


def describe_options(cls: type[Component]) -> dict[str, Any]:
    """JSON schema of the options: "properties" with types, ranges and defaults, and "required"."""
    schema = option_model(cls).model_json_schema()
    properties = schema.get("properties", {})
    for described in properties.values():
        described.pop("title", None)
    return {"properties": properties, "required": schema.get("required", [])}


def _problem(
    cls: type[Component], error: Any, where: str, others: Iterable[type[Component]]
) -> Problem:
    """One pydantic error in our words: argument, rule, value found, nearest valid spelling."""
    option = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        if known := _names(cls):
            message = f"{cls.kind}.{option} is not an option of {cls.name!r}"
            fix = did_you_mean(option, known)
        else:
            message, fix = f"{cls.name!r} has no options", f"remove {option}"
        having = [o.name for o in others if option in inspect.signature(o).parameters]
        if having:
            fix += f" ({option} is an option of {', '.join(sorted(having))})"
        return Problem(f"{where}.{option}", message, fix)
    if error["type"] == "missing":
        message = f"{cls.kind}.{option} is required by {cls.name!r}"
        return Problem(where, message, f"add {option}: {_example(cls, option)}")
    rule = rule_of(error, "must")
    message = f"{cls.kind}.{option} {rule}, found {error['input']!r}"
    return Problem(f"{where}.{error['loc'][0]}", message, fix_of_rule(rule))


def _names(cls: type[Component]) -> list[str]:
    return [name.removeprefix(PREFIX) for name in option_model(cls).model_fields]


def _example(cls: type[Component], option: str) -> str:
    """How a value of the option, or of a part of it, is written."""
    kind = describe_options(cls)["properties"].get(option, {}).get("type")
    return {"object": "{NAME: VALUE, ...}", "array": "[VALUE, ...]"}.get(kind, "VALUE")


def _no_type_fits(
    cls: type[Component], option: str, errors: Sequence[Any], value: Any, where: str
) -> Problem:
    first, *others = dict.fromkeys(rule_of(error, "must") for error in errors)
    rule = " or ".join([first, *(other.removeprefix("must be ") for other in others)])
    message = f"{cls.kind}.{option} {rule}, found {value!r}"
    return Problem(f"{where}.{option}", message, fix_of_rule(rule))
