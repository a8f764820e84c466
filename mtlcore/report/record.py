"""The parts about what a run was made of: data, plugins' sections, environment, recipe."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from mtlcore.commands import resume_command
from mtlcore.report import charts
from mtlcore.report.blocks import Cell, Charts, Figure, Lines, Listing, Missing, Part, Table, Words
from mtlcore.report.charts import finite
from mtlcore.report.files import RunFiles, mapping, sequence
from mtlcore.report.text import NOTHING, clip, number, plain

COUNTS = {  # key of a split's counts -> heading; shown where any split has one
    "rows": "rows",
    "used": "used",
    "truncated": "cut",
    "dropped_overlong": "over-long",
    "skipped": "bad",
    "duplicates": "duplicates",
    "leaked": "leaked",
    "cleaned": "cleaned",
    "not_drawn": "not drawn",
}
ALWAYS = ("rows", "used")
WARNING = "warning"
MOST_ROWS = 200
MOST_LINES = 40


# -- data ------------------------------------------------------------------------------------------


def notes_of(files: RunFiles) -> list[str]:
    """What the run told its user, in order."""
    found = [*sequence(files.environment.get("notes")), *sequence(files.result.get("notes"))]
    return list(dict.fromkeys(str(note) for note in found))


def warnings_of(files: RunFiles) -> list[str]:
    """That the run is unfinished, and the notes that are warnings."""
    found = [note for note in notes_of(files) if note.lower().startswith(WARNING)]
    logged, ended = files.steps[-1:], finite(files.result.get("step"))
    if logged and not (ended is not None and ended >= logged[0]["step"]):
        found.insert(
            0,
            f"The run is unfinished: its log ends at step {number(logged[0]['step'])}, and no "
            "result.json tells of its end. To go on: "
            f"{resume_command(files.shown)} (or the verb that began it, with --resume).",
        )
    return found


def data_part(files: RunFiles) -> Part | None:
    """Rows by task and split, what `mtlcore check` found, and the run's notes."""
    part = Part("Data")
    data = mapping(files.environment.get("data"))
    if data:
        part.blocks.append(_counts(data))
        if bad := _bad_rows(data):
            part.blocks.append(Lines("Bad rows that were skipped", bad, folded=True))
    part.blocks += _check(files)
    notes = [note for note in notes_of(files) if note not in warnings_of(files)]
    if notes:
        part.blocks.append(
            Lines("Notes of the run", [clip(note) for note in notes], folded=len(notes) > 6)
        )
    return part if part.blocks else None


def _counts(data: Mapping[str, Any]) -> Table:
    splits = [
        (str(task), str(name), mapping(split))
        for task, found in data.items()
        for name, split in mapping(found).items()
    ]
    keys = [k for k in COUNTS if k in ALWAYS or any(split.get(k) for _, _, split in splits)]
    rows: list[list[Cell | str]] = []
    before = None
    for task, name, split in splits:
        path = str(split.get("path", ""))
        file = Cell(path.replace("\\", "/").rpartition("/")[2] or path, under="")
        rows.append(
            [
                Cell(task, "hidden" if task == before else ""),
                name,
                file,
                *(number(finite_count(split.get(key))) for key in keys),
            ]
        )
        before = task
    columns = ["task", "split", "file", *(COUNTS[key] for key in keys)]
    return Table("Rows by task and split", columns, rows, text_columns=(0, 1, 2))


