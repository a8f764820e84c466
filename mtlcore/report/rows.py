"""The parts about single rows: findings of audits, outputs side by side, explanations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtlcore.report import charts
from mtlcore.report.blocks import (
    Answer,
    Answers,
    Cell,
    Charts,
    Figure,
    Listing,
    Missing,
    Part,
    Table,
    Token,
    Tokens,
    Words,
)
from mtlcore.report.charts import finite
from mtlcore.report.files import RunFiles, mapping, sequence
from mtlcore.report.palette import step_class
from mtlcore.report.results import finite_or_text
from mtlcore.report.text import clip, number, plain, span

MOST_ROWS = 8
"""Rows shown per task; the files have them all."""
MOST_TOKENS = 600
MOST_EXAMPLES = 3
SHORT = 700


# -- audits ----------------------------------------------------------------------------------------


def latest_findings(files: RunFiles) -> list[dict[str, Any]]:
    """The last finding of each auditor, task and split, with its split and step.

    What was looked at counts too: another column or lexicon is another audit.
    """
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for line in files.audits:
        for finding in sequence(line.get("findings")):
            one = mapping(finding)
            if one:
                one |= {"split": str(line.get("split", "")), "step": line.get("step")}
                details = mapping(one.get("details"))
                place = (one.get("name"), one.get("task"), one["split"])
                subject = (details.get("column"), details.get("lexicon"))
                found[tuple(map(str, (*place, *subject)))] = one
    return list(found.values())


def status(finding: Mapping[str, Any]) -> Cell:
    """failed, too few rows to tell, passed, or without a limit that it could be beyond."""
    if finding.get("failed"):
        return Cell("failed", "bad", pill=True)
    if mapping(finding.get("details")).get("enough") is False:
        return Cell("too few rows", "warn", pill=True)
    if finding.get("limit") is None:
        return Cell("no limit", "quiet", pill=True)
    return Cell("passed", "good", pill=True)


def audits_part(files: RunFiles) -> Part | Missing:
    """Findings, failures first."""
    findings = latest_findings(files)
    if not findings and not files.audits:
        return Missing(
            "Audits for bias",
            "the recipe names no auditor; add `auditing:` or choose one now",
            files.command("audit", "--auditor", "NAME"),
        )
    if not findings:
        return Part("Audits", [Words("The auditors ran and reported nothing.")])
    findings.sort(key=lambda finding: not finding.get("failed"))
    part = Part("Audits")
    part.blocks.append(
        Table(
            "The last finding of each auditor, task and split; 95% intervals",
            ["result", "audit", "task", "split", "value", "what was found"],
            [_finding_row(files, finding) for finding in findings],
            text_columns=(0, 1, 2, 3, 5),
        )
    )
    part.blocks += _courses(files)
    for finding in findings:
        part.blocks += _details(finding)
    return part


def _finding_row(files: RunFiles, finding: Mapping[str, Any]) -> list[Cell | str]:
    details = mapping(finding.get("details"))
    return [
        status(finding),
        str(finding.get("name", "")),
        str(finding.get("task", "")),
        Cell(finding["split"], under=files.weights_at(finding.get("step"))),
        Cell(
            number(finite_or_text(finding.get("value"))),
            under=span(details.get("low"), details.get("high")),
        ),
        clip(str(finding.get("message", "")), SHORT),
    ]


def _details(finding: Mapping[str, Any]) -> list[Any]:
    """Groups as a table, examples side by side, the rest in words."""
    details = mapping(finding.get("details"))
    title = f"{finding.get('name')}, {finding.get('task')}, {finding['split']}"
    blocks: list[Any] = []
    groups = {
        str(group): mapping(found) for group, found in mapping(details.pop("by_group", 0)).items()
    }
    if groups:
        rows: list[list[Cell | str]] = [
            [
                clip(group, 80),
                number(finite_or_text(found.get("n"))),
                Cell(
                    number(finite_or_text(found.get("value"))),
                    under=span(found.get("low"), found.get("high")),
                ),
            ]
            for group, found in groups.items()
        ]
        column = str(details.get("column") or "group")
        blocks.append(Table(f"{title}: by {column}", [column, "rows", "value"], rows))
    examples = [one for one in map(mapping, sequence(details.pop("examples", 0))) if one]
    if examples:
        answers = [
            Answer(
                heading=f"Row {number(one.pop('row', None))}",
                pills=(),
                prompt=clip(one.pop("prompt", ""), SHORT),
                texts=[
                    (str(key).replace("_", " "), clip(value, SHORT)) for key, value in one.items()
                ],
            )
            for one in examples[:MOST_EXAMPLES]
        ]
        blocks.append(Answers(f"Examples: {title}", answers))
    if details:
        text = "\n".join(f"{key}: {clip(plain(value))}" for key, value in details.items())
        blocks.append(Listing(f"Details: {title}", text))
    return blocks


def _courses(files: RunFiles) -> list[Charts]:
    """Findings that were made at several steps, as curves."""
    curves: dict[str, dict[str, list[tuple[Any, Any]]]] = {}
    for line in files.audits:
        for finding in sequence(line.get("findings")):
            one = mapping(finding)
            names = curves.setdefault(str(one.get("name")), {})
            course = names.setdefault(f"{one.get('task')} ({line.get('split')})", [])
            course.append((line.get("step"), one.get("value")))
    figures = []
    for name, courses in curves.items():
        kept = {task: points for task, points in courses.items() if len({x for x, _ in points}) > 1}
        if kept:
            title = f"{name} over training"
            svg = charts.lines(title, kept, x_label="step", y_label="value")
            figures.append(Figure(title, svg))
    return [Charts(figures)] if figures else []


# -- review ----------------------------------------------------------------------------------------


def review_part(files: RunFiles) -> Part | Missing:
    """Outputs before and after, side by side."""
    if not files.review:
        return Missing(
            "Outputs side by side", "no outputs were set beside each other", files.command("review")
        )
    by_task: dict[str, list[dict[str, Any]]] = {}
    for line in files.review:
        by_task.setdefault(str(line.get("task")), []).append(line)
    part = Part("Outputs before and after")
    for task, rows in by_task.items():
        left = len(rows) - MOST_ROWS
        more = f"{left} more rows of {task} are in review.jsonl." if left > 0 else ""
        part.blocks.append(Answers(task, [_answer(row) for row in rows[:MOST_ROWS]], more))
    return part


def _answer(row: Mapping[str, Any]) -> Answer:
    why = row.get("why")
    reasons = [str(reason) for reason in (sequence(why) or ([why] if why else []))]
    metric = str(row.get("metric") or "score")
    known = [
        f"{name} {number(before)} → {number(after)}"
        for name, before, after in (
            (metric, finite(row.get("score_before")), finite(row.get("score_after"))),
            ("loss", finite(row.get("loss_before")), finite(row.get("loss_after"))),
        )
        if before is not None and after is not None
    ]
    return Answer(
        heading=f"Row {number(row.get('row'))}",
        pills=[Cell(reason, pill=True) for reason in reasons],
        prompt=clip(row.get("prompt", ""), SHORT),
        texts=[
            (name, clip(row[key], SHORT))
            for name, key in (("target", "target"), ("before", "before"), ("after", "after"))
            if row.get(key) is not None
        ],
        scores=", ".join(known),
    )


# -- explanations ----------------------------------------------------------------------------------


def explanations_part(files: RunFiles) -> Part | Missing:
    """Texts whose tokens are tinted by what they did for the answer."""
    if not files.explanations:
        return Missing(
            "Explanations",
            "no output was explained",
            files.command("explain", "--task", "TASK", "--row", "0"),
        )
    part = Part("Explanations")
    part.blocks.append(
        Words(
            "Blue tokens speak for the answer, orange ones against it; the strongest colour is the "
            "strongest token of the row. Point at a token for its number."
        )
    )
    part.blocks += [_explanation(line) for line in files.explanations[-MOST_ROWS:]]
    return part


def _explanation(line: Mapping[str, Any]) -> Tokens:
    pairs: list[tuple[str, float | None]] = []
    scores = sequence(line.get("scores")) or sequence(line.get("attributions"))
    for at, token in enumerate(sequence(line.get("tokens"))):
        if isinstance(token, dict):
            value = token.get("score", token.get("attribution"))
            pairs.append((str(token.get("token", token.get("text", ""))), finite(value)))
        else:
            pairs.append((str(token), finite(scores[at]) if at < len(scores) else None))
    shown = pairs[:MOST_TOKENS]
    top = max((abs(value) for _, value in pairs if value is not None), default=0.0)
    tokens = [
        Token(
            clip(text.replace("\n", "↵\n") if text.strip("\n") else "↵", 200),
            step_class(value or 0.0, top),
            number(value, signed=True),
            breaks="\n" in text,
        )
        for text, value in shown
    ]
    order = sorted((p for p in pairs if p[1]), key=lambda pair: -abs(pair[1] or 0))[:6]
    strongest = ", ".join(f"“{clip(t.strip(), 40)}” {number(v, signed=True)}" for t, v in order)
    known = ("task", "row", "split", "tokens", "scores", "attributions", "deletion")
    facts = [
        f"{key.replace('_', ' ')}: {clip(plain(v), 300)}"
        for key, v in line.items()
        if key not in known
    ]
    if deletion := mapping(line.get("deletion")):
        k, top_drop, random = (finite(deletion.get(key)) for key in ("k", "top", "random"))
        facts.append(
            f"without the {number(int(k or 0))} highest tokens it drops by {number(top_drop)}, "
            f"without as many random ones by {number(random)}"
        )
    if len(pairs) > len(shown):
        facts.append(f"{len(pairs) - len(shown):,} more tokens are in explanations.jsonl")
    split = f", {line['split']}" if line.get("split") else ""
    title = f"{line.get('task')}, row {number(line.get('row'))}{split}"
    return Tokens(title, tokens, facts, strongest)
