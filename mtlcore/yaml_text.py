"""Values as YAML on one line, for a recipe that is written and for what an error proposes."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

SIMPLE = re.compile(r"[A-Za-z][A-Za-z0-9_]*([./-][A-Za-z0-9_]+)*")
"""A text that needs no quotes, unless it is one of `WORDS`."""
WORDS = frozenset(("true", "false", "null", "yes", "no", "on", "off", "y", "n"))


def yaml_value(value: Any) -> str:
    """A value on one line of YAML; texts that could be anything else stand in double quotes."""
    yaml = YAML()
    yaml.default_flow_style = True
    yaml.width = sys.maxsize
    stream = io.StringIO()
    yaml.dump(_quoted(value), stream)
    return stream.getvalue().removesuffix("\n").removesuffix("\n...")


def _quoted(value: Any) -> Any:
    if isinstance(value, str):
        simple = SIMPLE.fullmatch(value) and value.casefold() not in WORDS
        return value if simple else DoubleQuotedScalarString(value)
    if isinstance(value, Mapping):
        return {_quoted(key): _quoted(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_quoted(inner) for inner in value]
    return value
