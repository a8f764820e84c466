"""The parts about training: curves, weights, rows, conflicts between tasks, cost."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from markupsafe import Markup

from mtlcore.components import CONFLICTS
from mtlcore.records import UNTURNED
from mtlcore.report import charts
from mtlcore.report.blocks import Cell, Charts, Figure, Missing, Part, Table, Words
from mtlcore.report.charts import finite
from mtlcore.report.files import RunFiles, mapping, sequence
from mtlcore.report.text import MINUS, NOTHING, duration, number, percent

MOST_MEANS = 6
"""More tasks than these are not listed in a sentence."""

Curves = dict[str, list[tuple[Any, Any]]]


def over_steps(files: RunFiles, key: str) -> Curves:
    """One curve per task of what step lines have under a key."""
    found: Curves = {}
    for line in files.steps:
        for name, value in mapping(line.get(key)).items():
            found.setdefault(str(name), []).append((line["step"], value))
    return found


def _over_steps(files: RunFiles, key: str) -> list[tuple[Any, Any]]:
    """What step lines have under a key that is one number; empty where none has it."""
    points = [(line["step"], line.get(key)) for line in files.steps]
    return points if _known(points) else []


def _known(points: Iterable[tuple[Any, Any]]) -> list[float]:
    return [value for _, y in points if (value := finite(y)) is not None]


def evaluation_keys(files: RunFiles) -> dict[str, tuple[str, str]]:
    """Key of an evaluation line -> (task, metric). A task name may hold underscores."""
    tasks = sorted(files.tasks, key=len, reverse=True)
    found: dict[str, tuple[str, str]] = {}
    for line in files.evaluations:
        for key in line:
            task = next((t for t in tasks if key.startswith(f"eval_{t}_")), None)
            if task is not None and key not in found:
                found[key] = (task, key[len(f"eval_{task}_") :])
    return found


def _curve(files: RunFiles, key: str) -> list[tuple[Any, Any]]:
    return [(line["step"], line[key]) for line in files.evaluations if key in line]


def _thinned(curves: Curves, points_at_most: int) -> tuple[Curves, str]:
    """Long curves as means over buckets, and the words that say so."""
    found: Curves = {}
    most = 1
    for name, points in curves.items():
        drawable = [(x, y) for x, y in points if finite(y) is not None]
        if len(drawable) > points_at_most:
            found[name], size = charts.thinned(drawable, points_at_most)
            most = max(most, size)
        else:
            found[name] = points
    return found, f"Each point is the mean of {most} logged steps." if most > 1 else ""


def _figure(
    files: RunFiles,
    title: str,
    curves: Curves,
    y_label: str,
    note: str = "",
    points: int = charts.MOST_POINTS,
) -> Figure:
    thin, caption = _thinned(curves, points)
    svg = charts.lines(
        title,
        thin,
        x_label="step",
        y_label=y_label,
        marks=files.stage_starts,
        strong="overall",
        colours=files.colours if curves.keys() & files.colours.keys() else None,
    )
    return Figure(title, svg, " ".join(filter(None, (note, caption))))


# -- curves ----------------------------------------------------------------------------------------


def curves_part(files: RunFiles) -> Part | Missing:
    """Losses and scores over the steps."""
    figures = []
    if losses := over_steps(files, "losses"):
        figures.append(_figure(files, "Training loss", losses, "loss per target token"))
    if files.evaluations:
        keys = evaluation_keys(files)
        eval_losses = {t: _curve(files, k) for k, (t, metric) in keys.items() if metric == "loss"}
        if eval_losses:
            figures.append(_figure(files, "Evaluation loss", eval_losses, "loss per target token"))
        figures += _metric_figures(files, keys)
    if not figures:
        return Missing("Curves", "metrics.jsonl holds no step", "mtlcore train RECIPE")
    rates = [(line["step"], line.get("learning_rate")) for line in files.steps]
    if any(finite(rate) is not None for _, rate in rates):
        figures.append(_figure(files, "Learning rate", {"rate": rates}, "learning rate"))
    part = Part("Curves", [Charts(figures)])
    if files.stage_starts:
        names = ", ".join(files.stage_starts)
        part.blocks.insert(0, Words(f"Stages, marked where they begin: {names}."))
    if not files.evaluations:
        text = "The eval split was not scored during training: set training.eval_steps."
        part.blocks.append(Words(text, "quiet"))
    return part


def _metric_figures(files: RunFiles, keys: Mapping[str, tuple[str, str]]) -> list[Figure]:
    """The primary metrics that lie in 0 to 1 in one chart, with the overall score; others apart."""
    primary: dict[str, tuple[str, str]] = {}  # task -> (key, metric)
    for task in files.tasks:
        own = {metric: key for key, (t, metric) in keys.items() if t == task and metric != "loss"}
        own = {m: k for m, k in own.items() if not m.endswith(("_low", "_high"))}
        named = [name for name in files.metrics_of(task) if name in own] or list(own)
        if named:
            primary[task] = (own[named[0]], named[0])
    panels: dict[str, Curves] = {}
    for task, (key, metric) in primary.items():
        curve = _curve(files, key)
        values = [value for _, y in curve if (value := finite(y)) is not None]
        within = all(0 <= value <= 1 for value in values)
        panels.setdefault("" if within else metric, {})[task] = curve
    if overall := _curve(files, "eval_overall"):
        panels = {"": {}} | panels
        panels[""]["overall"] = overall
    figures = []
    for metric, curves in panels.items():
        title = f"Evaluation score: {metric}" if metric else "Evaluation scores"
        used = {primary[task][1] for task in curves if task in primary}
        note = "" if metric else "Metrics: " + ", ".join(sorted(used)) + "." if used else ""
        figures.append(_figure(files, title, curves, metric or "primary metric", note))
    return figures


# -- weights, rows, tokens -------------------------------------------------------------------------


def weights_part(files: RunFiles) -> Part | Missing:
    """Task weights, what they made of the update, gradient norms and penalties over the steps."""
    weights = _weights(files)
    if not weights:
        return Missing("Task weights", "metrics.jsonl holds no weights", "mtlcore train RECIPE")
    name = _component(files, "weighting")
    values = {finite(y) for points in weights.values() for _, y in points} - {None}
    blocks: list[Any] = []
    if len(values) == 1:
        value = number(next(iter(values)))
        blocks.append(Words(f"{name} gave every task the weight {value} in every logged step."))
    elif values:
        means = {task: _known(points) for task, points in weights.items()}
        shown = ", ".join(f"{t} {number(sum(v) / len(v))}" for t, v in means.items() if v)
        few = len(means) <= MOST_MEANS
        said = f"; means over the logged steps: {shown}" if few else ""
        blocks.append(Words(f"Weights by {name}{said}."))
    if effect := _effect(files, name):
        blocks.append(Words(effect))
    figures = []
    spreads = over_steps(files, "weight_spread")
    if len(values) > 1:
        note = "Means over the scopes." if spreads else ""
        figures.append(_figure(files, f"Task weights ({name})", weights, "weight", note))
    if spreads:
        title = "Spread of the weights over the scopes"
        figures.append(_figure(files, title, spreads, "standard deviation"))
    if cosines := _over_steps(files, "update_cosine"):
        title = "Cosine of the update with the mean gradient"
        note = "1: the direction of equal weights."
        figures.append(_figure(files, title, {"update": cosines}, "cosine", note))
    if norms := over_steps(files, "grad_norms"):
        figures.append(_figure(files, "Gradient norms", norms, "norm before clipping"))
    penalties = over_steps(files, "penalties")
    if penalties:
        figures.append(_figure(files, "Penalties", penalties, "penalty"))
    blocks.append(Charts(figures))
    return Part("Task weights over time", blocks)


def _effect(files: RunFiles, name: str) -> str:
    """How far the weighting turned the updates, in words; nothing where that was not measured."""
    update = mapping(mapping(files.result.get("conflicts")).get("update"))
    cosine, angle, steps = (finite(update.get(k)) for k in ("mean_cosine", "mean_angle", "steps"))
    basis = f"{number(round(steps))} steps" if steps else ""
    if cosine is None or angle is None:  # unfinished
        cosines = [max(-1.0, min(1.0, c)) for c in _known(_over_steps(files, "update_cosine"))]
        if not cosines:
            return ""
        cosine = sum(cosines) / len(cosines)
        angle = sum(math.degrees(math.acos(c)) for c in cosines) / len(cosines)
        basis = f"{number(len(cosines))} logged steps"
    found = f"{angle:.1f}° on average over {basis}"
    if cosine > UNTURNED:
        return f"{name} left the update in the direction of the mean gradient: {found}."
    return f"{name} turned the update away from the mean gradient of the tasks: {found}."


def _weights(files: RunFiles) -> Curves:
    """Weights over the steps; a task without rows in a step has none, whatever was logged."""
    present = {line["step"]: mapping(line["losses"]).keys() for line in files.steps}
    return {
        task: [(step, weight if task in present[step] else None) for step, weight in points]
        for task, points in over_steps(files, "weights").items()
        if any(task in present[step] for step, _ in points)
    }


def rows_part(files: RunFiles) -> Part | None:
    """How the batches were mixed."""
    rows, tokens = totals(files, "rows"), totals(files, "tokens")
    if not rows:
        return None
    all_rows, all_tokens = sum(rows.values()) or 1, sum(tokens.values()) or 1
    labels = list(rows)
    title = "Share of rows and tokens"
    figure = charts.bars(
        title,
        labels,
        {
            "rows": [100 * rows[task] / all_rows for task in labels],
            "tokens": [100 * tokens.get(task, 0) / all_tokens for task in labels],
        },
        x_label="percent",
        unit="%",
    )
    shares: Curves = {}
    for line in files.steps:
        found = {t: finite(v) or 0.0 for t, v in mapping(line.get("rows")).items()}
        whole = sum(found.values())
        for task, count in found.items():
            shares.setdefault(str(task), []).append(
                (line["step"], 100 * count / whole if whole else None)
            )
    return Part(
        "Rows and tokens by task",
        [
            Words(f"Rows are drawn by {_component(files, 'sampling')}. {_basis(files)}".strip()),
            Charts(
                [
                    Figure(title, figure),
                    # a step has few rows: only means over many steps show how they are mixed
                    _figure(files, "Share of rows over the steps", shares, "percent", points=20),
                ]
            ),
        ],
    )


def _component(files: RunFiles, key: str) -> str:
    spec = files.recipe.get(key)
    return str((spec.get("name") if isinstance(spec, dict) else spec) or f"the {key}")


# -- conflicts -------------------------------------------------------------------------------------


OVER_STEPS = (
    (
        "conflict_rate",
        "Conflicts over the steps",
        "share of pairs",
        "{} of the pairs of tasks were in conflict: the cosine of their gradients was negative",
    ),
    (
        "norm_spread",
        "Spread of the norms",
        "largest / smallest",
        "The largest gradient of a task was {} times the smallest",
    ),
)


def conflicts_part(files: RunFiles) -> Part | None:
    """How many pairs of tasks were in conflict, and how unequal their gradients were."""
    drawn = {
        mapping(chart).get("title")
        for section in sequence(files.result.get("sections"))
        for chart in sequence(mapping(section).get("charts"))
    }
    means = mapping(mapping(files.result.get("conflicts")).get("mean"))
    blocks: list[Any] = []
    figures = []
    for key, title, label, said in OVER_STEPS:
        points = _over_steps(files, key)
        if points and title not in drawn:  # else a monitor tells it of every step
            known = _known(points)
            mean, steps = finite(means.get(key)), finite(means.get("steps"))
            basis = f"{number(round(steps or 0))} steps"
            if mean is None:  # unfinished
                mean, basis = sum(known) / len(known), f"{number(len(known))} logged steps"
            found = said.format(percent(100 * mean) if key == "conflict_rate" else number(mean))
            blocks.append(Words(f"{found} (mean over {basis})."))
            # Few pairs make a rate of a few values: means over many steps show how it moves.
            most = 20 if key == "conflict_rate" else charts.MOST_POINTS
            figures.append(_figure(files, title, {label: points}, label, points=most))
    if norms := over_steps(files, "task_norms"):
        note = "Of the weights that tasks share, each times its loss_weight."
        figures.append(_figure(files, "Gradient norms of the tasks", norms, "norm", note))
    if not blocks and not figures:
        return None
    return Part("Over the steps", [*blocks, Charts(figures)], topic=CONFLICTS)


def affinity_part(files: RunFiles) -> Part | Missing:
    """Which tasks pull together and which against each other."""
    found = files.affinity or mapping(files.result.get("conflicts"))  # the one has affinities too
    names = [str(name) for name in sequence(found.get("tasks"))]
    if not names:
        return Missing(
            CONFLICTS,
            "the recipe compares no tasks' gradients; add `monitoring: [affinity]`",
            "mtlcore train RECIPE monitoring='[affinity]'",
        )
    maps = {key: _of_others(found.get(key)) for key, *_ in MAPS}
    met = sorted({at for rows in maps.values() for pair in _measured(rows) for at in pair})
    if not met:
        return Part(
            "Pairs of tasks",
            topic=CONFLICTS,
            blocks=[Words("No step held rows of two tasks: there were no gradients to compare.")],
        )
    figures = [
        Figure(title, svg, caption)
        for key, title, caption, worse, limit in MAPS
        if (svg := _map(names, maps[key], met, title, worse=worse, limit=limit)) is not None
    ]
    steps = found.get("steps")
    said = f"Measured over {number(steps)} steps. " if isinstance(steps, int) else ""
    return Part(
        "Pairs of tasks",
        topic=CONFLICTS,
        blocks=[
            Words(
                said + "A step is a conflict of two tasks if their gradients point away from each "
                "other (negative cosine)."
            ),
            Charts(figures),
        ],
    )


MAPS = (
    ("cosine", "Mean cosine of gradients", f"1: same direction, {MINUS}1: opposite.", False, 1.0),
    (
        "conflict",
        "Share of steps in conflict",
        "0: never, 1: in every step.",
        True,
        1.0,
    ),
    (
        "affinity",
        "First-order affinity",
        "Row helps (blue) or harms (orange) column: relative change of the column's loss by a "
        "step on the row's gradient.",
        False,
        None,
    ),
)


def _of_others(values: Any) -> list[list[Any]]:
    """A map without the tasks' own cells, which are 1, 0 or so large that the others pale."""
    return [
        [None if at == row else value for at, value in enumerate(sequence(line))]
        for row, line in enumerate(sequence(values))
    ]


