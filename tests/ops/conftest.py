"""Shared by the tests of the ops."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

import mtlcore
from mtlcore.ops import backend

# A build of the compiled core to test instead of the installed one; see test_builds.py.
if folder := os.environ.get("MTLCORE_TEST_CORE"):
    mtlcore.__path__.insert(0, folder)
    assert backend.core().__file__.startswith(folder)

# cuBLAS asks for it in torch's deterministic mode.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Memory that torch hands out as empty is full of NaN: nothing may be left unwritten."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
