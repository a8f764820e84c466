"""Texts with a label from a fixed set; the label's word is learned."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mtlcore.components import Format, FormatGuess
from mtlcore.data.example import IGNORED, Example, RowError
from mtlcore.data.fields import kind_of, text_of, value_of
from mtlcore.data.guessing import (
    ABOUT_ROWS,
    MANY,
    Columns,
    lines_template,
    plain_name,
    quoted,
)
from mtlcore.data.special import cut_special, uncut
from mtlcore.data.template import RowTemplate
from mtlcore.data.tokens import encode_plain, encode_prompt, eos_id, join_space
from mtlcore.errors import UserError, counted, did_you_mean

OptionIds = tuple[tuple[int, ...], ...]

LABELS = ("label", "labels", "class", "category", "sentiment", "intent", "topic", "emotion")
MOST_LABELS = 20
"""A label set that is guessed, and that is written into a recipe."""


class Classification(Format):
    """Learn which word of a label set follows a text.

    labels: the words, or a map from the file's values to words ({0: negative, 1: positive});
        without it they are the values found in the train rows, sorted.
    template: Jinja2 over the row's columns that makes the prompt; without it the column `text` and
        a line "Label:".

    A number in the file meets a label written as text, and the other way round: 1, 1.0 and "1" are
    one label. White space at the ends of a label does not count.
    """

    name = "classification"
    label_column = "label"

    def __init__(
        self,
        *,
        labels: list[str | int | float | bool] | dict[str | int | float | bool, str] | None = None,
        template: str | None = None,
    ) -> None:
        needed = {"text": "the text to classify", "label": "its label"}
        self._template = template and RowTemplate(template, option="template")
        if self._template:
            del needed["text"]
        self.columns = needed
        self.options: tuple[str, ...] = ()
        self._index: dict[str, int] = {}
        self._given = labels is not None
        self._origin = "found in the train rows"
        if labels is not None:
            pairs = (
                labels.items() if isinstance(labels, dict) else ((label, label) for label in labels)
            )
            self._set({label_key(value): label_key(word) for value, word in pairs}, len(labels))
        self._option_ids: dict[tuple[int, str], OptionIds] = {}

    @classmethod
    def guess(cls, rows: Sequence[Mapping[str, Any]]) -> FormatGuess | None:
        """A column of labels, by its name or because its few values come again and again."""
        columns = Columns(rows)
        label, score = _label_column(columns)
        texts = columns.various(but=[label])
        if not label or not texts:
            return None
        text = columns.named(["text"], texts) or texts[0]
        options: dict[str, Any] = {}
        words = sorted({label_key(value) for value in columns.values[label]}, key=_numbers_by_size)
        if len(words) <= MOST_LABELS:
            options["labels"] = words
        mapped = {"text": text, "label": label}
        read = [text]
        if text.casefold() != "text" and 1 < len(texts) <= 3:
            read = texts
            options["template"] = lines_template(texts, label)
            del mapped["text"]
        return FormatGuess(
            score - 0.05 * (len(texts) > 1),
            f"{quoted(label)} has {counted(len(words), 'value')} for {counted(len(rows), 'row')}; "
            f"the text is {quoted(*read)}",
            options,
            {name: column for name, column in mapped.items() if name != column},
            ("accuracy", "macro_f1"),
        )

    def prepare(self, rows: Sequence[dict[str, Any]]) -> None:
        """Collect the label set from the train rows, unless the recipe gives it."""
        if self._given:
            return
        found = {label_key(row["label"]) for row in rows if is_label(row.get("label"))} - {""}
        self._take(sorted(found, key=_numbers_by_size))

    def state_dict(self) -> dict[str, Any]:
        """The label set, if it was found in the train rows."""
        return {} if self._given else {"labels": list(self.options)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the label set that a run was trained with."""
        if state and not self._given:
            self._take(state["labels"])
            self._origin = "that the run was trained with"

    def example(self, row: dict[str, Any], *, task: str, index: int, tokenizer: Any) -> Example:
        """The tokens of one row and of every option."""
        label = self._label(row)
        asked = self.question(row, task=task, index=index, tokenizer=tokenizer)
        eos = eos_id(tokenizer)
        learned = asked.option_ids[label]
        if learned[-1] != eos:
            learned = (*learned, eos)
        return replace(
            asked,
            target=self.options[label],
            input_ids=asked.input_ids + learned,
            labels=asked.labels + learned,
            label=label,
        )

    def question(self, row: dict[str, Any], *, task: str, index: int, tokenizer: Any) -> Example:
        """The tokens of the prompt and of every option."""
        prompt = self._template.render(row, tokenizer) if self._template else text_of(row, "text")
        if not prompt.strip():
            raise RowError("the prompt is empty" if self._template else "column 'text' is empty")
        if not self._template:
            prompt += "\nLabel:"
        given = tuple(encode_prompt(tokenizer, prompt))
        return Example(
            task,
            index,
            prompt,
            "",
            given,
            (IGNORED,) * len(given),
            len(given),
            options=self.options,
            option_ids=self._tokens(tokenizer, join_space(prompt, self.options[0])),
            fields=row,
        )

    @property
    def reads_train_rows(self) -> bool:
        """The label set comes from them, unless the recipe gives it."""
        return not self._given

    def _take(self, labels: Sequence[str]) -> None:
        self._set({label: label for label in labels}, len(labels))

    def _set(self, words: dict[str, str], count: int) -> None:
        """Take the map from keys to words; several keys may share a word."""
        self.options = tuple(dict.fromkeys(words.values()))
        self._index = {key: self.options.index(word) for key, word in words.items()}
        problem = ""
        if len(words) != count:
            problem = "two labels are the same but for their type or white space"
        elif not all(self.options):
            problem = "a label is empty"
        elif len(self.options) < 2:
            problem = f"at least 2 labels are needed, found {list(self.options)}"
        if problem:
            where = "labels" if self._given else f"labels {self._origin}"
            raise ValueError(f"{where}: {problem}")

    def _label(self, row: dict[str, Any]) -> int:
        value = value_of(row, "label")
        if not is_label(value):
            raise RowError(f"column 'label' must be a text or a number, found {kind_of(value)}")
        key = uncut(label_key(value))
        if key not in self._index:
            known = ", ".join(repr(known) for known in self._index)
            origin = "" if self._given else f" {self._origin}"
            fix = did_you_mean(key, self._index)
            raise RowError(
                f"label {value!r} is not in the set{origin}: {known}"
                + (f"; {fix}" if fix.startswith("did") else ""),
                option="labels" if self._given else "",
            )
        return self._index[key]

    def _tokens(self, tokenizer: Any, space: str) -> OptionIds:
        """The options' tokens; with the eos only where one would be the beginning of another."""
        cached = self._option_ids.get((id(tokenizer), space))
        if cached is not None:
            return cached
        # what the recipe writes may hold special tokens, what the rows spell is text
        words = [w if self._given else cut_special(tokenizer, w) for w in self.options]
        ids = [tuple(encode_plain(tokenizer, space + word)) for word in words]
        for i, one in enumerate(ids):
            for j, other in enumerate(ids):
                if i != j and one == other:
                    pair = f"{self.options[i]!r} and {self.options[j]!r}"
                    raise UserError(
                        f"the labels {pair} are the same tokens to this model",
                        where="format.labels",
                        fix="map them to other words: labels: {value: word}",
                    )
        starts = any(a != b and b[: len(a)] == a for a in ids for b in ids)
        options = tuple((*option, eos_id(tokenizer)) if starts else option for option in ids)
        self._option_ids[id(tokenizer), space] = options
        return options


