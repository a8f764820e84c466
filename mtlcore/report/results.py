"""The parts about results: scores and gains by task, folds, what was forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtlcore.report import charts
from mtlcore.report.blocks import Cell, Charts, Figure, Missing, Part, Table, Tone, Words
from mtlcore.report.charts import Spot, finite
from mtlcore.report.files import RunFiles, mapping, sequence
from mtlcore.report.text import NOTHING, number, percent, span

OF_A_TASK = ("loss", "rows", "interval")  # keys of a task's scores that are no metrics


@dataclass(frozen=True)
class Gain:
    """One metric of a task against another run, and how sure the difference is."""

    task: str
    metric: str
    mine: float | None
    other: float | None
    low: float | None
    high: float | None
    percent: float | None
    """Relative change of this metric; positive is better."""
    sign: int

    @property
    def verdict(self) -> str:
        """gained, lost or no clear difference; as good as unknown without an interval."""
        if self.low is None or self.high is None:
            return "no interval"
        if self.low > 0 or self.high < 0:
            return "gained" if self.sign * (self.low + self.high) > 0 else "lost"
        return "no clear difference"

    @property
    def tone(self) -> Tone:
        """Colour of the verdict."""
        tones: dict[str, Tone] = {"gained": "good", "lost": "bad"}
        return tones.get(self.verdict, "")


def others(files: RunFiles) -> list[dict[str, Any]]:
    """The runs that this one was compared with, the single-task models first."""
    found = [other for other in sequence(files.comparison.get("others")) if mapping(other)]
    return sorted(found, key=lambda other: not is_baseline(other))


def is_baseline(other: Mapping[str, Any]) -> bool:
    """Whether the other run is that of `mtlcore baseline`: the folder `baseline` of this run."""
    last = str(other.get("run", "")).replace("\\", "/").rstrip("/").rpartition("/")[2]
    return last == "baseline" or str(other.get("name", "")).rpartition("/")[2] == "baseline"


def name_of(other: Mapping[str, Any]) -> str:
    """What the page calls the other run."""
    if is_baseline(other):
        return "single-task models"
    return str(other.get("name") or other.get("run") or "the other run")


def gains(other: Mapping[str, Any]) -> list[Gain]:
    """The primary metric of each task; a task without any in the comparison is left out."""
    return [found[0] for task in mapping(other.get("tasks")) if (found := gains_of(other, task))]


def gains_of(other: Mapping[str, Any], task: str) -> list[Gain]:
    """Every metric of a task, the primary one first."""
    found = []
    for name, facts in mapping(_facts(other, task).get("metrics")).items():
        values = mapping(facts)
        low, high = finite(values.get("low")), finite(values.get("high"))
        mine, his = finite(values.get("run")), finite(values.get("other"))
        sign = 1 if values.get("greater_is_better", True) else -1
        relative = finite(values.get("gain"))
        found.append(Gain(str(task), str(name), mine, his, low, high, relative, sign))
    return found


def _facts(other: Mapping[str, Any], task: str) -> dict[str, Any]:
    return mapping(mapping(other.get("tasks")).get(task))


def metrics_in(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of a task in scores.json."""
    return {name: value for name, value in scores.items() if name not in OF_A_TASK}


def primary_of(files: RunFiles, task: str, scores: Mapping[str, Any]) -> str | None:
    """The task's first metric; the loss where it has none."""
    found = metrics_in(scores)
    named = [name for name in files.metrics_of(task) if name in found]
    if named or found:
        return (named or list(found))[0]
    return "loss" if "loss" in scores else None


# -- scores ----------------------------------------------------------------------------------------


def scores_part(files: RunFiles) -> Part | Missing:
    """Every task's scores with intervals, beside those of the runs it was compared with."""
    if files.split is None:
        return Missing("Scores", "no split was scored", files.command("evaluate"))
    scores = files.scores[files.split]
    by_task = {name: mapping(found) for name, found in mapping(scores.get("tasks")).items()}
    part = Part("Scores by task", [])
    step = scores.get("step")
    where = f"Split {files.split}" + (f", weights of {files.weights_at(step)}" if step else "")
    for task, own in mapping(files.result.get("own_steps")).items():
        where += f"; own weights of {task}: of step {number(own)}"
    part.blocks.append(Words(f"{where}."))
    part.blocks.append(
        _score_table(files, by_task, mapping(scores.get("overall_interval")), scores)
    )
    part.blocks.append(Charts(_score_figures(files, by_task)))
    return part


