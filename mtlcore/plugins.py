"""Find, load, block, check and describe plugins, and create components by name.

A plugin is a module (or object) with hooks and component classes. Three sources, in this order:
the modules of `mtlcore_plugins`, the entry points of group `mtlcore`, and local files that a
recipe names. Environment variables:

    MTLCORE_LOAD_PLUGINS=a,b    of the installed third-party plugins load only these ('': none)
    MTLCORE_DISABLE_PLUGINS=a,b leave these out, first-party ones too (`--disable-plugin` sets it)
    MTLCORE_NO_PLUGINS=1        load no third-party code at all
    MTLCORE_STRICT_PLUGINS=1    a plugin that cannot be loaded is an error, not a warning
    MTLCORE_TRACE_PLUGINS=1     print every hook call with its time to stderr
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from mtlcore import hookspecs, plugin_sources
from mtlcore.component_options import (
    check_options,
    common_part,
    describe_options,
    option_model,
)
from mtlcore.components import Component
from mtlcore.errors import MtlcoreError, UserError, did_you_mean
from mtlcore.plugin_cache import describe_components as describe_components
from mtlcore.plugin_sources import Plugin

if TYPE_CHECKING:
    from mtlcore.recipe import ComponentSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ComponentInfo:
    """A component class and the plugin it came from."""

    kind: str
    name: str
    cls: type[Component]
    plugin: Plugin

    @property
    def file(self) -> str:
        """The file that defines the class, "" when there is none."""
        return getattr(sys.modules.get(self.cls.__module__), "__file__", None) or ""

    def describe(self) -> dict[str, Any]:
        """What `mtlcore plugins` shows, in JSON values."""
        doc = inspect.cleandoc(self.cls.__doc__ or "")
        return {
            "kind": self.kind,
            "name": self.name,
            "summary": doc.partition("\n")[0],
            "doc": doc,
            "paper": self.cls.paper,
            "module": self.cls.__module__,
            "distribution": self.plugin.distribution,
            "version": self.plugin.version,
            "options": describe_options(self.cls),
        }


@dataclass(frozen=True)
class BrokenPlugin:
    """A plugin that could not be loaded, and why."""

    plugin: Plugin
    error: BaseException

    def __str__(self) -> str:
        reason = f"{type(self.error).__name__}: {self.error}"
        if isinstance(self.error, UserError):
            reason = self.error.problem.message
        return f"plugin {self.plugin} could not be loaded: {reason}"


class PluginManager:
    """The plugins of one process or run: the hooks they implement, the components they add."""

    def __init__(self, *, environ: Mapping[str, str] | None = None) -> None:
        self._environ = os.environ if environ is None else environ
        self._pluggy = pluggy.PluginManager("mtlcore")
        self._pluggy.add_hookspecs(hookspecs)
        self._components: dict[tuple[str, str], ComponentInfo] = {}
        self._loaded: list[tuple[Plugin, Any]] = []
        self._created: list[ComponentInfo] = []
        self._local: list[str] = []
        self.broken: list[BrokenPlugin] = []
        self.conflicts: list[tuple[ComponentInfo, ComponentInfo]] = []
        self.disabled: dict[Plugin, str] = {}  # with what left it out
        self.unmatched: dict[str, str] = {}  # names to leave out that no plugin has, with a fix
        if self._is_on("MTLCORE_TRACE_PLUGINS"):
            self._trace()

    @classmethod
    def load(
        cls,
        *,
        local: Sequence[str] = (),
        disable: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
    ) -> PluginManager:
        """Load all plugins that are not blocked.

        A broken plugin is one warning; it is an error when it is a local file or
        MTLCORE_STRICT_PLUGINS is set, and once a recipe asks for what it might have provided
        (see `create`). Two plugins with one component name are an error.
        """
        manager = cls(environ=environ)
        manager.discover(local=local, disable=disable)
        for fault in manager.faults():
            raise fault
        for broken in manager.broken:
            log.warning("%s; see `mtlcore plugins doctor`", broken)
        for name, fix in manager.unmatched.items():
            log.warning("no plugin is called %r; %s", name, fix)
        manager.check_pending()
        return manager

    def faults(self) -> Iterator[UserError]:
        """What `discover` found that stops a run."""
        for broken in filter(self.is_fatal, self.broken):
            is_local = broken.plugin.origin == "local"
            fix = "mend the file" if is_local else "see `mtlcore plugins doctor`"
            if isinstance(broken.error, UserError):
                fix = broken.error.problem.fix
            where = "plugins"
            if broken.plugin.name in self._local:
                where += f".load[{self._local.index(broken.plugin.name)}]"
            error = UserError(str(broken), where=where, fix=fix)
            error.__cause__ = broken.error
            yield error
        for first, second in self.conflicts:
            yield _conflict(first, second)

    def is_fatal(self, broken: BrokenPlugin) -> bool:
        """Whether a run stops because of it: a local file, or with MTLCORE_STRICT_PLUGINS."""
        return broken.plugin.origin == "local" or self._is_on("MTLCORE_STRICT_PLUGINS")

    def discover(self, *, local: Sequence[str] = (), disable: Sequence[str] = ()) -> None:
        """Load what is not blocked; keep faults in `broken` and `conflicts` and go on."""
        self._local = list(local)
        if local and self._is_on("MTLCORE_NO_PLUGINS"):
            raise UserError(
                f"the recipe loads {local[0]}, and MTLCORE_NO_PLUGINS forbids third-party code",
                where="plugins.load",
                fix="unset MTLCORE_NO_PLUGINS, or remove the file from the recipe",
            )
        plugins = [
            *plugin_sources.first_party(),
            *plugin_sources.installed(),
            *plugin_sources.local(local),
        ]
        for plugin in plugins:
            left_out_by = self._left_out_by(plugin, disable)
            if left_out_by:
                self.disabled[plugin] = left_out_by
                continue
            try:
                self.add(plugin, plugin.load())
            except (Exception, SystemExit) as error:
                self.broken.append(BrokenPlugin(plugin, error))
        known = {word for plugin in plugins for word in (plugin.name, plugin.distribution)}
        blocked = self._names("MTLCORE_DISABLE_PLUGINS") or []
        chosen = self._names("MTLCORE_LOAD_PLUGINS") or []
        for name in [*blocked, *chosen, *disable]:
            if any(plugin.is_called([name]) for plugin in plugins):
                continue
            if name in disable:
                self.unmatched[name] = did_you_mean(name, known)
            else:
                log.warning("no plugin is called %r; %s", name, did_you_mean(name, known))

    def _left_out_by(self, plugin: Plugin, disable: Sequence[str]) -> str:
        """What says that a plugin is not loaded; "" when nothing does."""
        if plugin.is_called(disable):
            return "plugins.disable"
        if plugin.is_called(self._names("MTLCORE_DISABLE_PLUGINS") or ()):
            return "MTLCORE_DISABLE_PLUGINS (--disable-plugin)"
        if plugin.origin == "installed":
            if self._is_on("MTLCORE_NO_PLUGINS"):
                return "MTLCORE_NO_PLUGINS (--no-plugins)"
            chosen = self._names("MTLCORE_LOAD_PLUGINS")
            if chosen is not None and not plugin.is_called(chosen):
                return "MTLCORE_LOAD_PLUGINS"
        return ""

    def add(self, plugin: Plugin, value: Any) -> None:
        """Take in one plugin: a component class, or a module or object with hooks."""
        classes: list[Any]
        if inspect.isclass(value):
            classes = [value]
        else:
            check_hooks(value)
            if hasattr(value, "mtlcore_components"):
                classes = list(value.mtlcore_components())
            else:
                classes = _components_of(value)
        infos = [_checked_info(cls, plugin) for cls in classes]
        if not inspect.isclass(value):
            self._pluggy.register(value, f"{plugin.distribution}:{plugin.name}")
        self._loaded.append((plugin, value))
        for info in infos:
            other = self._components.setdefault((info.kind, info.name), info)
            if other.cls is not info.cls:
                self.conflicts.append((other, info))

    # -- hooks --------------------------------------------------------------------------------

    @property
    def hook(self) -> pluggy.HookRelay:
        """Call a hook: `manager.hook.mtlcore_step_end(run=run, record=record)`."""
        return self._pluggy.hook

    def implements(self, hook: str) -> bool:
        """Whether any plugin answers a hook."""
        return bool(getattr(self.hook, hook).get_hookimpls())

    def only(self, hook: str, instances: Iterable[object]) -> pluggy.HookCaller:
        """A hook that asks these registered objects alone."""
        wanted = {id(instance) for instance in instances}
        others = [p for p in self._pluggy.get_plugins() if id(p) not in wanted]
        return self._pluggy.subset_hook_caller(hook, others)

    def register(self, instance: object, name: str | None = None) -> None:
        """Let an object answer hooks; the one registered last is asked first."""
        if isinstance(instance, Component):
            name = name or f"{instance.kind}:{instance.name}"
        name = name or type(instance).__name__
        count, base = 1, name
        while self._pluggy.has_plugin(name):
            count += 1
            name = f"{base}#{count}"
        check_hooks(instance)
        self._pluggy.register(instance, name)
        self.check_pending()

    def unregister(self, name: str) -> None:
        """Let an object that was registered under a name answer no longer."""
        self._pluggy.unregister(name=name)

    def check_pending(self) -> None:
        """Refuse hooks that nothing would ever call, such as misspelt ones."""
        try:
            self._pluggy.check_pending()
        except pluggy.PluginValidationError as error:
            raise MtlcoreError(f"{error}; known: {', '.join(sorted(hook_arguments()))}") from error

    # -- components ---------------------------------------------------------------------------

    def components(self) -> dict[tuple[str, str], ComponentInfo]:
        """All component classes by (kind, name)."""
        return dict(self._components)

    def create(self, kind: str, spec: ComponentSpec, where: str) -> Any:
        """A component with its options checked; UserError names what is unknown or wrong."""
        info = self._components.get((kind, spec.name))
        if info is None:
            raise self._unknown(kind, spec.name, where)
        others = [other.cls for (k, _), other in self._components.items() if k == kind]
        options = check_options(info.cls, spec.options, where, others)
        schedule = common_part(info.cls, options)
        try:
            component: Any = info.cls(**options)
        except ValueError as error:
            raise UserError(f"{kind} {spec.name!r}: {error}", where=where) from error
        if schedule is not None:
            component.schedule = schedule
        self._created.append(info)
        return component

    def describe(self) -> list[dict[str, Any]]:
        """One row per component, for `mtlcore plugins list`."""
        return [self._components[key].describe() for key in sorted(self._components)]

    def active(self) -> list[dict[str, str]]:
        """What the run depends on: its components and all third-party plugins, with file hashes."""
        rows = {f"{info.kind}/{info.name}": (info.plugin, info.file) for info in self._created}
        for plugin, value in self._loaded:
            if plugin.origin != "first-party":
                module = value if isinstance(value, ModuleType) else inspect.getmodule(value)
                rows[plugin.name] = (plugin, getattr(module, "__file__", None) or "")
        return [
            {
                "name": name,
                "distribution": plugin.distribution,
                "version": plugin.version,
                "file": file,
                "sha256": hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else "",
            }
            for name, (plugin, file) in sorted(rows.items())
        ]

    def _unknown(self, kind: str, name: str, where: str) -> UserError:
        """Why a component is not there: broken or disabled plugin, another kind, a misspelling."""
        message = f"{kind} {name!r} is not known"
        for broken in self.broken:
            if plugin_sources.normal(name) in broken.plugin.words():
                fix = "mend or remove the plugin (`mtlcore plugins doctor`)"
                return UserError(f"{message}: {broken}", where=where, fix=fix)
        for plugin, left_out_by in self.disabled.items():
            if plugin_sources.normal(name) in plugin.words():
                return UserError(
                    f"{message}: its plugin is disabled by {left_out_by}",
                    where=where,
                    fix=f"enable it there; plugins not loaded: {plugin}",
                )
        fixes = [did_you_mean(name, (n for k, n in self._components if k == kind))]
        others = [k for k, n in self._components if n == name]
        if others:
            fixes.append(f"there is a component {name!r} of kind {', '.join(sorted(others))}")
        if self.broken:
            fixes.append("; ".join(map(str, self.broken)))
        if self.disabled:
            fixes.append(f"plugins not loaded: {', '.join(map(str, self.disabled))}")
        return UserError(message, where=where, fix="; ".join(fixes))

    # -- environment --------------------------------------------------------------------------

    def _is_on(self, variable: str) -> bool:
        return self._environ.get(variable, "").lower() not in ("", "0", "false", "no", "off")

    def _names(self, variable: str) -> list[str] | None:
        """The names in a comma list; None when it is not set."""
        text = self._environ.get(variable)
        return None if text is None else [name for name in text.split(",") if name.strip()]

    def _trace(self) -> None:
        """Print hook calls, the inner ones before the outer."""
        starts: list[float] = []

        def before(hook: str, impls: Sequence[Any], arguments: Mapping[str, Any]) -> None:
            starts.append(time.perf_counter())

        def after(
            result: Any, hook: str, impls: Sequence[Any], arguments: Mapping[str, Any]
        ) -> None:
            milliseconds = 1000 * (time.perf_counter() - starts.pop())
            names = ", ".join(impl.plugin_name for impl in reversed(impls)) or "nobody"
            fate = " raised" if result.exception else ""
            print(f"{hook} {milliseconds:.3f} ms{fate}: {names}", file=sys.stderr)

        self._pluggy.add_hookcall_monitoring(before, after)


def changed_plugins(
    before: Sequence[Mapping[str, str]], now: Sequence[Mapping[str, str]]
) -> list[str]:
    """What is not as it was between two records of `PluginManager.active`, in words.

    Files are compared by their sha256 only: a moved file with the same code is no change.
    """
    old, new = ({row["name"]: row for row in rows} for rows in (before, now))
    told = [f"{name} is no longer there" for name in sorted(old.keys() - new.keys())]
    told += [f"{name} is new" for name in sorted(new.keys() - old.keys())]
    for name in sorted(old.keys() & new.keys()):
        was, found = old[name], new[name]
        if was["version"] != found["version"]:
            told.append(f"{name} is version {found['version']} now, was {was['version']}")
        elif was["sha256"] != found["sha256"]:
            told.append(f"the code of {name} is another one now ({found['file']})")
    return told


@cache
def hook_arguments() -> dict[str, tuple[str, ...]]:
    """Every hook with the names of its arguments."""
    return {
        name: tuple(inspect.signature(value).parameters)
        for name, value in vars(hookspecs).items()
        if hasattr(value, "mtlcore_spec")
    }


def check_hooks(plugin: Any) -> None:
    """Refuse hooks that would never be called: misspelt, unmarked, or with unknown arguments."""
    known = hook_arguments()
    if isinstance(plugin, ModuleType):
        owner, names = plugin.__name__, sorted(vars(plugin))
    else:
        cls = plugin if inspect.isclass(plugin) else type(plugin)
        owner, names = f"{cls.__module__}.{cls.__qualname__}", dir(cls)
    for attribute in names:
        value = inspect.getattr_static(plugin, attribute)
        if not attribute.startswith("mtlcore_") or not inspect.isfunction(value):
            continue
        if isinstance(plugin, ModuleType) and value.__module__ != plugin.__name__:
            continue
        marks = getattr(value, "mtlcore_impl", None)
        if marks is None:
            raise UserError(
                f"{owner}.{attribute} is not marked and would never be called",
                fix="put @hookimpl on it (from mtlcore.hookspecs import hookimpl)",
            )
        hook = marks.get("specname") or attribute
        if hook not in known:
            if marks.get("optionalhook"):
                continue
            raise UserError(f"{owner}: there is no hook {hook!r}", fix=did_you_mean(hook, known))
        arguments = list(inspect.signature(value).parameters)
        if not isinstance(plugin, ModuleType):
            arguments = arguments[1:]
        for argument in arguments:
            if argument not in known[hook]:
                raise UserError(
                    f"{owner}.{hook} takes an argument {argument!r} that the hook does not have",
                    fix=f"its arguments are {', '.join(known[hook]) or 'none'}",
                )


def _components_of(module: Any) -> list[type[Component]]:
    """The named component classes that a module or package defines."""
    if not isinstance(module, ModuleType):
        return []
    return [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, Component)
        and f"{value.__module__}.".startswith(f"{module.__name__}.")
        and "name" in vars(value)
    ]


def _checked_info(cls: Any, plugin: Plugin) -> ComponentInfo:
    if not (inspect.isclass(cls) and issubclass(cls, Component)):
        raise TypeError(f"{cls!r} is not a component class")
    if not cls.kind or not re.fullmatch(r"[a-z][a-z0-9_]*", cls.name):
        raise ValueError(
            f"{cls.__module__}.{cls.__qualname__} needs a kind and a name of a-z, 0-9 and _, "
            f"found kind {cls.kind!r} and name {cls.name!r}"
        )
    check_hooks(cls)
    if plugin.origin != "first-party":  # ours are made when they are used: listing them is quick
        option_model(cls)
    return ComponentInfo(cls.kind, cls.name, cls, plugin)


def _conflict(first: ComponentInfo, second: ComponentInfo) -> UserError:
    return UserError(
        f"two plugins provide {first.kind} {first.name!r}: {first.plugin} "
        f"({first.cls.__module__}) and {second.plugin} ({second.cls.__module__})",
        where="plugins",
        fix=f"leave one out, e.g. `plugins: {{disable: [{second.plugin.name}]}}`",
    )
