"""Verbs of installed plugins: asked for only by --help and by a verb that is not ours."""

from __future__ import annotations

import os

import typer

from mtlcore import plugin_sources
from mtlcore.cli.console import warn


def add_verbs(app: typer.Typer) -> None:
    """Call `mtlcore_commands` of each installed plugin; a broken one is one warning line."""
    if os.environ.get("MTLCORE_NO_PLUGINS", "").lower() not in ("", "0", "false", "no", "off"):
        return
    only = os.environ.get("MTLCORE_LOAD_PLUGINS")
    blocked = os.environ.get("MTLCORE_DISABLE_PLUGINS", "").split(",")
    for plugin in plugin_sources.installed():
        if plugin.is_called(blocked) or (
            only is not None and not plugin.is_called(only.split(","))
        ):
            continue
        try:
            add = getattr(plugin.load(), "mtlcore_commands", None)
            if add is not None:
                add(cli=app)
        except (Exception, SystemExit) as error:
            reason = " ".join(str(error).split())
            warn(f"plugin {plugin} adds no verbs: {type(error).__name__}: {reason}")
