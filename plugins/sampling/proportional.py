"""Tasks drawn by their size."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtlcore.components import Count, Sampler

if TYPE_CHECKING:
    from mtlcore.run import Run


class Proportional(Sampler):
    """Draw each task in proportion to its number of train rows, up to a cap.

    Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer (JMLR 2020),
    https://arxiv.org/abs/1910.10683, section 3.5.2: examples-proportional mixing

        share_t = min(n_t, cap) / sum_k min(n_k, cap)        n_t train rows of task t

    cap: rows above which a task counts no further; none by default (the paper tried 2^16 .. 2^21).
    Shapes: shares [T].
    """

    name = "proportional"
    paper = (
        "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer "
        "(JMLR 2020), https://arxiv.org/abs/1910.10683"
    )

    def __init__(self, *, cap: Count | None = None) -> None:
        self.cap = cap

    def shares(self, run: Run, step: int) -> list[float]:
        """[T] the same at every step."""
        sizes = [len(task.train) for task in run.tasks]
        capped = sizes if self.cap is None else [min(size, self.cap) for size in sizes]
        return [size / sum(capped) for size in capped]
