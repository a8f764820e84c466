"""Small real runs with the component under test, as often as a check needs a fresh one."""

from __future__ import annotations

import copy
import json
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mtlcore.demo.tiny import make_tiny_model
from mtlcore.errors import UserError
from mtlcore.plugin_sources import Plugin
from mtlcore.plugins import PluginManager
from mtlcore.recipe_file import read_recipe
from mtlcore.run import Run
from mtlcore.testing.recipes import write_tiny_recipe

if TYPE_CHECKING:
    from mtlcore.components import Component
    from mtlcore.data.tasks import Task

TESTED_TASK = "sentiment"
"""The task whose rows a chooser chooses: its rows have labels and columns."""
SLOTS = {
    "weighting": "weighting",
    "sampling": "sampling",
    "regularization": "regularization[0]",
    "monitoring": "monitoring[0]",
    "auditing": "auditing[0]",
    "replay": "replay",
    "overall": "overall",
    "rows": f"tasks.{TESTED_TASK}.rows",
    "evaluation": f"tasks.{TESTED_TASK}.metrics[0]",
}
"""Where a recipe names a component of each kind; formats have no state and are not here."""


class NotConformant(AssertionError):  # noqa: N818 - a failed check, not a fault of the program
    """What a component does that a plugin must not do: what differed, where, and the fix."""

    def __init__(self, cls: type[Component], message: str, *, fix: str) -> None:
        super().__init__(f"{cls.kind} {cls.name!r}: {message}\n  fix: {fix}")


@contextmanager
def open_trial(
    cls: type[Component],
    options: Mapping[str, Any] | None,
    overrides: Sequence[str],
    parts: Mapping[str, str],
) -> Iterator[Trial]:
    """A trial of a component in a folder that is there as long as the context.

    options: of the component. overrides: ``key=value`` for the recipe, as on the command line.
    parts: top-level parts of the recipe that the check needs. The global generators are left as
    they were.
    """
    if cls.kind not in SLOTS:
        raise UserError(
            f"a component of kind {cls.kind!r} has no part in the steps of a run",
            fix=f"kinds that can be checked: {', '.join(SLOTS)}",
        )
    with kept_generators(), tempfile.TemporaryDirectory() as folder:
        yield Trial(cls, dict(options or {}), overrides, parts, Path(folder))


class Trial:
    """A run of three tasks whose recipe names one component, and fresh copies of it."""

    def __init__(
        self,
        cls: type[Component],
        options: Mapping[str, Any],
        overrides: Sequence[str],
        parts: Mapping[str, str],
        folder: Path,
    ) -> None:
        self.cls, self.folder = cls, folder
        self.key = f"{SLOTS[cls.kind]}:{cls.name}"
        parts = {"weighting": "equal", "sampling": "equal", "regularization": "[]", **parts}
        recipe = write_tiny_recipe(folder, make_tiny_model(folder / "model"), **parts)
        slot = SLOTS[cls.kind].removesuffix("[0]")
        spec: Any = {"name": cls.name, **options}
        chosen = f"{slot}={json.dumps(spec if slot == SLOTS[cls.kind] else [spec])}"
        loaded = read_recipe(recipe, [chosen, *overrides])
        self._run = Run(loaded.recipe, folder / "run", plugins=self._manager())
        self._weights = {k: v.clone() for k, v in self._run.model.adapter_state().items()}

    def _manager(self) -> PluginManager:
        """All of mtlcore's own plugins, and the class under test."""
        manager = PluginManager.load(environ={"MTLCORE_NO_PLUGINS": "1"})
        known = manager.components().get((self.cls.kind, self.cls.name))
        if known is None:
            name = self.cls.__name__
            manager.add(Plugin(name, self.cls.__module__, "0", "installed", lambda: None), self.cls)
        elif known.cls is not self.cls:
            raise NotConformant(
                self.cls,
                f"{known.plugin} has a component of this kind and name",
                fix="give it another name: a recipe could not tell them apart",
            )
        return manager

    def _small_manager(self) -> PluginManager:
        """The plugins that the recipe names: to load all of them takes longer than a step."""
        manager, known = PluginManager(environ={}), self._run.plugins.components()
        named = {(c.kind, c.name) for c in self._run.components.values()}
        for kind, name in named & known.keys():  # not what stands around a weighting
            manager.add(known[kind, name].plugin, known[kind, name].cls)
        return manager

    def fresh(self, folder: str = "run", **training: Any) -> Run:
        """A run at its start, with new components; `training` changes that part of the recipe.

        All share one model, whose weights are set back.
        """
        run = copy.copy(self._run)
        changed = run.recipe.training.model_copy(update=training)
        run.recipe = run.recipe.model_copy(update={"training": changed})
        run.folder = self.folder / folder
        run.plugins = self._small_manager()
        run.create_components()
        run.step, run.stage, run.notes, run.findings = 0, "", [], []
        run.rows_drawn = [0] * len(run.tasks)
        run.active = [True] * len(run.tasks)
        run.model.load_adapter_state(self._weights)
        return run

    @property
    def tasks(self) -> list[Task]:
        """The tasks of every run."""
        return self._run.tasks

    def component(self, run: Run) -> Component:
        """The one under test."""
        return run.components[self.key]


def disturb(seed: int) -> None:
    """Set the generators that belong to nobody, as any library may between two steps."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def kept_generators() -> Iterator[None]:
    """Leave the global generators as they were."""
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])
