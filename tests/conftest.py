"""Shared by all tests: no network, warnings of libraries are silenced in pyproject.toml."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
