"""Character n-gram F-score, by sacrebleu."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge

from mtlcore.components import Count, Evaluator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sacrebleu.metrics.chrf import CHRF
    from torch import Tensor

    from mtlcore.evaluation.predictions import Prediction


class ChrF(Evaluator):
    """Compare character n-grams of output and target over the whole corpus (sacrebleu's chrF).

    chrF: character n-gram F-score for automatic MT evaluation (WMT 2015),
    https://aclanthology.org/W15-3049

        chrF = (1 + beta^2) P R / (beta^2 P + R)        P, R: mean n-gram precision and recall

    char_order: longest character n-gram (6). word_order: longest word n-gram (0; 2 is chrF++).
    beta: weight of recall (2). Range 0 .. 100, more is better. White space at the ends is left
    out; an empty output scores 0. `details` holds sacrebleu's signature, without which scores
    cannot be compared.
    """

    name = "chrf"
    paper = (
        "chrF: character n-gram F-score for automatic MT evaluation (WMT 2015), "
        "https://aclanthology.org/W15-3049"
    )
    best = 100.0

    def __init__(
        self, *, char_order: Count = 6, word_order: Annotated[int, Ge(0)] = 0, beta: Count = 2
    ) -> None:
        self.char_order = char_order
        self.word_order = word_order
        self.beta = beta
        self.signature = ""  # of the last score

    def score(self, predictions: Sequence[Prediction]) -> float:
        """0 .. 100."""
        self.require(predictions)
        metric, outputs, targets = self._metric(), *_texts(predictions)
        score = float(metric.corpus_score(outputs, [targets]).score)
        self.signature = str(metric.get_signature())
        return score

    def resample(self, predictions: Sequence[Prediction], draws: Tensor) -> list[float]:
        """From the n-gram counts of the rows, summed over each draw, as sacrebleu itself does."""
        import torch

        metric, (outputs, targets) = self._metric(), _texts(predictions)
        rows = metric._extract_corpus_statistics(outputs, [targets])
        counts = torch.tensor(rows, dtype=torch.float64)  # [rows, 3 x n-gram orders]
        sums = torch.stack([counts[draw].sum(0) for draw in draws])
        return [float(metric._compute_score_from_stats(row).score) for row in sums.tolist()]

    def _metric(self) -> CHRF:
        from sacrebleu.metrics.chrf import CHRF

        return CHRF(char_order=self.char_order, word_order=self.word_order, beta=self.beta)

    def details(self) -> dict[str, Any]:
        """The signature of the last score."""
        return {"signature": self.signature}


def _texts(predictions: Sequence[Prediction]) -> tuple[list[str], list[str]]:
    """Outputs and targets without white space at their ends."""
    return [row.output.strip() for row in predictions], [row.target.strip() for row in predictions]
