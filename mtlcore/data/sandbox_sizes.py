"""How large a text or list becomes, known before it is made.

A function that has the name of a method takes what that method takes, so that Python's complaint
about wrong arguments is the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Set, ValuesView
from typing import Any

from jinja2.utils import Namespace

ITEM = 10
"""Characters that an item of a list, a step of a loop and a piece of a text count as."""
MOST_DIGITS = 6
"""Digits of a width or a precision in a format."""
LONGEST_FLOAT = 330
"""Characters of `'%f' % 1e308` and its kin."""
ANY_OBJECT = 100
"""About the characters of a date, and of others that are no text, number or list."""
NUMBERS = re.compile(r"\d+")


def length(value: Any) -> int:
    """Characters of a text, items of a list and its kin; 0 of anything else."""
    return len(value) if isinstance(value, str | bytes | list | tuple | dict | Set) else 0


def written(value: Any, most: float, of_other: Callable[[Any], int] = lambda _: ANY_OBJECT) -> int:
    """About the characters that a value has as a text; what goes beyond `most` is not counted.

    What stands in a list many times counts as often, so a few lists inside each other can have a
    text that no memory holds. Escapes such as `\\n` count as one.
    """
    if isinstance(value, str):
        return len(value)
    size, parts = 0, [value]
    while parts and size <= most:
        part = parts.pop()
        if isinstance(part, str | bytes):
            size += len(part) + 2
        elif isinstance(part, dict):
            size += 2 * len(part) + 2
            parts += [*part.keys(), *part.values()]
        elif isinstance(part, list | tuple | Set | ValuesView):
            size += len(part) + 2
            parts += part
        elif isinstance(part, int):
            size += part.bit_length() // 3 + 2
        elif isinstance(part, float) or part is None:
            size += 5
        elif isinstance(part, Namespace):
            size += 2
            parts.extend(object.__getattribute__(part, "__dict__").values())
        else:
            size += of_other(part)
    return size


def replace(text: str | bytes, old: Any, new: Any, count: int = -1) -> int:
    times = text.count(old)
    return len(text) + (min(times, count) if count >= 0 else times) * (len(new) - len(old))


def pad(text: str | bytes, width: Any, fill: Any = " ") -> int:
    return max(len(text), width) if isinstance(width, int) else 0


def expandtabs(text: Any, tabsize: Any = 8) -> int:
    tabs: int = text.count("\t" if isinstance(text, str) else b"\t")
    return len(text) + tabs * max(int(tabsize), 0)


def encode(text: str, encoding: str = "utf-8", errors: str = "strict") -> int:
    """That of `errors`, which may write out the names of characters; 0 where that does not."""
    return 0 if errors in ("strict", "ignore", "replace") else 100 * len(text)


def join(separator: Any, items: Iterable[Any], most: float, of_other: Callable[[Any], int]) -> int:
    size = -len(separator)
    for item in items:
        size += len(separator) + written(item, most, of_other)
        if size > most:
            break
    return size


def indent(text: str, width: Any = 4, first: bool = False, blank: bool = False) -> int:
    each = len(width) if isinstance(width, str) else width
    return len(text) + (len(text.splitlines()) + 1) * (int(each) + 1)


def fill_in(format: str, values: Any, most: float) -> int:
    """Characters of `format % values`, at most."""
    filled = values if isinstance(values, tuple) else (values,)
    size = len(format) + sum(map(int, NUMBERS.findall(format)))
    if "*" in format:
        size += sum(abs(value) for value in filled if isinstance(value, int))
    for value in filled:
        size += LONGEST_FLOAT if isinstance(value, float) else written(value, most)
    if isinstance(values, Mapping):
        for name, value in values.items():
            each = LONGEST_FLOAT if isinstance(value, float) else written(value, most)
            size += format.count(f"({name})") * each if isinstance(name, str) else 0
    return size
