"""A tiny random Llama with the small tokenizer: for tests and dry runs, without any download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TOKENIZER = Path(__file__).parent / "tokenizer"


def make_tiny_model(folder: str | Path, seed: int = 0, *, initializer_range: float = 0.02) -> Path:
    """Save a random float32 Llama (about 160,000 parameters) and its tokenizer into `folder`.

    initializer_range: standard deviation of its weights; with the default no adapter can make it
    sure of a word, with 0.2 it can.

    The same seed gives the same weights; the state of torch's own generator is left as it was.
    """
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = Path(folder)
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=initializer_range,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = LlamaForCausalLM(config)
    model.float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
