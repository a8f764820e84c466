"""Helpers to test plugins: conformance checks, stand-ins, and fixtures (`pytest_plugin`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = [
    "NotConformant",
    "StandInGradients",
    "check_sampler",
    "check_stateful",
    "check_weighting",
    "plugin_manager",
    "stand_in_run",
    "write_tiny_recipe",
]

if TYPE_CHECKING:
    from mtlcore.testing.recipes import write_tiny_recipe
    from mtlcore.testing.sampling import check_sampler
    from mtlcore.testing.stand_ins import StandInGradients, plugin_manager, stand_in_run
    from mtlcore.testing.stateful import check_stateful
    from mtlcore.testing.trial import NotConformant
    from mtlcore.testing.weighting import check_weighting

_HOMES = {
    "NotConformant": "trial",
    "StandInGradients": "stand_ins",
    "check_sampler": "sampling",
    "check_stateful": "stateful",
    "check_weighting": "weighting",
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
