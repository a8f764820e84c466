"""A prompt and its completion; only the completion is learned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtlcore.components import Format, FormatGuess
from mtlcore.data.example import IGNORED, Example
from mtlcore.data.fields import text_of
from mtlcore.data.guessing import (
    ABOUT_ROWS,
    MANY,
    Columns,
    lines_template,
    plain_name,
    quoted,
    slot,
)
from mtlcore.data.template import RowTemplate
from mtlcore.data.tokens import encode_pair, encode_question

PROMPTS = (
    "prompt", "instruction", "question", "input", "query", "source_text", "src", "problem",
    "article", "document", "dialogue", "text", "sentence",
)  # fmt: skip
COMPLETIONS = (
    "completion", "response", "output", "answer", "target", "summary", "highlights", "translation",
    "corrected", "correction", "solution", "reply", "target_text", "tgt", "definition", "gloss",
    "chosen",
)  # fmt: skip
CONTEXTS = ("context", "passage", "paragraph")
LAST = 0.4
"""The score of two columns of texts of which nothing is known."""
LANGUAGES = {
    "ar": "Arabic", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek", "en": "English",
    "es": "Spanish", "fa": "Persian", "fi": "Finnish", "fr": "French", "he": "Hebrew",
    "hi": "Hindi", "hu": "Hungarian", "it": "Italian", "ja": "Japanese",
    "ko": "Korean", "nl": "Dutch", "no": "Norwegian", "pl": "Polish", "pt": "Portuguese",
    "ro": "Romanian", "ru": "Russian", "sv": "Swedish", "th": "Thai", "tr": "Turkish",
    "uk": "Ukrainian", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """Two columns, or parts of columns, that belong together; templates where one is not enough."""

    score: float
    prompt: str
    completion: str
    template: str | None = None
    completion_template: str | None = None
    metric: str | None = None


class PromptCompletion(Format):
    """Learn the column `completion` after the column `prompt` (TRL's prompt-completion rows).

    template: Jinja2 over the row's columns that makes the prompt, in place of the column.
    completion_template: the same for the completion.
    """

    name = "prompt_completion"

    def __init__(
        self, *, template: str | None = None, completion_template: str | None = None
    ) -> None:
        needed = {"prompt": "what the model is given", "completion": "the text to learn after it"}
        self._prompt = template and RowTemplate(template, option="template")
        self._completion = completion_template and RowTemplate(
            completion_template, option="completion_template"
        )
        if self._prompt:
            del needed["prompt"]
        if self._completion:
            del needed["completion"]
        self.columns = needed

    @classmethod
    def guess(cls, rows: Sequence[Mapping[str, Any]]) -> FormatGuess | None:
        """Two columns of texts, by their names, their languages, or as the only two."""
        columns = Columns(rows)
        pair = next(_pairs(columns), None)
        if pair is None:
            return None
        options = {"template": pair.template, "completion_template": pair.completion_template}
        mapped = {} if pair.completion_template else {"completion": pair.completion}
        mapped |= {} if pair.template else {"prompt": pair.prompt}
        return FormatGuess(
            pair.score,
            f"{quoted(pair.completion)} is learned after {quoted(pair.prompt)}"
            + (", the only two columns of texts, in their order" if pair.score <= LAST else ""),
            {name: value for name, value in options.items() if value},
            {name: column for name, column in mapped.items() if name != column},
            (pair.metric or _metric(columns, pair.completion),),
        )

    def example(self, row: dict[str, Any], *, task: str, index: int, tokenizer: Any) -> Example:
        """The tokens of one row."""
        prompt = self._text(row, tokenizer)
        if self._completion:
            target = self._completion.render(row, tokenizer)
        else:
            target = text_of(row, "completion")
        input_ids, labels, prompt_length = encode_pair(tokenizer, prompt, target)
        return Example(task, index, prompt, target, input_ids, labels, prompt_length, fields=row)

    def question(self, row: dict[str, Any], *, task: str, index: int, tokenizer: Any) -> Example:
        """The tokens of one prompt."""
        prompt = self._text(row, tokenizer)
        ids = encode_question(tokenizer, prompt)
        return Example(task, index, prompt, "", ids, (IGNORED,) * len(ids), len(ids), fields=row)

    def _text(self, row: dict[str, Any], tokenizer: Any) -> str:
        return self._prompt.render(row, tokenizer) if self._prompt else text_of(row, "prompt")


def language(column: str) -> str:
    """The language that a column is named after, by its English name or code; "" if none."""
    name = plain_name(column)
    if name in LANGUAGES:
        return LANGUAGES[name]
    return name.capitalize() if name.capitalize() in LANGUAGES.values() else ""


def _pairs(columns: Columns) -> Iterator[Pair]:
    """Prompt and completion, the likeliest first."""
    texts = columns.texts
    prompt = columns.named(PROMPTS, texts)
    completion = columns.named(COMPLETIONS, texts)
    if completion and prompt and prompt != completion:
        yield _named_pair(columns, prompt, completion)
    yield from _translations(columns)
    answers = columns.named(["answers"])
    if prompt and answers and all(map(_has_texts, columns.values[answers])):
        taken = f"{{{{ row[{answers!r}]['text'][0] }}}}"
        read = [*filter(None, [columns.named(CONTEXTS, texts)]), prompt]
        template = lines_template(read, "answer")
        yield Pair(0.85, prompt, answers, template, taken, "exact_match")
    others = columns.various(but=[completion]) if completion else []
    if completion and 1 <= len(others) <= 3:
        lines = lines_template(others, completion) if len(others) > 1 else None
        yield Pair(_less_for_labels(columns, completion, 0.78), others[0], completion, lines)
    unknown = [c for c in columns.values if c not in texts and plain_name(c) not in ABOUT_ROWS]
    if len(texts) == 2 and not unknown:
        yield Pair(_less_for_labels(columns, texts[1], LAST), texts[0], texts[1])


def _translations(columns: Columns) -> Iterator[Pair]:
    """Two columns named after languages, or one that holds an object of two languages."""
    spoken = [column for column in columns.texts if language(column)]
    if len(spoken) == 2:
        source, target = spoken
        yield Pair(0.9, source, target, _translate(slot(source), target), metric="chrf")
    for column, values in columns.values.items():
        keys = [*values[0]] if values and isinstance(values[0], dict) else []
        alike = len(keys) == 2 and all(isinstance(v, dict) and [*v] == keys for v in values)
        if alike and all(map(language, keys)):
            source, target = (f"{{{{ row[{column!r}][{key!r}] }}}}" for key in keys)
            template = _translate(source, keys[1])
            yield Pair(0.9, column, column, template, target, "chrf")


def _translate(source: str, target: str) -> str:
    return f"Translate to {language(target)}: {source}\n{language(target)}:"


def _has_texts(answers: object) -> bool:
    """Whether it is an object as in SQuAD: {"text": ["Paris"], ...}."""
    texts = answers.get("text") if isinstance(answers, dict) else None
    return isinstance(texts, list) and bool(texts) and isinstance(texts[0], str)


def _less_for_labels(columns: Columns, completion: str, score: float) -> float:
    """Few completions that come again and again are labels, more likely."""
    many = columns.rows >= MANY * columns.distinct(completion)
    return round(score - 0.2 * many, 2)


def _metric(columns: Columns, completion: str) -> str:
    return "exact_match" if columns.mean_words(completion) <= 3 else "rouge_l"


def _named_pair(columns: Columns, prompt: str, completion: str) -> Pair:
    """Both columns have names of the kind; what else belongs to the prompt stands in a template."""
    if (prompt, completion) == ("prompt", "completion"):
        return Pair(0.95, prompt, completion)
    score = _less_for_labels(columns, completion, 0.85)
    more = columns.named([*CONTEXTS, "input"])
    if more is None or more == prompt or not all(isinstance(v, str) for v in columns.values[more]):
        return Pair(round(score - 0.05, 2), prompt, completion)
    if more in columns.texts:
        return Pair(score, prompt, completion, lines_template([more, prompt], completion))
    ending = lines_template([], completion)  # a column that only some rows have
    optional = f"{{% if row.get({more!r}) %}}{slot(more)}\n{{% endif %}}"
    return Pair(score, prompt, completion, f"{slot(prompt)}\n{optional}{ending}")
