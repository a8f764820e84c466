"""Every task drawn as often as any other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtlcore.components import Sampler

if TYPE_CHECKING:
    from mtlcore.run import Run


class Equal(Sampler):
    """Draw every task equally often, whatever its size.

    Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer (JMLR 2020),
    https://arxiv.org/abs/1910.10683, section 3.5.2: equal mixing

        share_t = 1 / T

    The paper's warning: a small task is seen many times over before a large one was seen once.
    Shapes: shares [T].
    """

    name = "equal"
    paper = (
        "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer "
        "(JMLR 2020), https://arxiv.org/abs/1910.10683"
    )

    def shares(self, run: Run, step: int) -> list[float]:
        """[T] the same at every step."""
        return [1 / len(run.tasks)] * len(run.tasks)
