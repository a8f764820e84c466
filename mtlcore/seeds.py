"""Random draws as pure functions of what they are for: no generator has state to lose."""

from __future__ import annotations

import hashlib

import torch


def seed_of(*key: object) -> int:
    """A 63-bit seed from any key, the same on every machine and rank."""
    text = "\x1f".join(map(str, key))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*key: object) -> torch.Generator:
    """A CPU generator that depends on the key alone, e.g. (seed, step, "pcgrad")."""
    return torch.Generator().manual_seed(seed_of(*key))
