"""Jinja2's sandbox, which also refuses numbers that would make a template fill the memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.nodes import Extends, FromImport, Import, Include, Template
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST = 1_000_000
"""Characters that one operation may make, bits of a number, and the largest argument of a call."""
PADDING_FILTERS = ("batch", "center", "format", "indent", "slice", "truncate", "wordwrap")
WIDE = re.compile(r"\d{7}")


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
            _require_narrow(left, right if isinstance(right, tuple) else (right,))
        elif operator == "*":
            _require_small(_size(left) * _repeats(right), _size(right) * _repeats(left))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _require_small(left.bit_length() * right)
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
        raise SecurityError(f"a width of more than 6 digits in {format[:40]!r}")
    _require_small(*(value for value in arguments if isinstance(value, int)))


def _require_small(*sizes: int) -> None:
    if max(sizes, default=0) > MOST:
        raise SecurityError(f"a result or argument of more than {MOST}")


def _size(value: Any) -> int:
    """Characters or items of what `*` repeats; 0 of anything else."""
    return len(value) if isinstance(value, str | bytes | list | tuple) else 0


def _repeats(value: Any) -> int:
    return value if isinstance(value, int) else 0
