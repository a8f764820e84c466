"""The versions that a run depends on."""

from __future__ import annotations

from importlib import metadata

PACKAGES = (
    "mtlcore", "torch", "transformers", "peft", "accelerate", "datasets", "safetensors",
    "pydantic", "pluggy", "typer", "triton",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Version by package, "not installed" for those that are not there."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