def finite_count(value: Any) -> Any:
    """Whole numbers as they are, anything else as nothing."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _bad_rows(data: Mapping[str, Any]) -> list[str]:
    return [
        clip(str(place))
        for found in data.values()
        for split in mapping(found).values()
        for place in sequence(mapping(split).get("bad"))
    ]


def _check(files: RunFiles) -> list[Any]:
    """Errors and warnings of check.json, and how groups are represented."""
    found = files.check
    if not found:
        return []
    blocks: list[Any] = []
    for key, title, tone in (
        ("errors", "Errors found by mtlcore check", "bad"),
        ("warnings", "Warnings of mtlcore check", "warn"),
    ):
        problems = [_problem(one) for one in sequence(found.get(key))]
        if problems:
            folded = len(problems) > 6
            blocks.append(Lines(title, problems[:MOST_LINES], tone, folded))  # type: ignore[arg-type]
    if not blocks:
        blocks.append(Words("mtlcore check found no errors and no warnings."))
    rows: list[list[Cell | str]] = []
    for check in map(mapping, sequence(found.get("groups"))):
        for group in map(mapping, sequence(check.get("groups"))):
            total = mapping(group.get("total"))
            labels = mapping(group.get("labels"))
            too_few = bool(group.get("too_few"))
            rows.append(
                [
                    str(check.get("task", "")),
                    f"{check.get('column', '')} = {clip(str(group.get('value', '')), 60)}",
                    Cell(
                        number(finite_count(total.get("rows"))),
                        "warn" if too_few else "",
                        under="too few" if too_few else "",
                    ),
                    _share(total),
                    "; ".join(f"{name} {_share(mapping(v))}" for name, v in labels.items()),
                ]
            )
    if rows:
        columns = ["task", "group", "rows", "share of the task", "share of each label"]
        caption = "Groups, with 95% intervals (Wilson)"
        blocks.append(Table(caption, columns, rows[:MOST_ROWS], text_columns=(0, 1, 4)))
    return blocks


def _problem(one: Any) -> str:
    found = mapping(one)
    if not found:
        return clip(str(one))
    where, fix = found.get("where"), found.get("fix")
    text = f"{where}: {found.get('message', '')}" if where else str(found.get("message", ""))
    return clip(f"{text} ({fix})" if fix else text)


def _share(values: Mapping[str, Any]) -> str:
    share, low, high = (finite(values.get(key)) for key in ("share", "low", "high"))
    if share is None:
        return NOTHING
    inside = (
        f" ({100 * low:.0f} to {100 * high:.0f}%)" if low is not None and high is not None else ""
    )
    return f"{100 * share:.0f}%{inside}"


# -- sections of plugins ---------------------------------------------------------------------------


def plugin_parts(files: RunFiles) -> list[Part]:
    """What plugins had to report: any title, text, table and charts, all of it taken as text."""
    maps = [value for value in files.affinity.values() if isinstance(value, list)]
    sections = [mapping(one) for one in sequence(files.result.get("sections")) if one]
    return [_section(section, maps) for section in sections]


def _section(section: Mapping[str, Any], maps: list[Any]) -> Part:
    """One section; the `maps` of affinity.json have a part of their own and are not drawn twice."""
    title, topic = section.get("title") or "Untitled section", section.get("topic") or ""
    part = Part(clip(str(title), 120), topic=clip(str(topic), 120))
    text = section.get("text")
    paragraphs = [text] if isinstance(text, str) else sequence(text)
    part.blocks += [Words(clip(str(paragraph), 4000)) for paragraph in paragraphs]
    if table := mapping(section.get("table")):
        part.blocks.append(_table(table, part.title))
    figures = [
        _chart(mapping(chart))
        for chart in sequence(section.get("charts"))
        if not mapping(chart).get("values") or mapping(chart)["values"] not in maps
    ]
    if figures:
        part.blocks.append(Charts(figures))
    return part


def _table(table: Mapping[str, Any], caption: str) -> Table:
    columns = {str(name): sequence(values) for name, values in table.items()}
    rows = [
        [clip(NOTHING if cell is None else cell, 400) for cell in row]
        for row in zip_longest(*columns.values())
    ][:MOST_ROWS]
    texts = [
        index
        for index, values in enumerate(columns.values())
        if not values or any(isinstance(value, str) for value in values)
    ]
    left = max(map(len, columns.values())) - len(rows)
    more = f" (the first {len(rows)} of {len(rows) + left} rows)" if left else ""
    return Table(caption + more, list(columns), rows, text_columns=texts)


def _chart(chart: Mapping[str, Any]) -> Figure:
    title = clip(str(chart.get("title") or "Chart"), 160)
    x_label, y_label = str(chart.get("x_label") or ""), str(chart.get("y_label") or "")
    labels = [str(label) for label in sequence(chart.get("labels"))]
    series = {
        str(name): [
            (point[0], point[1]) for point in map(sequence, sequence(points)) if len(point) == 2
        ]
        for name, points in mapping(chart.get("series")).items()
    }
    kind = chart.get("kind")
    if kind == "heatmap":
        columns = [str(column) for column in sequence(chart.get("columns"))]
        values = [sequence(row) for row in sequence(chart.get("values"))]
        svg = charts.heatmap(title, labels, columns, values, x_label=x_label, y_label=y_label)
    elif kind == "bars":
        svg = charts.bars(title, labels, _bar_columns(labels, series), x_label=y_label or x_label)
    else:
        thin = {
            name: charts.thinned([(x, y) for x, y in points if drawable(x, y)])[0]
            if len(points) > 2 * charts.MOST_POINTS and kind == "lines"
            else points
            for name, points in series.items()
        }
        joined = kind != "points"
        svg = charts.lines(title, thin, x_label=x_label, y_label=y_label, joined=joined)
    return Figure(title, svg)


def drawable(x: Any, y: Any) -> bool:
    """Whether both are finite numbers."""
    return finite(x) is not None and finite(y) is not None


def _bar_columns(
    labels: list[str], series: Mapping[str, list[tuple[Any, Any]]]
) -> dict[str, list[Any]]:
    """(position, value) pairs as one value per label; positions without a label get a number."""
    positions = [int(x) for points in series.values() for x, _ in points if finite(x) is not None]
    count = min(max([len(labels), *(at + 1 for at in positions)]), MOST_ROWS)
    labels += [str(at) for at in range(len(labels), count)]
    found: dict[str, list[Any]] = {name: [None] * count for name in series}
    for name, points in series.items():
        for x, y in points:
            at = finite(x)
            if at is not None and 0 <= int(at) < count:
                found[name][int(at)] = y
    return found


# -- environment and recipe ------------------------------------------------------------------------


def environment_part(files: RunFiles) -> Part | Missing:
    """Versions, device, seeds, plugins: what one needs to make the run again."""
    found = files.environment
    if not found:
        return Missing("Environment", "environment.json is missing", "mtlcore train RECIPE")
    part = Part("Environment")
    facts = {
        "model": mapping(files.recipe.get("model")).get("name_or_path"),
        "base model": found.get("base_model"),
        "seed": mapping(files.recipe.get("training")).get("seed"),
        "device": found.get("device"),
        "threads": found.get("threads"),
        "python": found.get("python"),
        "platform": found.get("platform"),
        "batches without padding": found.get("flat_batches"),
        **{str(name): version for name, version in mapping(found.get("versions")).items()},
    }
    rows: list[list[Cell | str]] = [
        [name, clip(plain(value), 200)] for name, value in facts.items() if value is not None
    ]
    part.blocks.append(Table("What the run depended on", ["what", "value"], rows, (0, 1)))
    plugins: list[list[Cell | str]] = [
        [
            str(plugin.get("name", "")),
            f"{plugin.get('distribution') or 'local file'} {plugin.get('version') or ''}".strip(),
            str(plugin.get("sha256") or "")[:12],
        ]
        for plugin in map(mapping, sequence(found.get("plugins")))
    ]
    if plugins:
        columns = ["plugin", "from", "sha256"]
        part.blocks.append(Table("Plugins that were active", columns, plugins, (0, 1, 2)))
    return part


def recipe_part(files: RunFiles) -> Part | None:
    """The resolved recipe, as it can be trained again."""
    if not files.recipe_text:
        return None
    return Part("Recipe", [Listing("recipe.yaml, every key resolved", files.recipe_text)])
