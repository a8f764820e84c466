"""Longest common subsequence of words, by rouge-score."""

from __future__ import annotations

import re
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal

from mtlcore.components import Evaluator
from mtlcore.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtlcore.evaluation.predictions import Prediction


class UnicodeWords:
    """Words of any script, in lower case."""

    def tokenize(self, text: str) -> list[str]:
        """Runs of letters, digits and underscores."""
        return re.findall(r"\w+", text.lower())


class RougeL(Evaluator):
    """Mean over the rows of the F1 of the longest common subsequence of words (ROUGE-L).

    ROUGE: A Package for Automatic Evaluation of Summaries (ACL workshop 2004),
    https://aclanthology.org/W04-1013

        P = LCS / #words(output)     R = LCS / #words(target)     F = 2 P R / (P + R)

    use_stemmer: cut English endings first (False).
    tokenizer: "ascii" is rouge-score's own: it knows the letters a-z and the digits only, and its
        numbers can be compared with others'; "unicode" takes words of every script.
    Range 0 .. 1, more is better. An empty output scores 0. Targets of which "ascii" finds no word
    at all are an error: every score would be 0.
    """

    name = "rouge_l"
    paper = (
        "ROUGE: A Package for Automatic Evaluation of Summaries (ACL workshop 2004), "
        "https://aclanthology.org/W04-1013"
    )

    def __init__(
        self, *, use_stemmer: bool = False, tokenizer: Literal["ascii", "unicode"] = "ascii"
    ) -> None:
        self.use_stemmer = use_stemmer
        self.tokenizer = tokenizer
        if use_stemmer and tokenizer == "unicode":
            raise ValueError("use_stemmer cuts English endings and needs tokenizer 'ascii'")

    def score(self, predictions: Sequence[Prediction]) -> float:
        """0 .. 1."""
        self.require(predictions)
        ascii_only = self.tokenizer == "ascii"
        if ascii_only and not any(re.search("[a-zA-Z0-9]", row.target) for row in predictions):
            raise UserError(
                "rouge_l finds no word in any target: its tokenizer knows a-z and 0-9 only",
                where=f"tasks.{predictions[0].task}.metrics",
                fix="use {name: rouge_l, tokenizer: unicode}",
            )
        return sum(self.row_scores(predictions)) / len(predictions)

    def row_scores(self, predictions: Sequence[Prediction]) -> list[float]:
        """F of each row."""
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(
            ["rougeL"],
            use_stemmer=self.use_stemmer,
            tokenizer=None if self.tokenizer == "ascii" else UnicodeWords(),
        )
        return [
            float(scorer.score(row.target.strip(), row.output.strip())["rougeL"].fmeasure)
            for row in predictions
        ]

    def details(self) -> dict[str, Any]:
        """Version and settings."""
        return {
            "rouge-score": metadata.version("rouge-score"),
            "use_stemmer": self.use_stemmer,
            "tokenizer": self.tokenizer,
        }
