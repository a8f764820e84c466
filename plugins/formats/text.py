"""Plain text; every token is learned."""

from __future__ import annotations

from typing import Any, ClassVar

from mtlcore.components import Format
from mtlcore.data.example import IGNORED, Example, RowError
from mtlcore.data.fields import text_of
from mtlcore.data.tokens import encode_prompt, eos_id


class Text(Format):
    """Learn the whole column `text`, from its first predictable token to the eos put after it.

    There is no prompt (`prompt_length` 0). A bos is not learned, nor is the first token where the
    tokenizer puts no bos before it: nothing stands there to predict it from.
    """

    name = "text"
    columns: ClassVar[dict[str, str]] = {"text": "the text to learn"}

    def example(self, row: dict[str, Any], *, task: str, index: int, tokenizer: Any) -> Example:
        """The tokens of one row."""
        text = text_of(row, "text")
        if not text.strip():
            raise RowError("column 'text' is empty: there is nothing to learn from this row")
        ids = (*encode_prompt(tokenizer, text), eos_id(tokenizer))
        return Example(task, index, "", text, ids, (IGNORED, *ids[1:]), 0, fields=row)
