"""One sign for every element of the update."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mtlcore.components import Share, Weighting
from mtlcore.gradients import Direction

if TYPE_CHECKING:
    from mtlcore.gradients import Gradients
    from mtlcore.run import Run


class GradDrop(Weighting):
    """Keep, for each weight of the model, the gradients of one sign, drawn by how they agree.

    Just Pick a Sign: Optimizing Deep Multitask Models with Gradient Sign Dropout (NeurIPS 2020),
    https://arxiv.org/abs/2010.06808

        p = 1/2 (1 + sum_i g_i / sum_i |g_i|),    by element
        update = sum_i (leak + (1 - leak) m_i) g_i
        m_i = 1 if g_i has the sign that was drawn: + with probability p, else -

    p is the positive share of the sum of |g|. As in TorchJD the gradients are those of the shared
    weights; the paper and LibMTL drop gradients of a layer's outputs. The draws are anew each step
    from the run's seed, on the CPU, so that all devices have the same. Elements that are 0 for all
    tasks stay 0; without conflicts, and for one task alone, the update is the sum.

    leak: share of the dropped gradients that passes, for all tasks alike as in LibMTL; 0, as there
        and in TorchJD. 1 is the sum of all gradients.
    Shapes: J [T', P], update [P]: it has no task weights. It takes six times P of memory beside a
        copy of J.
    Native scale: that of the sum of the gradients.
    """

    name = "graddrop"
    paper = (
        "Just Pick a Sign: Optimizing Deep Multitask Models with Gradient Sign Dropout "
        "(NeurIPS 2020), https://arxiv.org/abs/2010.06808"
    )
    needs = "rows"
    native_scale = "the sum of the gradients, of one sign in each element"
    gives = "direction"
    homogeneity = 0

    def __init__(self, *, leak: Share = 0.0) -> None:
        self.leak = leak

    def mtlcore_weigh_tasks(self, run: Run, gradients: Gradients) -> Direction:
        """[P] the elements of the sign that was drawn, and the leak of the others."""
        rows = gradients.rows()
        positive, negative = torch.zeros_like(rows[0]), torch.zeros_like(rows[0])
        for row in rows:  # one by one: no more of size [T', P]
            positive += row.clamp(min=0)
            negative += row.clamp(max=0)
        generator = run.generator(run.step, "graddrop")
        draws = torch.rand(len(positive), generator=generator, dtype=rows.dtype).to(rows.device)
        # draw < p, without a division by the sum of |g|, which may be 0.
        kept = torch.where(draws * (positive - negative) < positive, positive, negative)
        return Direction(kept.lerp(positive + negative, self.leak))
