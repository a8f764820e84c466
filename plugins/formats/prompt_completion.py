"""A prompt and its completion; only the completion is learned."""

from __future__ import annotations

from typing import Any

from mtlcore.components import Format
from mtlcore.data.example import IGNORED, Example
from mtlcore.data.fields import text_of
from mtlcore.data.template import RowTemplate
from mtlcore.data.tokens import encode_pair, encode_question


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
