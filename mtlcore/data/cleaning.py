"""Normal forms of a row's texts, and which rows say the same as another one."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mtlcore.data.sources import Rows

if TYPE_CHECKING:
    from mtlcore.data.example import Example
    from mtlcore.recipe import CleaningRecipe

Key = tuple[str, ...]


def clean_rows(rows: Rows, cleaning: CleaningRecipe) -> tuple[Rows, frozenset[int]]:
    """The rows with every text in normal form, and the numbers of those that it changed.

    No row is added or taken away, so the numbers and lines stay those of the file.
    """
    if cleaning.unicode == "keep" and not cleaning.whitespace:
        return rows, frozenset()
    changed: list[int] = []
    parts, first = [], 0
    for path, table in rows.parts:
        cleaned = [clean_value(row, cleaning) for row in table.rows]
        pairs = enumerate(zip(table.rows, cleaned, strict=True), start=first)
        changed += [number for number, (before, after) in pairs if before != after]
        parts.append((path, replace(table, rows=cleaned)))
        first += len(cleaned)
    return Rows(rows.path, rows.fingerprint, tuple(parts)), frozenset(changed)


def clean_value(value: Any, cleaning: CleaningRecipe) -> Any:
    """A value of a row with all texts in it cleaned, inside lists and objects too."""
    if isinstance(value, str):
        return clean_text(value, cleaning)
    if isinstance(value, list):
        return [clean_value(item, cleaning) for item in value]
    if isinstance(value, dict):
        return {name: clean_value(item, cleaning) for name, item in value.items()}
    return value


def clean_text(text: str, cleaning: CleaningRecipe) -> str:
    """One text in the normal form that the recipe asks for; cleaning twice changes nothing."""
    if cleaning.unicode != "keep":
        text = unicodedata.normalize(cleaning.unicode, text)
    return " ".join(text.split()) if cleaning.whitespace else text


def normalized(text: str) -> str:
    """The form in which texts are compared: NFKC, no case, runs of white space as one space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def whole_key(example: Example) -> Key:
    """What two duplicates have in common: prompt, answer and the answers to choose from."""
    return (example.prompt, example.target, *example.options)


def text_key(example: Example) -> str:
    """What a row gives away if it is trained on: prompt and choices, or the text without a prompt.

    Up to Unicode form, case, white space and the order of the choices.
    """
    text = normalized(example.prompt if example.prompt_length else example.target)
    return "\x1f".join([text, *sorted(map(normalized, example.options))])


def shown_text(example: Example) -> str:
    """The longest text of a row's columns that its prompt shows, else all of the prompt.

    It is the same whatever template is around it, in the normal form of `text_key`.
    """
    whole = normalized(example.prompt if example.prompt_length else example.target)
    columns = (normalized(value) for value in example.fields.values() if isinstance(value, str))
    return max((text for text in columns if text and text in whole), key=len, default=whole)


def repeated(keys: Mapping[int, Key], numbers: Iterable[int]) -> set[int]:
    """Numbers of rows whose key an earlier row has; a row without a key repeats nothing."""
    seen: set[Key] = set()
    found: set[int] = set()
    for number in numbers:
        key = keys.get(number)
        if key is None:
            continue
        if key in seen:
            found.add(number)
        seen.add(key)
    return found
