"""Look at all rows of all tasks before a run: bad, repeated, leaked, over-long, contradictory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlcore.data.check_report import CheckReport
from mtlcore.data.task_checks import Column, Kept, Progress, TaskChecker
from mtlcore.errors import Problem, UserError, did_you_mean, require_tasks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mtlcore.data.tasks import Task
    from mtlcore.plugins import PluginManager
    from mtlcore.recipe import Recipe


def check_recipe(
    recipe: str | Path,
    overrides: Iterable[str] = (),
    *,
    tasks: Sequence[str] | None = None,
    columns: Sequence[str] = (),
    progress: Progress | None = None,
) -> CheckReport:
    """Read a recipe file and its tokenizer, and check its components and the rows of its tasks.

    `columns` name groups of people to count. Raises only if the recipe, a plugin or the tokenizer
    cannot be read; what is wrong with the components and the data is in the report.
    """
    from mtlcore.plugins import PluginManager
    from mtlcore.recipe_file import read_recipe
    from mtlcore.run import load_tokenizer

    read = read_recipe(recipe, overrides)
    loaded = read.recipe
    with read.locating_errors():
        plugins = PluginManager.load(local=loaded.plugins.load, disable=loaded.plugins.disable)
        tokenizer = load_tokenizer(loaded)
    report = check_tasks(
        loaded, tokenizer, plugins, tasks=tasks, columns=columns, progress=progress
    )
    report.errors = [read.located(problem) for problem in report.errors]
    report.warnings = [read.located(problem) for problem in report.warnings]
    report.notes[:0] = read.notes
    return report


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
    _check_components(recipe, plugins, readable, report)
    return report


def _check_components(
    recipe: Recipe, plugins: PluginManager, tasks: Sequence[Task], report: CheckReport
) -> None:
    """What a run would refuse before its first step."""
    from mtlcore.recipe_components import check_components, make_components
    from mtlcore.run import layout_of, trackers

    made = make_components(recipe, plugins)
    report.errors += made.problems
    layout = None
    try:
        trackers(recipe.training.report_to)
    except UserError as error:
        report.errors += error.problems
    try:
        layout = layout_of(recipe)
    except UserError as error:
        report.errors += error.problems
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
    specs: dict[str, Any] = {}
    for key in ("weighting", "sampling", "replay", "overall"):
        specs[key] = getattr(recipe, key)
    for key in ("regularization", "monitoring", "auditing"):
        specs |= {f"{key}[{i}]": spec for i, spec in enumerate(getattr(recipe, key))}
    for key, spec in specs.items():
        if spec is not None and isinstance(spec.options.get("column"), str):
            yield Column(spec.options["column"], f"{key}.column")
    for name, task in recipe.tasks.items():
        task_specs = {"rows": task.rows}
        task_specs |= {f"metrics[{i}]": spec for i, spec in enumerate(task.metrics)}
        for key, spec in task_specs.items():
            if isinstance(spec.options.get("column"), str):
                yield Column(spec.options["column"], f"tasks.{name}.{key}.column", name)


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
            known = {name for check in own for name in check.found_columns}
            names = ", ".join(repr(check.name) for check in own)
            report.errors.append(
                Problem(
                    column.where,
                    f"no rows of {names} have a column {column.name!r}",
                    did_you_mean(column.name, known),
                )
            )
