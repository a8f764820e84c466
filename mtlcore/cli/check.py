"""`mtlcore check`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mtlcore.cli.console import only_results_on_stdout
from mtlcore.cli.options import AsJson, Overrides, Tasks
from mtlcore.errors import counted
from mtlcore.terminal import plain

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from mtlcore.data.check_report import CheckReport, GroupCheck, TaskCheck
    from mtlcore.preflight.records import Memory, ModelCheck, Plan

MOST_LABELS = 20


def check(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe's YAML file.")],
    overrides: Overrides = None,
    task: Tasks = None,
    column: Annotated[
        list[str] | None, typer.Option(help="Count the groups in this column; repeatable.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 2 for warnings too.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Also write the report to this JSON file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look at recipe, model and rows before training; say what a run would take."""
    from rich.console import Console

    from mtlcore.preflight.check import check_recipe

    errors = Console(stderr=True)
    with only_results_on_stdout(), errors.status("reading") as status:
        found = check_recipe(
            recipe,
            overrides or (),
            tasks=task or None,
            columns=column or (),
            progress=lambda what: status.update(_text(what)),
        )
    text = json.dumps(found.to_json(), indent=2)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")
    if as_json:
        typer.echo(text)
    else:
        _print(found)
    raise typer.Exit(found.exit_code(strict=strict))


def _print(found: CheckReport) -> None:
    from rich.console import Console

    console = Console(highlight=False)

    def say(text: str, style: str = "") -> None:
        console.print(_text(text, style), soft_wrap=True)  # or long paths are broken

    bad = any(rows.bad for task in found.tasks.values() for rows in task.splits.values())
    if any(task.splits for task in found.tasks.values()) and (bad or not found.errors):
        console.print(_rows_table(found))
    if found.errors:  # they should be seen without scrolling
        say("note: tables are left out because of the errors; --json has all")
    else:
        _print_tables(found, console, say)
    for note in found.notes:
        say(f"note: {note}")
    kinds = (("warning", "yellow", found.warnings), ("error", "red", found.errors))
    for kind, style, problems in kinds:
        for problem in problems:
            where = f"{problem.where}: " if problem.where else ""
            say(f"{kind}: {where}{problem.message}", style)
            if problem.fix:
                say(f"  fix: {problem.fix}")
    counts = {"error": len(found.errors), "warning": len(found.warnings)}
    say(", ".join(counted(n, what) for what, n in counts.items()))


def _print_tables(found: CheckReport, console: Console, say: Callable[[str], None]) -> None:
    """What is in the rows, and what a run would take."""
    for name, task in found.tasks.items():
        if 0 < len(task.labels) <= MOST_LABELS:
            console.print(_labels_table(name, task))
        elif task.labels:
            say(f"{name}: {len(task.labels)} labels")
        if task.near_count:
            pairs = "pair" if task.near_count == 1 else "pairs"
            say(f"{name}: {task.near_count} {pairs} of nearly equal texts")
            for near in task.near[:5]:
                say(f"  {near.rows[0]} ~ {near.rows[1]} (similarity {near.similarity:.2f})")
    for group in found.groups:
        console.print(_groups_table(group))
    if found.model is not None:
        console.print(_adapters_table(found.model))
        say(_base_line(found.model))
    if found.plan is not None:
        console.print(_stages_table(found.plan))
        console.print(_memory_table(found.plan.memory))
        for line in _plan_lines(found.plan):
            say(line)


