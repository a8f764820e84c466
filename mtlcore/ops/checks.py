"""Checks of the arguments of ops: each error names the argument, the rule and what was found.

And how autocast casts them, which it does for torch's own ops alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def check_tensor(
    name: str, tensor: Tensor, *, ndim: int, dtypes: Sequence[torch.dtype], like: Tensor
) -> None:
    """Rank, dtype, no autograd, the device of `like`.

    Raises TypeError for what is no tensor or has another dtype, ValueError for the rest.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, found {type(tensor).__name__}")
    if tensor.dtype not in dtypes:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{name} must be {names}, found {str(tensor.dtype).removeprefix('torch.')}")
    if tensor.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimensions, found shape {list(tensor.shape)}")
    if tensor.requires_grad:
        raise ValueError(f"{name} must not require grad: detach it first")
    if tensor.device != like.device:
        raise ValueError(f"{name} must be on {like.device}, found {tensor.device}")


def detached(tensor: Tensor) -> Tensor:
    """What an op with autograd checks; anything that is no tensor stays for the check to tell."""
    return tensor.detach() if isinstance(tensor, Tensor) else tensor


def autocast(tensor: Tensor) -> Tensor:
    """The tensor as torch's autocast hands it to a product: fp64 stays."""
    device = tensor.device.type
    if tensor.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return tensor
    return tensor.to(torch.get_autocast_dtype(device))


def check_dense_rows(name: str, tensor: Tensor) -> None:
    """The last axis must be dense; earlier strides are free (a column slice needs no copy)."""
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(
            f"{name} must be contiguous along its last dimension, found stride {tensor.stride(-1)}"
        )


def check_shape(name: str, tensor: Tensor, shape: Sequence[int], meaning: str) -> None:
    """The shape must be `shape`; `meaning` spells it, as in "[T]"."""
    if list(tensor.shape) != list(shape):
        raise ValueError(
            f"{name} must have shape {meaning} = {list(shape)}, found {list(tensor.shape)}"
        )
