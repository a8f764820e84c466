"""Helpers to test plugins: conformance checks, stand-ins, and fixtures (`pytest_plugin`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = [
    "StandInGradients",
    "plugin_manager",
    "stand_in_run",
    "write_tiny_recipe",
]

if TYPE_CHECKING:
    from mtlcore.testing.recipes import write_tiny_recipe
    from mtlcore.testing.stand_ins import StandInGradients, plugin_manager, stand_in_run

_HOMES = {
    "StandInGradients": "stand_ins",
    "plugin_manager": "stand_ins",
    "stand_in_run": "stand_ins",
    "write_tiny_recipe": "recipes",
}


def __getattr__(name: str) -> Any:
    """Import on first use: pytest imports this package in every session, through its plugin."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"mtlcore.testing.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'mtlcore.testing' has no attribute {name!r}")
