"""The components that a recipe names: made of it, and checked against the tasks without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from mtlcore.components import Component, Weighting, WeightSchedule
from mtlcore.errors import Problem, UserError
from mtlcore.recipe import ComponentSpec
from mtlcore.weight_schedule import ScheduledWeighting

if TYPE_CHECKING:
    from mtlcore.components import Evaluator
    from mtlcore.data.tasks import Task
    from mtlcore.model.layout import Layout
    from mtlcore.plugins import PluginManager
    from mtlcore.recipe import Recipe


@dataclass
class Made:
    """The components that could be made, and what is wrong with the others."""

    by_key: dict[str, Component] = field(default_factory=dict)
    """ "<key of the recipe>:<name>" -> component, in the order of the recipe."""
    evaluators: dict[str, list[Evaluator]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def of_kind(self, kind: str) -> list[Any]:
        """The components of one kind."""
        return [component for component in self.by_key.values() if component.kind == kind]

    @property
    def weighting(self) -> Any:
        """The one that is asked: with a schedule, what stands around the recipe's weighting."""
        return self.asked("weighting")

    def asked(self, where: str) -> Any:
        """The weighting of a key, or the schedule around it; None if there is none."""
        found = {key.rpartition(":")[0]: component for key, component in self.by_key.items()}
        return found.get(f"{where}.schedule", found.get(where))


class Named(NamedTuple):
    """A component as a recipe names it; `task` is set if it is of one task alone."""

    kind: str
    spec: ComponentSpec
    task: str | None = None


def named_components(recipe: Recipe) -> dict[str, Named]:
    """Key of the recipe -> the component named there, formats left out, in a fixed order."""
    found: dict[str, Named] = {}
    with suppress(ValidationError):  # which the weighting itself tells
        if (main := recipe.weighting.options.get("main")) is not None:
            found["weighting.main"] = Named("weighting", ComponentSpec.model_validate(main))
    found["weighting"] = Named("weighting", recipe.weighting)
    found["sampling"] = Named("sampling", recipe.sampling)
    for kind in ("regularization", "monitoring", "auditing"):
        for index, spec in enumerate(getattr(recipe, kind)):
            found[f"{kind}[{index}]"] = Named(kind, spec)
    if recipe.replay is not None:
        found["replay"] = Named("replay", recipe.replay)
    found["overall"] = Named("overall", recipe.overall)
    for name, task in recipe.tasks.items():
        found[f"tasks.{name}.rows"] = Named("rows", task.rows, name)
        for index, spec in enumerate(task.metrics):
            found[f"tasks.{name}.metrics[{index}]"] = Named("evaluation", spec, name)
    return found


def make_components(recipe: Recipe, plugins: PluginManager) -> Made:
    """Create every component that a recipe names, and register its hooks."""
    made = Made(evaluators={name: [] for name in recipe.tasks})
    for where, (kind, spec, task) in named_components(recipe).items():
        try:
            component = plugins.create(kind, spec, where)
        except UserError as error:
            made.problems += error.problems
            continue
        if task is not None:
            component.tasks = (task,)
        if kind == "evaluation":
            made.evaluators[str(task)].append(component)
        if where == "weighting" and (inner := made.asked("weighting.main")):
            component.set_inner(inner)
        made.by_key[f"{where}:{spec.name}"] = component
        plugins.register(component)
        if kind == "weighting" and component.schedule != WeightSchedule():
            scheduled = ScheduledWeighting(component, plugins)  # asked before it, and asks it
            made.by_key[f"{where}.schedule:{spec.name}"] = scheduled
            plugins.register(scheduled, f"weighting schedule:{spec.name}")
    return made


def check_components(
    plugins: PluginManager,
    components: Mapping[str, Component],
    recipe: Recipe,
    tasks: Sequence[Task],
    layout: Layout | None,
) -> tuple[list[Problem], list[Problem]]:
    """What every `mtlcore_check` refuses, and what it warns of.

    Without a layout, which a wrong recipe may not give, the checks that look at it are left out.
    """
    keys = {id(component): key.rpartition(":")[0] for key, component in components.items()}
    errors: list[Problem] = []
    warnings: list[Problem] = []
    for implementation in plugins.hook.mtlcore_check.get_hookimpls():
        if layout is None and "layout" in implementation.argnames:
            continue
        plugin = implementation.plugin
        found, kept = [], errors
        try:
            answers = plugins.only("mtlcore_check", [plugin])(
                recipe=recipe, tasks=tasks, layout=layout, components=components
            )
            found, kept = [problem for some in answers for problem in some], warnings
        except UserError as error:
            found = error.problems
        kept += [_at(problem, plugin, keys.get(id(plugin), "")) for problem in found]
    for component in components.values():
        if isinstance(component, Weighting):
            warnings += component.loss_weight_warnings(recipe)
    return errors, warnings


def _at(problem: Problem, plugin: Any, key: str) -> Problem:
    """A component knows its kind (`monitoring`), the recipe its place (`monitoring[1]`)."""
    kind = getattr(plugin, "kind", "")
    if not problem.where:
        return replace(problem, where=key)
    if key and (problem.where == kind or problem.where.startswith(f"{kind}.")):
        return replace(problem, where=key + problem.where.removeprefix(kind))
    return problem