def _score_table(
    files: RunFiles,
    by_task: Mapping[str, dict[str, Any]],
    overall_interval: Mapping[str, Any],
    scores: Mapping[str, Any],
) -> Table:
    rows: list[list[Cell | str]] = []
    for task, found in by_task.items():
        primary = primary_of(files, task, found)
        interval = mapping(found.get("interval"))
        rest = {k: v for k, v in metrics_in(found).items() if k != primary}
        auxiliary = files.task_recipe(task).get("role") == "auxiliary"
        rows.append(
            [
                Cell(str(task), under="auxiliary" if auxiliary else ""),
                number(found.get("rows")),
                primary or NOTHING,
                Cell(
                    number(finite_or_text(found.get(primary))) if primary else NOTHING,
                    under=span(interval.get("low"), interval.get("high")),
                ),
                ", ".join(f"{name} {number(finite_or_text(v))}" for name, v in rest.items())
                or NOTHING,
                number(finite_or_text(found.get("loss"))),
            ]
        )
    overall = scores.get("overall")
    under = span(overall_interval.get("low"), overall_interval.get("high"))
    rows.append(
        [
            Cell("all tasks"),
            "",
            "overall",
            Cell(number(finite_or_text(overall)), under=under),
            "",
            number(finite_or_text(scores.get("loss"))),
        ]
    )
    columns = ["task", "rows", "metric", "score", "other metrics", "loss"]
    caption = "Scores, with 95% intervals where they were asked for; loss per target token"
    return Table(caption, columns, rows, text_columns=(0, 2, 4))


def finite_or_text(value: Any) -> Any:
    """Numbers as they are (NaN is shown as such), anything else as nothing."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _score_figures(files: RunFiles, by_task: Mapping[str, dict[str, Any]]) -> list[Figure]:
    """One chart for all metrics that lie in 0 to 1, one for each other metric."""
    compared = {g.task: g for other in others(files)[:1] for g in gains(other)}
    name = name_of(others(files)[0]) if compared else ""
    panels: dict[str, list[str]] = {}
    for task, found in by_task.items():
        primary = primary_of(files, task, found)
        value = finite(found.get(primary)) if primary else None
        if primary is not None and value is not None:
            other = compared[task].other if task in compared else None
            within = primary != "loss" and 0 <= value <= 1 and not (other and other > 1)
            panels.setdefault("" if within else primary, []).append(task)
    figures = []
    for metric, tasks in panels.items():
        mine, his, labels = [], [], []
        for task in tasks:
            found = by_task[task]
            primary = primary_of(files, task, found) or ""
            interval = mapping(found.get("interval"))
            mine.append(Spot(finite(found.get(primary)), interval.get("low"), interval.get("high")))
            his.append(Spot(compared[task].other if task in compared else None))
            labels.append(task)
        series = {"this run": mine} | ({name: his} if compared else {})
        title = f"Score by task: {metric}" if metric else "Score by task"
        label = metric or "primary metric of each task"
        figures.append(Figure(title, charts.intervals(title, labels, series, x_label=label)))
    return figures


# -- gains -----------------------------------------------------------------------------------------


def gains_part(files: RunFiles) -> Part | Missing:
    """What was gained and lost against the single-task models and other runs."""
    if not others(files):
        if (files.folder / "baseline").is_dir():
            how, command = (
                "the baseline is trained but not compared",
                files.command("compare", f"{files.shown}/baseline"),
            )
        else:
            how, command = "there is no single-task baseline", files.command("baseline")
        return Missing("Gain over single-task models (delta_m)", how, command)
    part = Part("Gains over other runs")
    split = files.comparison.get("split")
    part.blocks.append(
        Words(
            "A gain is the relative change of a metric over the other run, in percent; positive is "
            "better, also where less is better. The gain of a task is the mean over its metrics, "
            f"delta_m that over the tasks. Split {split}; differences are on the same rows, their "
            "95% intervals from a paired bootstrap."
        )
    )
    for other in others(files):
        part.blocks += _gain_blocks(other)
    return part


def _gain_blocks(other: Mapping[str, Any]) -> list[Any]:
    name, primary = name_of(other), gains(other)
    rows: list[list[Cell | str]] = []
    for task in (gain.task for gain in primary):
        rows += _gain_rows(other, task)
    interval = mapping(other.get("delta_m_interval"))
    delta = Cell(
        percent(other.get("delta_m"), signed=True),
        under=span(interval.get("low"), interval.get("high"), in_percent=True),
    )
    counted = len(sequence(other.get("delta_m_tasks"))) or len(primary)
    some = "the tasks" if counted == len(primary) else f"{counted} of {len(primary)} tasks"
    rows.append([Cell("delta_m", under=f"mean over {some}"), "", "", "", "", delta, ""])
    columns = ["task", "metric", "this run", "other", "difference", "gain", "verdict"]
    blocks: list[Any] = [Table(f"This run against {name}", columns, rows, text_columns=(0, 1, 6))]
    by_task = {g.task: finite(_facts(other, g.task).get("gain")) for g in primary}
    if any(gain is not None for gain in by_task.values()):
        title = f"Relative gain by task over {name}"
        svg = charts.bars(
            title,
            list(by_task),
            {"gain": list(by_task.values())},
            x_label="percent; positive is better",
            signed=True,
            unit="%",
        )
        blocks.append(Charts([Figure(title, svg)]))
    return blocks + [Words(str(note), "quiet") for note in sequence(other.get("notes"))]


def _gain_rows(other: Mapping[str, Any], task: str) -> list[list[Cell | str]]:
    """A row for each metric of a task, and one for the task's gain if there are several."""
    found = gains_of(other, task)
    role = "auxiliary" if _facts(other, task).get("role") == "auxiliary" else ""
    rows: list[list[Cell | str]] = [
        [
            Cell(task, "hidden") if place else Cell(task, under=role),
            Cell(gain.metric, under="" if gain.sign > 0 else "less is better"),
            number(gain.mine),
            number(gain.other),
            Cell(number(_difference(gain), signed=True), under=span(gain.low, gain.high)),
            percent(gain.percent, signed=True),
            Cell(gain.verdict, gain.tone, pill=True),
        ]
        for place, gain in enumerate(found)
    ]
    if len(found) > 1:
        mean = percent(_facts(other, task).get("gain"), signed=True)
        rows.append([Cell(task, "hidden"), "mean of the gains", "", "", "", mean, ""])
    return rows


