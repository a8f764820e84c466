"""The attention of flat batches as the models of transformers call it, and whether it is right."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from mtlcore.model.layout import Routing, Segment
from mtlcore.model.row_attention import at_once, by_length, why_not_at_once

FLAT = "mtlcore_flat"
"""The name under which the attention of flat batches is registered with transformers."""


def flat_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each row of a flat batch to itself.

    query [1, H, N, d], key and value [1, H_kv, N, d] -> [1, N, H, d]. No mask is asked of the
    model: none of the general ones is right for every architecture. On a GPU all rows go in one
    call where torch's kernel for that serves; `routing.attention_slow` says why it does not.
    """
    routing = cast("Routing", module.mtlcore_routing)
    routing.attention_calls += 1
    assert routing.row_lengths is not None
    why_not = why_not_at_once(query, value, dropout=dropout, softcap=softcap)
    routing.attention_slow = why_not if query.is_cuda else None
    heads = (query[0], key[0], value[0])
    if why_not is None:
        bounds, longest = routing.row_bounds(query.device), max(routing.row_lengths)
        output = at_once(*heads, bounds, longest, scaling=scaling, window=sliding_window)
    else:
        output = by_length(
            *heads, routing.row_lengths,
            scaling=scaling, dropout=dropout, window=sliding_window, softcap=softcap,
        )  # fmt: skip
    return output[None], None


AttentionInterface.register(FLAT, flat_attention)


def attach(model: PreTrainedModel, routing: Routing) -> None:
    """Let every module find the routing of the batch that passes."""
    for module in model.modules():
        # Past nn.Module's registry: `routing` is no sub-module and is shared on purpose.
        object.__setattr__(module, "mtlcore_routing", routing)


@torch.no_grad()
def rows_stay_apart(model: PreTrainedModel, routing: Routing) -> str | None:
    """Try two short rows, flat together and each alone; say what is wrong, or None.

    The rows alone run through the attention that the model came with, so a feature of a model
    that `flat_attention` does not know shows as a difference too.
    """
    config = model.config.get_text_config()
    if getattr(config, "attention_chunk_size", None):
        return "the model attends in chunks, which its masks alone decide"
    original = model.config._attn_implementation
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    vocabulary = min(config.vocab_size, 1000)
    draw = torch.Generator().manual_seed(0)
    window = getattr(config, "sliding_window", None) or 0
    longest = window + 3 if window <= 256 else 7  # a row longer than the window, if that is cheap
    rows = [torch.randint(vocabulary, (length,), generator=draw) for length in (max(7, longest), 5)]
    try:
        routing.enter((Segment(-1, 0, 1),), None)
        alone = [
            model(input_ids=row[None].to(device), use_cache=False).logits[0].float() for row in rows
        ]
        model.set_attn_implementation(FLAT)
        routing.enter((Segment(-1, 0, 2),), [len(row) for row in rows])
        routing.attention_calls = 0
        together = (
            model(
                input_ids=torch.cat(rows)[None].to(device),
                position_ids=torch.cat([torch.arange(len(row)) for row in rows])[None].to(device),
                use_cache=False,
            )
            .logits[0]
            .float()
        )
        if routing.attention_calls == 0:
            return "the model never calls a registered attention function"
        return _difference(torch.cat(alone), together, model.dtype)
    except Exception as error:  # an architecture may fail in any way here; padding still serves
        return f"{type(error).__name__}: {error}"
    finally:
        model.set_attn_implementation(original)
        model.train(was_training)
        routing.leave()


def _difference(expected: Tensor, found: Tensor, dtype: torch.dtype) -> str | None:
    scale = expected.abs().max().item()
    error = (expected - found).abs().max().item()
    # Measured on right models: 1e-6 in fp32, 1e-2 in bf16. Mixed rows: 2 to 8 on trained weights,
    # but as little as 1e-3 of the scale on fresh random ones, hence the sharp bound for fp32.
    allowed = 1e-4 if dtype in (torch.float32, torch.float64) else 5e-2
    return None if error <= allowed * scale else f"logits differ by {error:.3g} (of {scale:.3g})"


def use_attention(model: PreTrainedModel, name: str) -> None:
    """Switch the attention implementation, if it is another one."""
    if model.config._attn_implementation != name:
        model.set_attn_implementation(name)