def _measured(rows: list[list[Any]]) -> Iterator[tuple[int, int]]:
    """Row and column of each cell that has a number."""
    for row, line in enumerate(rows):
        yield from ((row, at) for at, value in enumerate(line) if finite(value) is not None)


def _map(
    names: list[str],
    rows: list[list[Any]],
    met: Collection[int],
    title: str,
    *,
    worse: bool,
    limit: float | None,
) -> Markup | None:
    """The tasks that met another one."""
    if not any(_measured(rows)):
        return None
    rows = [[value for at, value in enumerate(rows[row]) if at in met] for row in met]
    names = [names[at] for at in met]
    return charts.heatmap(title, names, names, rows, worse=worse, limit=limit)


# -- cost ------------------------------------------------------------------------------------------


def totals(files: RunFiles, key: str) -> dict[str, float]:
    """Sums by task: the exact ones of result.json, else scaled up from the logged steps."""
    exact = mapping(mapping(files.result.get("totals")).get(key))
    if exact:
        return {str(t): v for t, value in exact.items() if (v := finite(value)) is not None}
    found: dict[str, float] = {}
    for line in files.steps:
        for task, value in mapping(line.get(key)).items():
            found[str(task)] = found.get(str(task), 0.0) + (finite(value) or 0.0)
    factor = _steps_per_line(files)
    return {task: value * factor for task, value in found.items()}


