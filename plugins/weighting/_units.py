"""Gradients in units of their norms: the cosines of a Gramian, and the direction that is fair."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Eigenvalues of cosines by the largest: less is what the rounding of float32 gradients makes.
RANK = 1e-13
# In units of the norms: coefficients below it are rounding of a solution that is 0.
NO_DIRECTION = 1e-12


def norms(gramian: Tensor) -> Tensor:
    """|g_i| [..., T] from G [..., T, T]."""
    return gramian.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()


def inverse(values: Tensor) -> Tensor:
    """1 / values, and 0 for 0."""
    return torch.where(values > 0, 1 / values, 0)


def fair_direction(gramian: Tensor) -> Tensor:
    """a [..., T]: u = Jᵀ a is the shortest vector with the product 1 with each unit gradient.

        a = D^-1 C⁺ 1,    C = D^-1 G D^-1,  D = diag(|g_i|)

    The pseudo-inverse takes eigenvalues of C up to 1e-13 of the largest for 0. Where no such u
    exists, the products are as near to 1 as can be (least squares). A zero gradient has no part,
    a_i = 0. Where no u comes nearer than 0 does (opposed gradients), a is 0.
    """
    # In numpy: of these small matrices torch's calls cost more than their arithmetic.
    G = gramian.numpy()
    lengths = np.sqrt(np.maximum(np.diagonal(G, axis1=-2, axis2=-1), 0))
    scale = 1 / np.where(lengths > 0, lengths, np.inf)  # 0 for 0
    cosines = torch.from_numpy(G * scale[..., :, None] * scale[..., None, :])
    # numpy's eigh has threads of its own, which wait for torch's: ten times as long at T = 32
    values, vectors = (found.numpy() for found in torch.linalg.eigh(cosines))
    inverses = 1 / np.where(values > RANK * values[..., -1:], values, np.inf)
    solved = (vectors @ (inverses * vectors.sum(axis=-2))[..., None])[..., 0]
    found = np.abs(solved).max(axis=-1, keepdims=True) > NO_DIRECTION
    return torch.from_numpy(solved * scale * found)