def _label_column(columns: Columns) -> tuple[str, float]:
    """The column of the labels and how sure that is; "" if there is none."""
    named = columns.named(LABELS)
    if named is not None and _few(columns, named) <= max(MOST_LABELS, columns.rows // 4):
        return named, 0.95
    various = columns.various()
    for column, values in columns.values.items():
        again = columns.rows / _few(columns, column)
        if plain_name(column) in ABOUT_ROWS or column in various or len(values) < columns.rows:
            continue
        if again >= 3:
            return column, 0.75 if again >= MANY else 0.55
    return "", 0.0


def _few(columns: Columns, column: str) -> float:
    """How many labels a column would have; infinite if its values cannot be labels."""
    values = columns.values[column]
    if not all(is_label(value) and len(str(value)) <= 60 for value in values):
        return float("inf")
    found = len({label_key(value) for value in values} - {""})
    return found if found >= 2 else float("inf")


def is_label(value: object) -> bool:
    """Whether a value of a file can be a label."""
    return isinstance(value, (str, int, float)) and value == value  # NaN is none


def label_key(value: str | int | float) -> str:
    """One spelling for a label, whatever type the file gives it: 1, 1.0 and "1" are "1"."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    key = str(value).strip()
    return re.sub(r"^(-?\d+)\.0+$", r"\1", key)


def _numbers_by_size(key: str) -> tuple[int, float, str]:
    """2 before 10, numbers before words."""
    number = re.fullmatch(r"-?\d+(\.\d+)?", key)
    return (0, float(key), key) if number else (1, 0.0, key)
