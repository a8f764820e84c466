"""Plain text; every token is learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mtlcore.components import Format, FormatGuess
from mtlcore.data.example import IGNORED, Example, RowError
from mtlcore.data.fields import text_of
from mtlcore.data.guessing import Columns, quoted
from mtlcore.data.tokens import encode_prompt, eos_id

NAMES = ("text", "content", "document", "body", "article", "story", "code", "passage", "sentence")


class Text(Format):
    """Learn the whole column `text`, from its first predictable token to the eos put after it.

    There is no prompt (`prompt_length` 0). A bos is not learned, nor is the first token where the
    tokenizer puts no bos before it: nothing stands there to predict it from.
    """

    name = "text"
    columns: Mapping[str, str] = {"text": "the text to learn"}

    @classmethod
    def guess(cls, rows: Sequence[Mapping[str, Any]]) -> FormatGuess | None:
        """The only column of texts, or the one that is called so."""
        columns = Columns(rows)
        column = columns.named(NAMES, columns.texts)
        if column is None and len(columns.texts) == 1:
            column = columns.texts[0]
        if column is None:
            return None
        alone = len(columns.texts) == 1
        return FormatGuess(
            0.45 if alone else 0.3,
            f"{quoted(column)} is {'the only' if alone else 'a'} column of texts; all of it is "
            "learned",
            columns={} if column in cls.columns else {"text": column},
        )

    def example(self, row: dict[str, Any], *, task: str, index: int, tokenizer: Any) -> Example:
        """The tokens of one row."""
        text = text_of(row, "text")
        if not text.strip():
            raise RowError("column 'text' is empty: there is nothing to learn from this row")
        ids = (*encode_prompt(tokenizer, text), eos_id(tokenizer))
        return Example(task, index, "", text, ids, (IGNORED, *ids[1:]), 0, fields=row)
