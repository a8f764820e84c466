"""A prompt and its completion; only the completion is learned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mtlcore.components import Format, FormatGuess
from mtlcore.data.example import IGNORED, Example
from mtlcore.data.fields import text_of
from mtlcore.data.guessing import MANY, Columns, lines_template, plain_name, quoted, slot
from mtlcore.data.template import RowTemplate
from mtlcore.data.tokens import encode_pair, encode_question

PROMPTS = (
    "prompt", "instruction", "question", "input", "query", "source_text", "src", "problem",
    "article", "document", "dialogue", "text", "sentence",
)  # fmt: skip
COMPLETIONS = (
    "completion", "response", "output", "answer", "target", "summary", "highlights", "translation",
    "corrected", "correction", "solution", "reply", "target_text", "tgt", "definition", "gloss",
)  # fmt: skip
LANGUAGES = {
    "ar": "Arabic", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek", "en": "English",
    "es": "Spanish", "fa": "Persian", "fi": "Finnish", "fr": "French", "he": "Hebrew",
    "hi": "Hindi", "hu": "Hungarian", "it": "Italian", "ja": "Japanese",
    "ko": "Korean", "nl": "Dutch", "no": "Norwegian", "pl": "Polish", "pt": "Portuguese",
    "ro": "Romanian", "ru": "Russian", "sv": "Swedish", "th": "Thai", "tr": "Turkish",
    "uk": "Ukrainian", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip
Pair = tuple[float, str, str, "str | None"]
"""Score, column of the prompt, column of the completion, template of the prompt."""


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
        score, prompt, completion, template = pair
        if columns.rows >= MANY * columns.distinct(completion):
            score -= 0.2  # a label, more likely
        mapped = {"completion": completion} | ({} if template else {"prompt": prompt})
        words = columns.mean_words(completion)
        metric = "exact_match" if words <= 3 else "rouge_l"
        if language(completion):
            metric = "chrf"
        return FormatGuess(
            score,
            f"{quoted(completion)} is learned after {quoted(prompt)}"
            + (
                ""
                if template or score >= 0.5
                else ", the only two columns of texts, in their order"
            ),
            {"template": template} if template else {},
            {name: column for name, column in mapped.items() if name != column},
            (metric,),
        )

    def example(self, row: dict[str, Any], *, task: str, index: int, tokenizer: Any) -> Example:
        """The tokens of one row."""
        prompt = self._text(row)
        target = self._completion.render(row) if self._completion else text_of(row, "completion")
        input_ids, labels, prompt_length = encode_pair(tokenizer, prompt, target)
        return Example(task, index, prompt, target, input_ids, labels, prompt_length, fields=row)

    def question(self, row: dict[str, Any], *, task: str, index: int, tokenizer: Any) -> Example:
        """The tokens of one prompt."""
        prompt = self._text(row)
        ids = encode_question(tokenizer, prompt)
        return Example(task, index, prompt, "", ids, (IGNORED,) * len(ids), len(ids), fields=row)

    def _text(self, row: dict[str, Any]) -> str:
        return self._prompt.render(row) if self._prompt else text_of(row, "prompt")


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
    spoken = [column for column in texts if language(column)]
    if completion and prompt and prompt != completion:
        yield _named_pair(columns, prompt, completion)
    if len(spoken) == 2:
        source, target = spoken
        name = language(target)
        template = f"Translate to {name}: {slot(source)}\n{name}:"
        yield 0.9, source, target, template
    others = columns.various(but=[completion]) if completion else []
    if completion and 1 <= len(others) <= 3:
        template = lines_template(others, completion) if len(others) > 1 else None
        yield 0.78, others[0], completion, template
    if len(texts) == 2:
        yield 0.4, texts[0], texts[1], None


def _named_pair(columns: Columns, prompt: str, completion: str) -> Pair:
    """Both columns have names of the kind; what else belongs to the prompt stands in a template."""
    if (prompt, completion) == ("prompt", "completion"):
        return 0.95, prompt, completion, None
    more = columns.named(["context", "passage", "paragraph", "input"])
    if more is None or more == prompt or not all(isinstance(v, str) for v in columns.values[more]):
        return 0.8, prompt, completion, None
    if more in columns.texts:
        return 0.85, prompt, completion, lines_template([more, prompt], completion)
    ending = lines_template([], completion)  # a column that only some rows have
    optional = f"{{% if row.get({more!r}) %}}{slot(more)}\n{{% endif %}}"
    return 0.85, prompt, completion, f"{slot(prompt)}\n{optional}{ending}"
