"""Look at all rows of all tasks before a run: bad, repeated, leaked, over-long, contradictory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mtlcore.data.check_report import CheckReport
from mtlcore.data.task_checks import Column, Kept, Progress, TaskChecker
from mtlcore.errors import Problem, did_you_mean, require_tasks
from mtlcore.recipe_components import Made, check_components, make_components, named_components

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mtlcore.data.tasks import Task
    from mtlcore.model.layout import Layout
    from mtlcore.plugins import PluginManager
    from mtlcore.recipe import Recipe


@dataclass
class Looked:
    """What a run would get: the tasks and components without an error."""

    tasks: list[Task]
    components: Made
    layout: Layout | None


def check_tasks(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    plugins: PluginManager,
    *,
    tasks: Sequence[str] | None = None,
    columns: Sequence[str] = (),
    progress: Progress | None = None,
) -> CheckReport:
    """Check components and the rows of all or some tasks; the report has all their problems.

    Groups are counted by `columns` and by every option `column` of the recipe's components.
    """
    require_tasks(tasks or (), recipe.tasks, "--task")
    report = CheckReport()
    look_at_tasks(
        recipe, tokenizer, plugins, report, tasks=tasks, columns=columns, progress=progress
    )
    return report


def look_at_tasks(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    plugins: PluginManager,
    report: CheckReport,
    *,
    tasks: Sequence[str] | None = None,
    columns: Sequence[str] = (),
    progress: Progress | None = None,
    ask_components: bool = True,
) -> Looked:
    """What `check_tasks` does; problems go to the report, the tasks and components come back.

    Without `ask_components` these are made, but not asked whether they can work with the tasks.
    """
    from mtlcore.run import layout_of, trackers

    wanted = [*(Column(name, f"--column {name}") for name in columns), *_columns_of(recipe)]
    checks = []
    for name in recipe.tasks:
        if tasks is None or name in tasks:
            named = [column for column in wanted if column.task in (None, name)]
            check = TaskChecker(recipe, name, tokenizer, plugins, report, named, progress)
            check.run()
            checks.append(check)
    if progress:
        progress("comparing the tasks")
    _compare_tasks(checks, report)
    _require_columns(wanted, checks, report, whole=tasks is None)
    readable = [task for check in checks if (task := check.as_task()) is not None]
    made = make_components(recipe, plugins)
    report.errors += made.problems
    for name in recipe.training.report_to:
        report.collect(trackers, [name])
    layout = report.collect(layout_of, recipe)
    if ask_components:
        _ask_components(recipe, plugins, made, readable, layout, report)
    return Looked(readable, made, layout)


def _ask_components(
    recipe: Recipe,
    plugins: PluginManager,
    made: Made,
    tasks: Sequence[Task],
    layout: Layout | None,
    report: CheckReport,
) -> None:
    """What a run would refuse before its first step."""
    for task in tasks:
        plugins.register(task.format, f"tasks.{task.name}.format")
    # A column that is missing was told already.
    columns = [p.where for p in report.errors if p.where.endswith(".column")]
    missing = [where.removesuffix(".column") for where in columns]
    errors, warnings = check_components(plugins, made.by_key, recipe, tasks, layout)
    report.errors += [p for p in errors if p.where.removesuffix(".column") not in missing]
    report.warnings += warnings


def _columns_of(recipe: Recipe) -> Iterator[Column]:
    """The option `column` of every component of the recipe."""
    for key, (_, spec, task) in named_components(recipe).items():
        if isinstance(spec.options.get("column"), str):
            yield Column(spec.options["column"], f"{key}.column", task)


def _compare_tasks(checks: Sequence[TaskChecker], report: CheckReport) -> None:
    """Rows that one task is scored on and another is trained on."""
    for other in checks:
        trained = {row.text: row for row in reversed(other.rows) if row.split == "train"}
        for check in checks:
            if check is other:
                continue
            for split in ("eval", "test"):
                scored = [row for row in check.rows if row.split == split]
                places = Kept[tuple[str, str]]()
                for row in scored:
                    if row.text in trained:
                        places.add((check.place(row), other.place(trained[row.text])))
                if places.count:
                    check.add_leak(split, other.name, "train", places, len(scored))


def _require_columns(
    wanted: Iterable[Column], checks: Sequence[TaskChecker], report: CheckReport, *, whole: bool
) -> None:
    """A column that is in none of its tasks is an error; tasks that could not be read have none."""
    for column in wanted:
        given = column.where.startswith("--")
        own = [c for c in checks if column.task in (None, c.name) and c.found_columns]
        if not own or any(column.name in check.found_columns for check in own):
            continue
        if whole or given or column.task is not None:
            read = [rows for check in own for rows in check.sources.values()]
            known = {name for rows in read for name in rows.columns}
            names = ", ".join(repr(check.name) for check in own)
            report.errors.append(
                Problem(
                    column.where,
                    f"no rows of {names} have a column {column.name!r}",
                    did_you_mean(column.name, known),
                )
            )