def _table(title: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(
        title=_text(title),
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )


def _rows_table(found: CheckReport) -> Table:
    table = _table("rows")
    for name in ("task", "split"):
        table.add_column(name, overflow="fold")
    for name in ("rows", "used", "bad", "twice", "long", "tokens", "learned"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, task in found.tasks.items():
        for split, rows in task.splits.items():
            twice = rows.duplicates + rows.duplicates_dropped
            numbers = (rows.rows, rows.used, rows.bad, twice, rows.overlong)
            lengths = rows.tokens
            tokens = f"{lengths.median} / {lengths.p95} / {lengths.max}" if lengths else ""
            table.add_row(_text(name), split, *map(str, numbers), tokens, str(rows.labelled_tokens))
    table.caption = _text("tokens of a row: median / 95% / longest; learned: tokens with a loss")
    return table


def _labels_table(name: str, task: TaskCheck) -> Table:
    table = _table(f"labels of {name}")
    table.add_column("label", overflow="fold")
    splits = list(task.splits)
    for split in splits:
        table.add_column(split, justify="right")
    for label, counts in task.labels.items():
        table.add_row(_text(label), *(str(counts.get(split, 0)) for split in splits))
    return table


def _groups_table(group: GroupCheck) -> Table:
    table = _table(f"groups of {group.task} by {group.column}")
    table.add_column("group", overflow="fold")
    for column in ("rows", "share", "95% interval"):
        table.add_column(column, justify="right")
    table.add_column("labels", overflow="fold")
    for found in group.groups:
        part = found.total
        labels = ", ".join(f"{label} {count.rows}" for label, count in found.labels.items())
        table.add_row(
            _text(found.value),
            str(part.rows),
            f"{part.share:.1%}",
            f"{part.low:.1%} to {part.high:.1%}",
            _text("too few rows" if found.too_few else labels),
        )
    if group.values > len(group.groups):
        table.add_row(f"and {group.values - len(group.groups)} more", "", "", "", "")
    return table


def _adapters_table(model: ModelCheck) -> Table:
    from mtlcore.preflight.records import readable

    table = _table("adapters")
    for name in ("adapter", "tasks"):
        table.add_column(name, overflow="fold")
    for name in ("r", "layers", "parameters", "size"):
        table.add_column(name, justify="right", no_wrap=True)
    for adapter in model.adapters:
        table.add_row(
            _text(adapter.name),
            _text(", ".join(adapter.tasks)),
            str(adapter.r or ""),
            str(adapter.layers),
            f"{adapter.parameters:,}",
            readable(adapter.size) + ("" if adapter.trained else ", frozen"),
        )
    return table


def _base_line(model: ModelCheck) -> str:
    from mtlcore.preflight.records import readable

    code = ", with code of its own (trust_remote_code)" if model.remote_code else ""
    return (
        f"on {model.architecture}{code}: {model.frozen_parameters:,} frozen parameters, "
        f"{readable(model.frozen_size)} in {model.dtype}"
    )


def _stages_table(plan: Plan) -> Table:
    table = _table("steps")
    for name in ("stage", "task"):
        table.add_column(name, overflow="fold")
    for name in ("steps", "rows", "passes"):
        table.add_column(name, justify="right", no_wrap=True)
    for stage in plan.stages:
        for task, rows in stage.rows.items():
            cells = (str(stage.steps), f"{rows:,.0f}", f"{stage.passes[task]:.2f}")
            table.add_row(_text(stage.name), _text(task), *cells)
    table.caption = _text("passes over the task's rows, expected")
    return table


def _memory_table(memory: Memory) -> Table:
    from mtlcore.preflight.records import readable

    table = _table(f"memory ({memory.device})")
    table.add_column("of")
    table.add_column("size", justify="right")
    estimates = ("activations", "logits", "total")
    for name, size in vars(memory).items():
        if name != "device":
            table.add_row(name + " (estimate)" * (name in estimates), readable(size))
    return table


def _plan_lines(plan: Plan) -> list[str]:
    """What a run would do and need, in words."""
    from mtlcore.preflight.records import readable

    disk, tokens = plan.disk, plan.tokens_per_step
    many = "" if disk.checkpoints == 1 else "s"
    return [
        f"steps: {plan.steps:,} of {plan.rows_per_step:,} rows each, in one process",
        f"tokens of a step: mean {tokens.mean:,.0f}, 95% below {tokens.p95:,.0f}",
        f"disk: {disk.checkpoints} checkpoint{many} of {readable(disk.checkpoint)}, "
        f"{readable(disk.needed)} in all; free: {readable(disk.free)}",
    ]


def _text(text: str, style: str = "") -> Text:
    """Text as it is: no markup is read in it."""
    from rich.text import Text

    return Text(plain(text), style)
