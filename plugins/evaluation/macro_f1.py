"""F1 of each class, averaged over the classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtlcore.components import Evaluator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from mtlcore.evaluation.predictions import Prediction


class MacroF1(Evaluator):
    """Mean over the classes of their F1: rare classes count as much as frequent ones.

    A Systematic Analysis of Performance Measures for Classification Tasks (Information Processing
    & Management 2009), https://doi.org/10.1016/j.ipm.2009.03.002

        F1_c = 2 TP_c / (2 TP_c + FP_c + FN_c)      macro F1 = mean over classes c of F1_c

    The classes are those that occur among the labels or choices (scikit-learn's rule, whose
    `f1_score` is used). A row without a choice is a miss of its class. 0 .. 1, more is better.
    """

    name = "macro_f1"
    paper = (
        "A Systematic Analysis of Performance Measures for Classification Tasks (Information "
        "Processing & Management 2009), https://doi.org/10.1016/j.ipm.2009.03.002"
    )
    inputs = "label"

    def score(self, predictions: Sequence[Prediction]) -> float:
        """0 .. 1."""
        self.require(predictions)
        from sklearn.metrics import f1_score

        labels = [row.label for row in predictions]
        choices = [-1 if row.choice is None else row.choice for row in predictions]
        classes = sorted({value for value in (*labels, *choices) if value is not None} - {-1})
        return float(f1_score(labels, choices, labels=classes, average="macro", zero_division=0))

    def resample(self, predictions: Sequence[Prediction], draws: Tensor) -> list[float]:
        """The same formula on the confusions of each draw, all draws at once."""
        import torch

        pairs = [(row.label, row.choice) for row in predictions]
        classes = sorted({value for pair in pairs for value in pair if value is not None})
        place: dict[int | None, int] = {value: index for index, value in enumerate(classes)}
        size = len(classes)
        label = torch.tensor([place.get(label, size) for label, _ in pairs])[draws]  # [draws, rows]
        choice = torch.tensor([place.get(choice, size) for _, choice in pairs])[draws]
        hits = torch.where(label == choice, label, size)
        counted = [
            torch.zeros(len(draws), size + 1).scatter_add_(1, of, torch.ones(of.shape))[:, :size]
            for of in (hits, label, choice)
        ]
        both, labels, choices = (count.double() for count in counted)  # [draws, classes]
        seen = (labels + choices > 0).double()
        f1 = 2 * both / (labels + choices).clamp(min=1)
        return [float(score) for score in f1.sum(1) / seen.sum(1)]
