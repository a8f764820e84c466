"""The rows of the tour, a module for each trouble; a row gives (without, with the remedy)."""

from importlib import import_module

TROUBLES = (
    "interference",
    "resources",
    "evaluation",
    "data",
    "fit",
    "transfer",
    "continual",
    "ethics",
)
"""The modules, in the order of the tour."""


def load_rows() -> None:
    """Import them all, so that each adds its rows."""
    for trouble in TROUBLES:
        import_module(f"{__name__}.{trouble}")
