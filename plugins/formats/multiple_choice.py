"""Questions whose rows bring their own answers to choose from; the right one is learned."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mtlcore.components import Format, FormatGuess
from mtlcore.data.example import IGNORED, Example, RowError
from mtlcore.data.fields import checked_text, kind_of, text_of, value_of
from mtlcore.data.guessing import Columns, lines_template, quoted
from mtlcore.data.template import RowTemplate
from mtlcore.data.tokens import (
    encode_pair,
    encode_plain,
    encode_prompt,
    encode_question,
    join_space,
)

LISTS = ("options", "choices", "candidates", "answers", "endings", "alternatives")
LABELS = ("label", "answer", "correct", "gold", "answer_index", "correct_answer", "target")
NUMBERED = re.compile(
    r"(option|choice|answer|ending|solution|sol|candidate|alternative)?([a-h]|\d)"
)


class MultipleChoice(Format):
    """Learn the right one of a row's own answers; choose by likelihood.

    options: the columns that hold one answer each; without it the column `options` holds a list.
    template: Jinja2 over the row's columns that makes the prompt, in place of the column `prompt`.
    calibration: Jinja2 for a prompt without the question. An answer is then scored by how much
        likelier the question makes it, log p(answer | prompt) - log p(answer | calibration), which
        takes away the lead of short and common answers (Holtzman et al., Surface Form Competition,
        EMNLP 2021, https://arxiv.org/abs/2104.08315: domain conditional PMI).

    The column `label` names the right answer by its number from 0, its column or its text.
    """

    name = "multiple_choice"
    label_column = "label"

    def __init__(
        self,
        *,
        options: list[str] | None = None,
        template: str | None = None,
        calibration: str | None = None,
    ) -> None:
        if options is not None and len(options) < 2:
            raise ValueError(f"options must name at least 2 columns, found {options}")
        columns = {"label": "the number, column or text of the right answer"}
        if template is None:
            columns["prompt"] = "the question"
        for column in options or ["options"]:
            columns[column] = "an answer" if options else "a list of answers"
        self.columns: Mapping[str, str] = columns
        self._names = options
        self._template = template and RowTemplate(template, option="template")
        self._calibration = calibration and RowTemplate(calibration, option="calibration")

    @classmethod
    def guess(cls, rows: Sequence[Mapping[str, Any]]) -> FormatGuess | None:
        """A list of answers, or a column for each, and a column that says which is right."""
        columns = Columns(rows)
        answers = _answer_columns(columns)
        label = _label_of(rows, columns, answers)
        texts = columns.various(but=[*answers, label])
        if not answers or not label or not texts:
            return None
        one_list = len(answers) == 1
        options: dict[str, Any] = {} if one_list else {"options": answers}
        mapped = {"label": label} | ({"options": answers[0]} if one_list else {})
        if len(texts) == 1:
            mapped["prompt"] = texts[0]
        else:
            options["template"] = lines_template(texts, "answer")
        return FormatGuess(
            0.97,
            f"{quoted(label)} names one of the answers in {quoted(*answers)}",
            options,
            {name: column for name, column in mapped.items() if name != column},
            ("accuracy",),
        )

    def example(self, row: dict[str, Any], *, task: str, index: int, tokenizer: Any) -> Example:
        """The tokens of the question with its right answer, and of every answer."""
        options = self._options(row)
        label = self._label(row, options)
        asked = self.question(row, task=task, index=index, tokenizer=tokenizer)
        input_ids, labels, _ = encode_pair(tokenizer, asked.prompt, options[label])
        return replace(
            asked, target=options[label], input_ids=input_ids, labels=labels, label=label
        )

    def question(self, row: dict[str, Any], *, task: str, index: int, tokenizer: Any) -> Example:
        """The tokens of the question and of every answer."""
        options = self._options(row)
        prompt = self._template.render(row, tokenizer) if self._template else text_of(row, "prompt")
        given = encode_question(tokenizer, prompt)
        plain = self._calibration.render(row, tokenizer) if self._calibration else ""
        return Example(
            task,
            index,
            prompt,
            "",
            given,
            (IGNORED,) * len(given),
            len(given),
            options=options,
            option_ids=tuple(
                tuple(encode_plain(tokenizer, join_space(prompt, option) + option))
                for option in options
            ),
            calibration_ids=tuple(encode_prompt(tokenizer, plain)) if plain else (),
            fields=row,
        )

    def _options(self, row: dict[str, Any]) -> tuple[str, ...]:
        found: Any
        if self._names:
            found = [text_of(row, name) for name in self._names]
        else:
            found = value_of(row, "options")
        is_list = isinstance(found, Sequence) and not isinstance(found, str)
        if not is_list or len(found) < 2:
            what = f"{len(found)}" if is_list else kind_of(found)
            raise RowError(f"column 'options' must be a list of 2 or more, found {what}")
        for number, option in enumerate(found):
            if not isinstance(option, str) or not option.strip():
                raise RowError(f"answer {number} must be a text, found {kind_of(option)}")
            checked_text(option, f"answer {number}")
        if len(set(found)) < len(found):
            raise RowError("two answers are the same")
        return tuple(found)

    def _label(self, row: dict[str, Any], options: tuple[str, ...]) -> int:
        value = value_of(row, "label")
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(options):
            return value
        for names in (self._names or (), options):
            if value in names:
                return list(names).index(value)
        raise RowError(
            f"label {value!r} is none of the {len(options)} answers: give a number from 0 to "
            f"{len(options) - 1}"
            + (f", one of {self._names}," if self._names else "")
            + " or the answer's text"
        )


def _answer_columns(columns: Columns) -> list[str]:
    """The column with lists of answers, or those with one answer each; empty if there are none."""
    lists = [
        column
        for column, values in columns.values.items()
        if all(isinstance(value, list) and _are_answers(value) for value in values)
    ]
    if lists:
        return [columns.named(LISTS, lists) or lists[0]]
    named = columns.named(LABELS)
    told = {value for value in columns.values[named] if isinstance(value, str)} if named else set()
    if len(told) >= 2 and told <= {*columns.texts}:
        return [column for column in columns.texts if column in told]
    numbered: dict[str | None, list[str]] = {}
    for column in columns.texts:
        if found := NUMBERED.fullmatch(re.sub(r"[\W_]+", "", column.casefold())):
            numbered.setdefault(found[1], []).append(column)
    return max((group for group in numbered.values() if len(group) > 1), key=len, default=[])


def _are_answers(value: Sequence[object]) -> bool:
    return len(value) >= 2 and all(isinstance(answer, str) for answer in value)


def _label_of(rows: Sequence[Mapping[str, Any]], columns: Columns, answers: Sequence[str]) -> str:
    """The column whose values all name an answer of their row; "" if there is none."""
    fitting = [
        column
        for column in columns.values
        if answers
        and column not in answers
        and all(_names_an_answer(row, row.get(column), answers) for row in rows)
    ]
    return columns.named(LABELS, fitting) or (fitting[0] if fitting else "")


def _names_an_answer(row: Mapping[str, Any], value: object, answers: Sequence[str]) -> bool:
    texts = row.get(answers[0]) if len(answers) == 1 else [row.get(name) for name in answers]
    if not isinstance(texts, list):
        return False
    if isinstance(value, int) and not isinstance(value, bool):
        return 0 <= value < len(texts)
    return value in texts or (len(answers) > 1 and value in answers)
