"""Jinja2's sandbox, which also refuses huge results and the printing of what is no value."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.nodes import Extends, FromImport, Import, Include, Template
from jinja2.runtime import Context, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST = 1_000_000
"""Characters that one operation may make, bits of a number, and the largest argument of a call."""
PADDING_FILTERS = ("batch", "center", "format", "indent", "slice", "truncate", "wordwrap")
WIDE = re.compile(r"\d{7}")
TEXT_FILTERS = frozenset([
    "capitalize", "e", "escape", "forceescape", "indent", "lower", "replace", "safe", "string",
    "striptags", "title", "trim", "truncate", "upper", "urlencode", "wordcount", "wordwrap",
])  # fmt: skip
"""Filters that make a text of whatever they get."""
VALUE_FILTER = "_value"
"""Refuses what is no value where a text is made before `finalize` sees it."""
NO_TEXT: set[object] = {object.__repr__, object.__str__}
"""How a thing that has no text of its own makes one: with its address in the memory."""


class TooLargeError(SecurityError):
    """One operation of a template would make or take more than `MOST`."""


class NoValueError(Exception):
    """A template prints what is no value: a method, a function, a class, a generator."""

    def __init__(self, value: Any) -> None:
        self.name = str(getattr(value, "__name__", None) or getattr(value, "name", ""))
        self.is_series = isinstance(value, Iterator)
        self.is_macro = isinstance(value, Macro)
        super().__init__(_kind(value))


class OtherTemplateError(ValueError):
    """A template asks for another one."""


class Sandbox(ImmutableSandboxedEnvironment):
    """No internals of Python, no files, no other templates, and no huge results of one operation.

    What a template makes in many steps is not bounded here: it can still take long.
    """

    intercepted_binops = frozenset(["*", "**", "%"])

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.globals.pop("lipsum")
        for name in PADDING_FILTERS:
            self.filters[name] = _checked(self.filters[name])
        self.filters[VALUE_FILTER] = require_value

    def _parse(self, source: str, *args: Any) -> Template:
        """The tree of a source; OtherTemplateError if it includes, imports or extends another."""
        tree = super()._parse(source, *args)
        for node in tree.find_all((Include, Import, FromImport, Extends)):
            tag = "from" if isinstance(node, FromImport) else type(node).__name__.lower()
            raise OtherTemplateError(f"line {node.lineno}: {{% {tag} %}} reads another template")
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """`left operator right`, unless the result would be huge."""
        if operator == "%" and isinstance(left, str):
            filled = right if isinstance(right, tuple) else (right,)
            _require_narrow(left, filled)
            for value in filled:
                require_value(value)
        elif operator == "*":
            sizes = _size(left) * _repeats(right), _size(right) * _repeats(left)
            unit = "characters" if isinstance(left, str) or isinstance(right, str) else "items"
            _require_small(*sizes, what=f"a result of more than {{}} {unit}")
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _require_small(left.bit_length() * right, what="a number of more than {} bits")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function or method that the template names; numbers it is given are small."""
        if getattr(obj, "__name__", "") != "range":  # that has a limit of its own
            _require_narrow("", (*args, *kwargs.values()))
        return super().call(context, obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format`, its format checked for widths."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _require_narrow(value.__self__, ())
        return wrapped


def _checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that refuses large numbers; what Jinja2 notes at functions stays."""

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        text = args[0] if function.__name__ == "do_format" else ""
        _require_narrow(str(text), (*args[1:], *kwargs.values()))
        return function(*args, **kwargs)

    return checked


def _require_narrow(format: str, arguments: Iterable[Any]) -> None:
    if WIDE.search(format):
        raise TooLargeError(f"a width of more than 6 digits in {format[:40]!r}")
    numbers = (value for value in arguments if isinstance(value, int))
    _require_small(*numbers, what="an argument of more than {}")


def _require_small(*sizes: int, what: str) -> None:
    if max(sizes, default=0) > MOST:
        raise TooLargeError(what.format(MOST))


def require_value(value: Any) -> Any:
    """The value itself; NoValueError if its text would be an address in the memory or the like."""
    makes_text: set[object] = {type(value).__repr__, type(value).__str__}
    code = callable(value) and not isinstance(value, Undefined)
    if code or isinstance(value, Iterator) or makes_text == NO_TEXT:
        raise NoValueError(value)
    return value


def _kind(value: Any) -> str:
    """What a thing that is no value is called."""
    if isinstance(value, Macro):
        return "a macro"
    if isinstance(value, Iterator):
        return "a generator"
    if isinstance(value, type):
        return "a class"
    if hasattr(value, "__self__"):
        return "a method"
    return "a function" if callable(value) else "an object of Python"


def _size(value: Any) -> int:
    """Characters or items of what `*` repeats; 0 of anything else."""
    return len(value) if isinstance(value, str | bytes | list | tuple) else 0


def _repeats(value: Any) -> int:
    return value if isinstance(value, int) else 0