def total_seconds(files: RunFiles) -> float | None:
    """Seconds of all training steps."""
    exact = finite(mapping(files.result.get("totals")).get("seconds"))
    if exact is not None:
        return exact
    found = [s for line in files.steps if (s := finite(line.get("seconds"))) is not None]
    return sum(found) * _steps_per_line(files) if found else None


def _skipped(files: RunFiles) -> str:
    """What losses or gradients that are not finite cost, if anything."""
    rows = {task: round(count) for task, count in totals(files, "skipped_rows").items()}
    exact = finite(mapping(files.result.get("totals")).get("skipped_steps"))
    logged = sum(finite(line.get("skipped_steps")) or 0.0 for line in files.steps)
    steps = round(logged * _steps_per_line(files) if exact is None else exact)
    told = []
    if any(rows.values()):
        by_task = ", ".join(f"{task} {number(count)}" for task, count in rows.items() if count)
        told.append(f"Rows whose loss was not finite, in neither rows nor tokens: {by_task}.")
    if steps:
        told.append(f"Steps without an update: {number(steps)}.")
    return " ".join(told)


def last_step(files: RunFiles) -> int:
    """The optimizer steps of the run, as far as the files tell."""
    steps = [files.result.get("step"), *(line["step"] for line in files.steps[-1:])]
    return int(max((v for step in steps if (v := finite(step)) is not None), default=0))


