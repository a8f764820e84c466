"""A manager of the given plugins alone, and stand-ins for a run and its gradients: no model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from mtlcore.plugin_sources import Plugin
from mtlcore.plugins import PluginManager

if TYPE_CHECKING:
    from torch import Tensor


def plugin_manager(*plugins: Any, environ: Mapping[str, str] | None = None) -> PluginManager:
    """A manager that loads nothing by itself.

    Component classes and modules are taken in as plugins; other objects are registered, so that
    their hooks are called. Environment variables are those in `environ`: none by default.
    """
    manager = PluginManager(environ=environ or {})
    for value in plugins:
        if inspect.isclass(value) or inspect.ismodule(value):
            name = value.__name__
            manager.add(Plugin(name, f"tests:{name}", "0", "installed", lambda: None), value)
        else:
            manager.register(value)
    return manager


def stand_in_run(
    rows: Mapping[str, int], *, seed: int = 0, rows_per_step: int = 16, **attributes: Any
) -> Any:
    """What samplers and weightings read of a run: tasks with so many train rows, and generators.

    `rows`: task name -> number of train rows. Other attributes are set as given. What is noted
    stands in `notes`.
    """
    from mtlcore import seeds

    tasks = [
        SimpleNamespace(
            name=name,
            index=index,
            train=range(count),
            recipe=SimpleNamespace(role="main", max_share=1.0),
        )
        for index, (name, count) in enumerate(rows.items())
    ]
    training = SimpleNamespace(
        per_device_train_batch_size=rows_per_step, gradient_accumulation_steps=1
    )
    notes: list[str] = attributes.setdefault("notes", [])
    attributes.setdefault("note", notes.append)
    return SimpleNamespace(
        tasks=tasks,
        step=0,
        seed=seed,
        rows_drawn=[0] * len(tasks),
        is_active=lambda task: True,
        recipe=SimpleNamespace(training=training, tasks=dict.fromkeys(rows)),
        generator=lambda step, *key: seeds.generator(seed, step, *key),
        **attributes,
    )


class StandInGradients:
    """Gradients of a step with a given J [T', P]."""

    def __init__(self, rows: Tensor, present: Sequence[int] | None = None) -> None:
        self._rows = rows
        self.present = list(range(len(rows)) if present is None else present)

    def rows(self) -> Tensor:
        """J [T', P]."""
        return self._rows

    def gramian(self, scope: str = "model") -> Tensor:
        """G = J J^T [T', T'] in float64; other scopes see every column as one: [P, T', T']."""
        rows = self._rows.double()
        if scope == "model":
            return rows @ rows.T
        return rows.T[:, :, None] * rows.T[:, None, :]
