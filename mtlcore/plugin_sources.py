"""Where plugins come from: the package `mtlcore_plugins`, entry points, local files."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from mtlcore.errors import UserError

GROUP = "mtlcore"
FIRST_PARTY = "mtlcore_plugins"


@dataclass(frozen=True)
class Plugin:
    """One plugin before its import: a first-party module, an entry point, or a local file."""

    name: str
    distribution: str
    version: str
    origin: Literal["first-party", "installed", "local"]
    load: Callable[[], Any] = field(compare=False, repr=False)

    def __str__(self) -> str:
        if self.origin == "local":
            return f"local file {self.name}"
        return f"{self.name!r} of {self.distribution} {self.version}"

    def is_called(self, names: Iterable[str]) -> bool:
        """Whether one of `names` is this plugin's name or its distribution's."""
        mine = {normal(self.name), normal(self.distribution)}
        return any(normal(name) in mine for name in names)

    def words(self) -> set[str]:
        """Names that a component of this plugin may well have, for plugins that do not load."""
        file = normal(self.name.rpartition("/")[2].removesuffix(".py"))
        return {file, normal(self.distribution).removeprefix("mtlcore-")}


def normal(name: str) -> str:
    """One spelling of a distribution's or plugin's name: `Mtlcore_Lion` is `mtlcore-lion`."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def first_party() -> Iterator[Plugin]:
    """Every module of every sub-folder of `plugins/` that has an `__init__.py`."""
    version = version_of("mtlcore")
    for kind in pkgutil.iter_modules(importlib.import_module(FIRST_PARTY).__path__):
        if not kind.ispkg:
            continue
        folder = f"{FIRST_PARTY}.{kind.name}"
        for found in pkgutil.iter_modules(importlib.import_module(folder).__path__):
            if not found.name.startswith("_"):
                yield Plugin(
                    f"{kind.name}/{found.name}",
                    "mtlcore",
                    version,
                    "first-party",
                    partial(importlib.import_module, f"{folder}.{found.name}"),
                )


def entry_points() -> list[metadata.EntryPoint]:
    """The entry points of group `mtlcore`, each once, in a fixed order."""
    found: dict[tuple[str, str], metadata.EntryPoint] = {}
    for point in metadata.entry_points(group=GROUP):
        name = normal(point.dist.name) if point.dist else ""
        found.setdefault((name, point.name), point)  # the first on sys.path is the one imported
    return [found[key] for key in sorted(found)]


def installed() -> Iterator[Plugin]:
    """The plugins of other distributions; an entry point names a module, a class or an object."""
    for point in entry_points():
        name, version = (point.dist.name, point.dist.version) if point.dist else ("unknown", "")
        yield Plugin(point.name, name, version, "installed", point.load)


def local(paths: Iterable[str]) -> Iterator[Plugin]:
    """Single files, named by a recipe or on the command line; their code is executed."""
    for path in paths:
        yield Plugin(path, path, "", "local", partial(_import_file, Path(path)))


def version_of(distribution: str) -> str:
    """The installed version, or "unknown" in a source tree."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "unknown"


def _import_file(path: Path) -> ModuleType:
    if path.suffix != ".py" or not path.is_file():
        raise UserError(
            f"{path} is not a Python file",
            where="plugins.load",
            fix="give the path of a .py file; installed plugins are found without being named",
        )
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    name = f"mtlcore_local_{path.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # type hints and pickles of its classes look it up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
