"""A description of all components that can be read without importing them (or torch).

It is a JSON file in the cache folder, under a key of all that it depends on: the first-party
plugin files, the third-party distributions and their files, the Python environment and the
variables that block plugins. A damaged file is rebuilt.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

from mtlcore import plugin_sources

KEPT = 8  # descriptions of so many environments stay in the cache


class Description(TypedDict):
    """`components`: see `ComponentInfo.describe`. `broken`, `disabled`, `conflicts`: as text."""

    components: list[dict[str, Any]]
    broken: list[str]
    disabled: list[str]
    conflicts: list[str]


def describe_components() -> list[dict[str, Any]]:
    """All installed components: kind, name, summary, paper, module, distribution, options."""
    return describe_plugins()["components"]


def describe_plugins() -> Description:
    """The description from the cache, or made anew (which imports all plugins) and cached."""
    from mtlcore.cache import cache_folder

    path = cache_folder() / "plugins" / f"{cache_key()}.json"
    found = _read(path)
    if found is None:
        found = build_description()
        if not found["broken"]:  # what mends a broken plugin need not change the key
            _write(path, found)
    return found


def build_description() -> Description:
    """Load every plugin that is not blocked and describe what it adds."""
    from mtlcore.plugins import BrokenPlugin, PluginManager

    manager = PluginManager()
    manager.discover()
    rows = []
    for _, info in sorted(manager.components().items()):
        try:
            rows.append(info.describe())
        except Exception as error:  # options that cannot be described are the plugin's fault
            manager.broken.append(BrokenPlugin(info.plugin, error))
    return {
        "components": rows,
        "broken": [str(broken) for broken in manager.broken],
        "disabled": [str(plugin) for plugin in manager.disabled],
        "conflicts": [
            f"two plugins provide {first.kind} {first.name!r}: {first.plugin} and {second.plugin}"
            for first, second in manager.conflicts
        ],
    }


def cache_key() -> str:
    """A hash of everything that the description depends on, found without importing plugins."""
    digest = hashlib.sha256()
    for fact in _facts():
        digest.update(repr(fact).encode() + b"\0")
    return digest.hexdigest()[:32]


def _facts() -> Iterator[object]:
    yield sys.version_info, sys.prefix, plugin_sources.version_of("mtlcore")
    for variable in ("MTLCORE_LOAD_PLUGINS", "MTLCORE_DISABLE_PLUGINS", "MTLCORE_NO_PLUGINS"):
        yield variable, os.environ.get(variable)
    core = Path(__file__).parent
    for name in ("components", "component_options", "hookspecs", "plugins", "plugin_cache"):
        yield name, (core / f"{name}.py").read_bytes()
    for path in _files(plugin_sources.FIRST_PARTY):
        yield str(path), path.read_bytes()
    for point in plugin_sources.entry_points():
        yield point.name, point.value, point.dist and (point.dist.name, point.dist.version)
        # Editable installations change without a new version.
        for path in _files(point.value.partition(":")[0].partition(".")[0]):
            status = path.stat()
            yield str(path), status.st_mtime_ns, status.st_size


def _files(package: str) -> list[Path]:
    """The Python files of a top-level package or module, found without importing it."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    if spec.submodule_search_locations is None:
        return [Path(spec.origin)] if spec.origin else []
    folders = [Path(folder) for folder in spec.submodule_search_locations]
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def _read(path: Path) -> Description | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if set(found) == set(Description.__annotations__) and all(
            isinstance(value, list) for value in found.values()
        ):
            return found  # type: ignore[no-any-return]
    except (OSError, ValueError, TypeError):
        pass
    return None


def _write(path: Path, description: Description) -> None:
    """Write all or nothing; a cache folder that cannot be written is no reason to fail."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, suffix=".partial", delete=False, encoding="utf-8"
        ) as file:
            json.dump(description, file)
        os.replace(file.name, path)
        old = sorted(path.parent.glob("*.json"), key=lambda p: p.stat().st_mtime)[:-KEPT]
        for file_to_drop in old:
            file_to_drop.unlink(missing_ok=True)
    except OSError:
        return
