"""Shared by the tests of the ops."""

from __future__ import annotations

import os

import mtlcore
from mtlcore.ops import backend

# A build of the compiled core to test instead of the installed one; see test_builds.py.
if folder := os.environ.get("MTLCORE_TEST_CORE"):
    mtlcore.__path__.insert(0, folder)
    assert backend.core().__file__.startswith(folder)
