"""The task gradients made orthogonal and equally long before they are added up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from mtlcore.components import Scope, Weighting

if TYPE_CHECKING:
    from torch import Tensor

    from mtlcore.gradients import Gradients
    from mtlcore.run import Run


class AlignedMTL(Weighting):
    """Align the principal components of the gradients: all directions count alike.

    Independent Component Alignment for Multi-Task Learning (CVPR 2023),
    https://arxiv.org/abs/2305.19000

        G = V diag(l) V',    w = B c,    B = sqrt(s) V diag(l)^-1/2 V',    c = 1/T

    J turns into the nearest matrix with orthogonal rows of length sqrt(s): B G B = s I. Eigenvalues
    of at most T' eps times the largest are cut off with their vectors, as in TorchJD, which this
    follows. LibMTL takes c = 1, T times these weights.

    A zero gradient has the weight 0 and does not change the others; zero gradients alone all have
    1/T. Gradients that depend on each other, and those 1e8 times smaller than the largest, lose
    the directions that are cut off.

    scale: "min" takes s = the smallest eigenvalue that is kept (TorchJD's default), "median" the
        (lower) median of those, "rmse" their mean.
    scope: where gradients are aligned: in all shared weights ("model", the paper's), or in each
        layer or LoRA factor by itself.
    Shapes: G [T', T'] or [S, T', T'], weights [T'] or [S, T'].
    Native scale: that of the mean of orthogonal gradients of length sqrt(s), with 1/T for T all
        tasks of the run.
    """

    name = "aligned_mtl"
    paper = (
        "Independent Component Alignment for Multi-Task Learning (CVPR 2023), "
        "https://arxiv.org/abs/2305.19000"
    )
    needs = "gramian"
    native_scale = "T'/T for orthogonal gradients of one length: the mean of aligned gradients"
    homogeneity = 0

    def __init__(
        self, *, scale: Literal["min", "median", "rmse"] = "min", scope: Scope = "model"
    ) -> None:
        self.scale = scale
        self.scope = scope

    def mtlcore_weigh_tasks(self, run: Run, gradients: Gradients) -> Tensor:
        """[T'] or [S, T']: B times 1/T."""
        gramian = gradients.gramian(self.scope)
        # In numpy but for `eigh`: on so few numbers torch's calls cost more than the arithmetic.
        # numpy's `eigh` waits for the threads of torch.
        values, vectors = (found.numpy() for found in torch.linalg.eigh(gramian))  # ascending
        size = values.shape[-1]
        cut = np.maximum(values[..., -1:], 0) * size * np.finfo(values.dtype).eps
        kept = values > cut
        rank = kept.sum(axis=-1, keepdims=True)  # the last ones are kept
        if self.scale == "min":
            scale = values.min(axis=-1, keepdims=True, initial=np.inf, where=kept)
        elif self.scale == "median":
            middle = np.minimum(size - rank, size - 1) + np.maximum(rank - 1, 0) // 2
            scale = np.take_along_axis(values, middle, axis=-1)
        else:
            scale = values.sum(axis=-1, keepdims=True, where=kept) / np.maximum(rank, 1)
        factors = np.where(kept, np.sqrt(np.maximum(scale, 0) / np.where(kept, values, 1)), 0)
        sums = vectors.sum(axis=-2)  # V' 1
        aligned = (vectors @ (factors * sums)[..., None])[..., 0]  # B 1
        there = np.diagonal(gramian.numpy(), axis1=-2, axis2=-1) > 0
        aligned = np.where(there, aligned, 0)  # free of rounding
        return torch.from_numpy(np.where(rank > 0, aligned, 1) / len(self.weighed(run)))
