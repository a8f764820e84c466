"""The head of the page: what came out, in words and a few numbers."""

from __future__ import annotations

from typing import Any

from mtlcore.report.blocks import Card, Tone
from mtlcore.report.charts import finite
from mtlcore.report.files import RunFiles, mapping
from mtlcore.report.results import Gain, gains, metrics_in, name_of, others, primary_of
from mtlcore.report.rows import latest_findings, status
from mtlcore.report.text import duration, number, percent, span
from mtlcore.report.training import last_step, total_seconds, totals


def cards(files: RunFiles) -> list[Card]:
    """Headline numbers; one that was not measured says so."""
    return [_overall_card(files), _gain_card(files), _audit_card(files), _cost_card(files)]


def _overall(files: RunFiles) -> tuple[float | None, str, dict[str, Any]]:
    """The overall score, the split it is of, and its interval."""
    if files.split is not None:
        scores = files.scores[files.split]
        if (value := finite(scores.get("overall"))) is not None:
            return value, files.split, mapping(scores.get("overall_interval"))
    for line in reversed(files.evaluations):
        if (value := finite(line.get("eval_overall"))) is not None:
            return value, f"eval at step {number(line['step'])}", {}
    return None, "", {}


def _overall_card(files: RunFiles) -> Card:
    value, split, interval = _overall(files)
    if value is None:
        return Card("Overall score", "not measured", files.command("evaluate"), "quiet")
    within = span(interval.get("low"), interval.get("high"))
    detail = f"{within} (95%), " if within else ""
    return Card("Overall score", number(value), f"{detail}{split}; 0 is worst, 1 is best")


def _gain_card(files: RunFiles) -> Card:
    found = others(files)
    if not found:
        return Card("Gain, delta_m", "not measured", files.command("baseline"), "quiet")
    delta = finite(found[0].get("delta_m"))
    interval = mapping(found[0].get("delta_m_interval"))
    within = span(interval.get("low"), interval.get("high"), in_percent=True)
    detail = f"{within} (95%), " if within else ""
    low, high = finite(interval.get("low")), finite(interval.get("high"))
    sure = low is not None and high is not None and (low > 0 or high < 0)
    tone: Tone = "" if not delta or not sure else "good" if delta > 0 else "bad"
    shown = percent(delta, signed=True) if delta is not None else "undefined"
    detail += f"over {name_of(found[0])}; positive is better"
    return Card("Gain, delta_m", shown, detail, tone)


def _audit_card(files: RunFiles) -> Card:
    findings = latest_findings(files)
    if not findings:
        return Card("Audits", "not measured", files.command("audit", "--auditor NAME"), "quiet")
    failed = [finding for finding in findings if finding.get("failed")]
    tones = [status(finding).tone for finding in findings]
    passed, few, free = (tones.count(tone) for tone in ("good", "warn", "quiet"))
    total = len(findings) - free
    if not failed:
        if few == len(findings):
            return Card("Audits", "too few rows", f"in all {few} findings", "warn")
        if not total:
            return Card("Audits", f"{free} findings", "none has a limit (fail_above)", "quiet")
        detail = "the others had too few rows" if few else "no finding beyond its limit"
        detail += f"; {free} without a limit" if free else ""
        return Card("Audits", f"{passed} of {total} passed", detail, "warn" if few else "good")
    names = ", ".join(dict.fromkeys(f"{f.get('name')} ({f.get('task')})" for f in failed))
    return Card("Audits", f"{len(failed)} of {total} failed", names, "bad")


def _cost_card(files: RunFiles) -> Card:
    step, seconds = last_step(files), total_seconds(files)
    if not step:
        return Card("Training", "no steps", "", "quiet")
    tokens = sum(totals(files, "tokens").values())
    parts = [duration(seconds) if seconds is not None else "", f"{number(round(tokens))} tokens"]
    return Card("Training", f"{number(step)} steps", ", ".join(filter(None, parts)))