def _steps_per_line(files: RunFiles) -> float:
    return last_step(files) / len(files.steps) if files.steps else 1.0


def _basis(files: RunFiles) -> str:
    """Where the sums come from, if they are estimates."""
    if mapping(files.result.get("totals")) or _steps_per_line(files) <= 1:
        return ""
    return (
        f"Sums are estimated from the {number(len(files.steps))} of {number(last_step(files))} "
        "steps that were logged."
    )


def cost_part(files: RunFiles) -> Part | None:
    """Rows, tokens, seconds and memory by task."""
    rows, tokens = totals(files, "rows"), totals(files, "tokens")
    seconds = totals(files, "task_seconds")
    if not tokens and not seconds:
        return None
    peaks = mapping(mapping(files.result.get("totals")).get("task_peak_memory_mb"))
    peaks = peaks or mapping(files.steps[-1].get("task_peak_memory_mb") if files.steps else None)
    all_seconds = total_seconds(files)
    table: list[list[Cell | str]] = [
        [
            Cell(task),
            number(round(rows.get(task, 0))),
            number(round(tokens.get(task, 0))),
            duration(seconds.get(task)),
            percent(100 * seconds.get(task, 0.0) / all_seconds) if all_seconds else NOTHING,
            _memory(peaks.get(task)),
        ]
        for task in tokens or seconds
    ]
    peak = max((v for x in peaks.values() if (v := finite(x)) is not None), default=None)
    table.append(
        [
            Cell("all tasks"),
            number(round(sum(rows.values()))),
            number(round(sum(tokens.values()))),
            duration(all_seconds),
            "",
            _memory(peak),
        ]
    )
    speed = ""
    if all_seconds and tokens:
        speed = f"{number(round(sum(tokens.values()) / all_seconds))} tokens per second. "
    skipped = _skipped(files)
    return Part(
        "Cost",
        [
            *([Words(skipped)] if skipped else []),
            Words(
                f"{speed}The tasks are trained in one pass: a step's time is shared out by tokens. "
                "Peak memory is that of the steps that held rows of the task (on a CPU: of the "
                f"process). {_basis(files)}".strip()
            ),
            Table(
                "Training cost by task, evaluations left out",
                ["task", "rows", "tokens", "time", "share", "peak memory"],
                table,
            ),
        ],
    )


def _memory(megabytes: Any) -> str:
    value = finite(megabytes)
    if value is None:
        return number(None)
    return f"{number(value / 1024)} GiB" if value >= 1024 else f"{value:.0f} MiB"