def _difference(gain: Gain) -> float | None:
    return None if gain.mine is None or gain.other is None else gain.mine - gain.other


# -- forgetting ------------------------------------------------------------------------------------


def forgetting_part(files: RunFiles) -> Part | Missing | None:
    """What became of the tasks of the run that this one started from; None if it did not."""
    start = mapping(files.recipe.get("start"))
    if not start and not files.forgetting:
        return None
    tasks = mapping(files.forgetting.get("tasks"))
    if not tasks:
        return Missing(
            "Forgetting",
            "the tasks of the start run were not scored before and after",
            f"mtlcore adapt {start.get('run', 'RUN')} --task new.yaml",
        )
    rows: list[list[Cell | str]] = []
    for task, values in tasks.items():
        found = mapping(values)
        change = finite(found.get("change"))
        tone: Tone = "" if not change else "good" if change > 0 else "bad"
        rows.append(
            [
                Cell(str(task)),
                str(found.get("metric", "")),
                number(finite_or_text(found.get("before"))),
                number(finite_or_text(found.get("after"))),
                Cell(number(finite_or_text(found.get("change")), signed=True), tone),
            ]
        )
    mean = finite_or_text(files.forgetting.get("mean_change"))
    rows.append([Cell("mean"), "", "", "", number(mean, signed=True)])
    before = [Spot(finite(mapping(values).get("before"))) for values in tasks.values()]
    after = [Spot(finite(mapping(values).get("after"))) for values in tasks.values()]
    title = "Old tasks before and after"
    chart = charts.intervals(
        title, [str(t) for t in tasks], {"before": before, "after": after}, x_label="metric"
    )
    return Part(
        "Forgetting",
        [
            Words(
                f"This run went on from {start.get('run', 'another run')}. The change of each old "
                f"task's score on {files.forgetting.get('split', 'its split')}; positive is better."
            ),
            Table(
                "Old tasks before and after the new ones were learned",
                ["task", "metric", "before", "after", "change"],
                rows,
                text_columns=(0, 1),
            ),
            Charts([Figure(title, chart)] if _same_unit([*before, *after]) else []),
        ],
    )


# -- folds -----------------------------------------------------------------------------------------


def folds_part(files: RunFiles) -> Part | None:
    """Cross-validation: mean and spread over the folds."""
    tasks = {str(n): mapping(f) for n, f in mapping(files.cv.get("tasks")).items()}
    if not tasks:
        return None
    overall = mapping(files.cv.get("overall"))
    everything = {**tasks, **({"overall": overall} if overall else {})}
    rows: list[list[Cell | str]] = []
    spots: list[Spot] = []
    for name, found in everything.items():
        values = [v for value in sequence(found.get("values")) if (v := finite(value)) is not None]
        mean, std = finite(found.get("mean")), finite(found.get("std"))
        rows.append(
            [
                Cell(name),
                str(found.get("metric") or ("" if name == "overall" else "loss")),
                number(mean),
                number(std),
                ", ".join(number(value) for value in values),
            ]
        )
        known = mean is not None and std is not None
        low, high = (mean - std, mean + std) if known else (None, None)  # type: ignore[operator]
        spots.append(Spot(mean, low, high, values))
    title = "Mean and standard deviation over the folds"
    figure = Figure(title, charts.intervals(title, list(everything), {"mean": spots}))
    columns = ["task", "metric", "mean", "std", "folds"]
    return Part(
        "Cross-validation",
        [
            Words(f"{number(files.cv.get('folds'))} folds; each was the eval split once."),
            Table("Scores over the folds", columns, rows, text_columns=(0, 1, 4)),
            Charts([figure] if _same_unit(spots) else []),
        ],
    )


def _same_unit(spots: Sequence[Spot]) -> bool:
    """Scores of 0.7 and of 55 in one chart would show nothing."""
    values = [spot.value for spot in spots if spot.value is not None]
    return bool(values) and (max(map(abs, values)) <= 1 or min(map(abs, values)) > 1)