def sentences(files: RunFiles) -> list[str]:
    """The verdict: score, gains, audits."""
    return [text for text in (_score_words(files), _gain_words(files), _audit_words(files)) if text]


def _score_words(files: RunFiles) -> str:
    value, split, interval = _overall(files)
    if value is None and files.split is None:
        return "The run was not scored yet."
    split = split or str(files.split)
    scored = mapping(files.scores[split].get("tasks")) if split in files.scores else {}
    tasks = [task for task in files.tasks if task in scored] or files.tasks
    main = [task for task in tasks if files.task_recipe(task).get("role") != "auxiliary"] or tasks
    if value is None:
        return f"There is no overall score on {split}: {_why_none(files, main, scored)}."
    counted = [
        task
        for task in main
        if (metrics_in(mapping(scored[task])) if scored else files.metrics_of(task))
    ] or main
    count = len(counted)
    within = span(interval.get("low"), interval.get("high"))
    text = f"The overall score on {split} is {number(value)}"
    text += f" (95% interval {within})" if within else ""
    spec = files.recipe.get("overall")
    name = spec.get("name") if isinstance(spec, dict) else spec
    how = f", the {str(name).replace('_', ' ')} of" if name else " over"
    kind = "main tasks" if len(main) < len(tasks) else "tasks"
    text += f"{how} {count} {kind}." if count != 1 else f", for one task, {counted[0]}."
    without = [task for task in main if task not in counted]
    if without:
        text += f" Without a metric: {', '.join(without)}."
    left = len(files.tasks) - len(tasks)
    return f"{text} Tasks not scored: {left}." if left else text


def _why_none(files: RunFiles, main: list[str], scored: dict[str, Any]) -> str:
    """Why the scores of the main tasks make no overall score."""
    found = {task: mapping(scored[task]) for task in main if task in scored}
    if not any(files.task_recipe(task).get("role") != "auxiliary" for task in found):
        return "no main task was scored"
    if not any(map(metrics_in, found.values())):
        return "no task has a metric"
    bad = [
        task
        for task, scores in found.items()
        if finite(scores.get(primary_of(files, task, scores) or "")) is None
    ]
    return f"that of {', '.join(bad)} is no number" if bad else "it is no number"


def _gain_words(files: RunFiles) -> str:
    found = others(files)
    if not found:
        return ""
    other = found[0]
    delta = finite(other.get("delta_m"))
    by_task = gains(other)
    if delta is None:
        text = f"Against {name_of(other)}, no relative gain is defined."
    else:
        word = "gains" if delta > 0 else "loses" if delta < 0 else "gains or loses"
        text = f"Against {name_of(other)} it {word} {percent(abs(delta))} on average."
    groups = {
        "Gained": [g for g in by_task if g.verdict == "gained"],
        "Lost": [g for g in by_task if g.verdict == "lost"],
        "No clear difference": [g for g in by_task if g.verdict == "no clear difference"],
        "Without an interval": [g for g in by_task if g.verdict == "no interval"],
    }
    told = [f"{word}: {_list(group)}." for word, group in groups.items() if group]
    return " ".join([text, *told])


def _list(group: list[Gain]) -> str:
    return ", ".join(
        gain.task
        + (
            f" ({gain.metric} {percent(gain.percent, signed=True)})"
            if gain.percent is not None
            else ""
        )
        for gain in group
    )


def _audit_words(files: RunFiles) -> str:
    findings = latest_findings(files)
    failed = [finding for finding in findings if finding.get("failed")]
    if not findings:
        return ""
    if not failed:
        few = sum(status(finding).tone == "warn" for finding in findings)
        if few == len(findings):
            return "The audits had too few rows to tell anything."
        also = f", {few} of them with too few rows to tell" if few else ""
        free = sum(status(finding).tone == "quiet" for finding in findings)
        also += f", {free} without a limit" if free else ""
        return f"No audit failed ({len(findings)} findings{also})."
    return f"{len(failed)} of {len(findings)} audit findings failed: " + "; ".join(
        f"{f.get('name')} on {f.get('task')}" for f in failed
    )
