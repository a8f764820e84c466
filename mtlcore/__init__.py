"""Fine-tune one language model on many tasks at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Run", "__version__", "adapt", "hookimpl", "load", "train"]

if TYPE_CHECKING:
    from mtlcore.adaptation import adapt
    from mtlcore.api import load, train
    from mtlcore.hookspecs import hookimpl
    from mtlcore.run import Run

_HOMES = {
    "adapt": "adaptation",
    "hookimpl": "hookspecs",
    "load": "api",
    "Run": "run",
    "train": "api",
}


def __getattr__(name: str) -> Any:
    """Import on first use: `import mtlcore` alone must not cost the seconds that torch takes."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"mtlcore.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'mtlcore' has no attribute {name!r}")
