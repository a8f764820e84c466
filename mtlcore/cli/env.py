"""`mtlcore env`."""

from __future__ import annotations

import json
from typing import Any

import typer

from mtlcore.cli.options import AsJson
from mtlcore.versions import versions


def env(as_json: AsJson = False) -> None:
    """Show versions and the machine, for bug reports."""
    facts = environment()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    for name, version in facts.pop("versions").items():
        typer.echo(f"{name:14} {version}")
    for name, value in facts.items():
        typer.echo(f"{name:14} {value}")


def environment() -> dict[str, Any]:
    """Versions of packages, device, cores and threads."""
    import os
    import platform

    facts: dict[str, Any] = {
        "versions": versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
    }
    try:
        import torch
    except (ImportError, OSError) as error:  # a broken torch is just what one wants to see here
        return facts | {"device": f"torch cannot be imported: {error}"}
    facts["device"] = "cpu"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        facts["device"] = ", ".join(names)
    return facts | {"torch threads": torch.get_num_threads(), "cuda": torch.version.cuda or "none"}
