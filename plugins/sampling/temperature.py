"""Tasks drawn by their size, evened out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtlcore.components import Count, Positive, Sampler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtlcore.run import Run


class Temperature(Sampler):
    """Draw each task by its size to the power 1/temperature: small tasks are seen more often.

    Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer (JMLR 2020),
    https://arxiv.org/abs/1910.10683, section 3.5.2: temperature-scaled mixing

        share_t = m_t^(1/temperature) / sum_k m_k^(1/temperature)        m_t = min(n_t, cap)

    temperature: 1 is proportional to the n_t train rows, infinity the same share for all; the paper
        found 2 to do best.
    cap: rows above which a task counts no further; none by default (the paper's 2^21).
    Shapes: shares [T].
    """

    name = "temperature"
    paper = (
        "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer "
        "(JMLR 2020), https://arxiv.org/abs/1910.10683"
    )

    def __init__(self, *, temperature: Positive = 2.0, cap: Count | None = None) -> None:
        self.temperature = temperature
        self.cap = cap

    def shares(self, run: Run, step: int) -> list[float]:
        """[T] the same at every step."""
        return mixed(run, [True] * len(run.tasks), self.temperature, self.cap)


def mixed(run: Run, admitted: Sequence[bool], temperature: float, cap: int | None) -> list[float]:
    """[T] shares of the admitted tasks by the formula above, 0 for the others."""
    rows = [len(task.train) for task in run.tasks]
    capped = rows if cap is None else [min(count, cap) for count in rows]
    sizes = [size * on for size, on in zip(capped, admitted, strict=True)]
    # Relative to the largest: n^(1/temperature) overflows at a low temperature.
    powers = [(size / max(sizes)) ** (1 / temperature) for size in sizes]
    return [power / sum(powers) for power in powers]
