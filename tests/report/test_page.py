"""The report: whole from whole files, useful from damaged ones, text from hostile ones."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mtlcore.components import CONFLICTS
from mtlcore.errors import UserError
from mtlcore.report import render, write_report
from mtlcore.report.files import RunFiles
from mtlcore.report.text import MINUS
from mtlcore.report.training import totals
from mtlcore.testing.command_line import CommandLine
from tests.report.run_folder import TASKS, write, write_lines, write_run

BROKEN = "cannot be shown"
VOID = {"meta", "link", "br", "img", "input"}
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style></title></svg></pre><iframe src=https://example.org>",
    "{{ 7*7 }}{% raw %}",
    "a\x00b\x07c\x1b[31m\x85\ufffe",
    "\ud800 lone",
    "\u202eright to left\u200f שלום",
    "w" * 10_000,
    "line\r\nline\rline\nline",
    "javascript:alert(1)",
]


class Page(HTMLParser):
    """The elements, attributes and text of a page; tags must be balanced."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), "an attribute stands twice"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def attributes(self, name: str) -> list[str]:
        return [found[name] or "" for _, found in self.elements if name in found]


def require_harmless(html: str) -> Page:
    """No element that runs or loads anything, whatever stood in the files."""
    page = Page(html)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {
        "script",
        "img",
        "iframe",
        "object",
        "embed",
        "form",
        "base",
        "foreignobject",
    }
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        assert not attributes.keys() & {"src", "srcset", "action", "xlink:href", "background"}
        target = attributes.get("href") or "#"
        assert target.startswith("#") or (tag == "link" and target == "data:,")
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    assert {target[1:] for target in page.attributes("href") if target.startswith("#")} <= {*ids}
    return page


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("report") / "whole")


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A run with all files, which the test may change."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def changed(value: Any, change: Callable[[Any], Any]) -> Any:
    """The JSON value with all that is no container changed."""
    if isinstance(value, dict):
        return {key: changed(inner, change) for key, inner in value.items()}
    if isinstance(value, list):
        return [changed(inner, change) for inner in value]
    return change(value)


def change_files(folder: Path, change: Callable[[Any], Any]) -> None:
    for path in folder.rglob("*.json"):
        write(path, changed(json.loads(path.read_text()), change))
    for path in folder.rglob("*.jsonl"):
        lines = [changed(json.loads(line), change) for line in path.read_text().splitlines()]
        write_lines(path, lines)


def change_result(folder: Path, **changes: Any) -> None:
    result = json.loads((folder / "result.json").read_text())
    write(folder / "result.json", {**result, **changes})


# -- the whole page --------------------------------------------------------------------------------


def test_the_page_has_a_part_for_every_file(whole: Path) -> None:
    page = require_harmless(render(whole))
    for part in (
        "Scores by task",
        "Gains over other runs",
        "Curves",
        "Task weights over time",
        "Rows and tokens by task",
        "Conflicts and affinities of tasks",
        "Forgetting",
        "Cross-validation",
        "Audits",
        "Outputs before and after",
        "Explanations",
        "Data",
        "Cost",
        "Elastic weights",
        "Environment",
        "Recipe",
    ):
        assert part in page.texts, part
    assert "Damaged files" not in page.texts
    assert "not measured" not in page.text


def test_the_verdict_counts_the_tasks_that_have_a_metric(run: Path) -> None:
    at = run / "predictions" / "test" / "scores.json"
    scores = json.loads(at.read_text())
    assert "mean of 3 main tasks." in Page(render(run)).text
    scores["tasks"]["spelling"] = {"loss": 1.5, "rows": 60}
    write(at, scores)
    text = Page(render(run)).text
    assert "mean of 2 main tasks. Without a metric: spelling." in text
    scores["tasks"]["definitions"] = {"loss": 1.5, "rows": 60}
    write(at, scores)
    text = Page(render(run)).text
    assert "for one task, sentiment. Without a metric: spelling, definitions." in text


def test_a_run_without_metrics_is_told_to_be_scored(run: Path) -> None:
    at = run / "predictions" / "test" / "scores.json"
    scores = json.loads(at.read_text())
    (run / "metrics.jsonl").unlink()
    write(at, {**scores, "overall": None})
    told = "There is no overall score on test: "
    assert f"{told}it is no number." in Page(render(run)).text
    broken = {**scores["tasks"], "spelling": {**scores["tasks"]["spelling"], "exact_match": None}}
    write(at, {**scores, "tasks": broken, "overall": None})
    assert f"{told}that of spelling is no number." in Page(render(run)).text
    tasks = {name: {"loss": 1.5, "rows": 60} for name in scores["tasks"]}
    write(at, {"split": "test", "tasks": tasks, "loss": 1.5, "overall": None})
    assert f"{told}no task has a metric." in Page(render(run)).text
    write(at, {"split": "test", "tasks": {}, "loss": 1.5, "overall": None})
    assert f"{told}no main task was scored." in Page(render(run)).text


def test_the_verdict_tells_scores_gains_and_failed_audits(whole: Path) -> None:
    text = Page(render(whole)).text
    assert "The overall score on test is 0.712 (95% interval 0.681 to 0.742)" in text
    assert "Against single-task models it gains 2.8% on average." in text
    assert "Gained: sentiment (accuracy +9.9%), en_fr (chrf +9.9%)." in text
    assert "No clear difference: spelling" in text
    assert "1 of 2 audit findings failed: counterfactual on sentiment" in text
    assert "3 of 60 test rows of sentiment stand among its train rows" in text


def test_every_chart_and_table_can_be_read_without_seeing_it(whole: Path) -> None:
    html = render(whole)
    page = Page(html)
    charts = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(charts) > 15
    assert all(a["role"] == "img" and (a["aria-label"] or "").strip(". ") for a in charts)
    assert html.count("<desc>") == len(charts)
    tags = [tag for tag, _ in page.elements]
    assert tags.count("caption") == tags.count("table")
    assert 'lang="en"' in html
    assert tags.count("h1") == 1


def test_the_page_of_a_trained_run_names_what_was_not_measured(tiny_run: Path) -> None:
    html = render(tiny_run)
    page = require_harmless(html)
    assert BROKEN not in page.text
    assert "Training loss" in page.texts
    assert "Evaluation scores" in page.texts
    for verb in ("evaluate", "baseline", "audit", "review", "explain"):
        assert f"mtlcore {verb} " in page.text, verb


def test_two_pages_of_one_run_are_equal(whole: Path) -> None:
    assert render(whole) == render(whole)


@pytest.mark.parametrize("count", [1, 2, 12])
def test_any_number_of_tasks_has_a_page(tmp_path: Path, count: int) -> None:
    names = [f"task_number_{i}_with_a_long_name" if i % 3 == 0 else f"t{i}" for i in range(count)]
    html = render(write_run(tmp_path / "run", names, steps=60))
    page = require_harmless(html)
    assert BROKEN not in page.text
    assert all(name in page.text for name in names)


def test_a_long_run_has_a_small_page(tmp_path: Path) -> None:
    html = render(write_run(tmp_path / "run", steps=3000))
    assert len(html) < 600_000
    assert "Each point is the mean of" in html


def test_numbers_that_are_not_finite_are_shown_and_not_drawn(run: Path) -> None:
    for odd in (math.nan, math.inf, -math.inf, 1e308, 10**400):
        change_files(run, lambda x, odd=odd: odd if isinstance(x, float) else x)
        html = render(run)
        page = require_harmless(html)
        assert BROKEN not in page.text
        drawing = [*page.attributes("d"), *page.attributes("points"), *page.attributes("x")]
        assert not [text for text in drawing if "nan" in text or "inf" in text]


def test_a_single_value_that_is_not_a_number_leaves_a_gap(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines[30]["losses"]["spelling"] = math.nan
    write_lines(run / "metrics.jsonl", lines)
    assert BROKEN not in render(run)


# -- gains, weights, topics ------------------------------------------------------------------------


def table_rows(html: str, caption: str) -> list[list[str]]:
    """The texts of a table's cells, row by row, spaces evened."""
    body = html[html.index(f"<caption>{caption}") :]
    body = body[body.index("<tbody>") : body.index("</tbody>")]
    rows = re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
    cells = [re.findall(r"<(?:th|td)[ >](.*?)</(?:th|td)>", row, re.DOTALL) for row in rows]
    return [
        [" ".join(" ".join(Page(f"<p {cell}</p>").texts).split()) for cell in row] for row in cells
    ]


def test_every_metric_has_its_own_gain_and_the_task_their_mean(run: Path) -> None:
    comparison = json.loads((run / "comparison.json").read_text())
    task = comparison["others"][0]["tasks"]["sentiment"]
    task["metrics"]["perplexity"] = {
        "run": 6.0, "other": 5.0, "difference": 1.0, "low": 0.5, "high": 1.5, "gain": -20.0,
        "greater_is_better": False,
    }  # fmt: skip
    task["gain"] = (task["metrics"]["accuracy"]["gain"] - 20.0) / 2
    comparison["others"][0]["delta_m_tasks"] = ["sentiment", "spelling", "definitions"]
    write(run / "comparison.json", comparison)
    html = render(run)
    rows = table_rows(html, "This run against")
    assert rows[0][:2] == ["sentiment", "accuracy"]
    assert rows[0][5:] == ["+9.9%", "gained"]
    assert rows[1][:4] == ["sentiment", "perplexity less is better", "6.00", "5.00"]
    assert rows[1][5:] == [f"{MINUS}20.0%", "lost"]
    assert rows[2] == ["sentiment", "mean of the gains", "", "", "", f"{MINUS}5.1%", ""]
    assert [row[0] for row in rows[3:]] == [
        "spelling", "definitions", "en_fr", "delta_m mean over 3 of 4 tasks"
    ]  # fmt: skip
    assert "Gained: sentiment (accuracy +9.9%)" in Page(html).text


def test_the_best_weights_are_called_by_their_step(run: Path) -> None:
    assert "Split test, weights of step 60." in Page(render(run)).text
    recipe = (run / "recipe.yaml").read_text()
    text = recipe.replace("max_steps: 60", "max_steps: 60\n  load_best_model_at_end: true")
    assert text != recipe
    (run / "recipe.yaml").write_text(text)
    assert "Split test, weights of step 60." in Page(render(run)).text  # no evaluation, no best
    result = json.loads((run / "result.json").read_text())
    write(run / "result.json", {**result, "best_step": 40})
    page = Page(render(run))
    assert "Split test, weights of step 40 (the best)." in page.text
    assert "step 60 (" not in page.text
    audits = table_rows(render(run), "The last finding")
    assert {row[3].partition(" ")[2] for row in audits} == {"step 40 (the best)"}  # at the end
    scores = json.loads((run / "predictions/test/scores.json").read_text())
    write(run / "predictions/test/scores.json", {**scores, "step": 30})
    assert "Split test, weights of step 30." in Page(render(run)).text


def test_sections_of_one_topic_stand_together(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    sections = [
        {"title": "Apart", "text": ["alone"]},
        {"title": "One", "text": ["first of the topic"], "topic": CONFLICTS},
        {"title": "Two", "text": ["second of the topic"], "topic": CONFLICTS},
        {"title": "Three", "text": ["of another"], "topic": "Another"},
    ]
    write(run / "result.json", {**result, "sections": sections})
    html = render(run)
    heads = re.findall(r"<h2[^>]*>([^<]+)</h2>", html)
    assert heads.count(CONFLICTS) == 1
    assert {"Apart", "Another"} <= set(heads)
    assert not {"One", "Two", "Three", "Pairs of tasks"} & set(heads)
    part = html[html.index(f">{CONFLICTS}</h2>") :]
    part = part[: part.index("</section>")]
    assert re.findall(r"<h3[^>]*>([^<]+)</h3>", part) == [
        "Over the steps",
        "Pairs of tasks",
        "One",
        "Two",
    ]
    assert "second of the topic" in part


# -- hostile text ----------------------------------------------------------------------------------


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_stays_text(run: Path, hostile: str) -> None:
    kept = {"test", "eval", "lines", "points", "bars", "heatmap"}
    change_files(run, lambda x: hostile if isinstance(x, str) and x not in kept else x)
    # in Python's form: YAML has no lone surrogates and no control characters
    (run / "recipe.yaml").write_text(f"tasks: {{}}\n# {ascii(hostile)[1:-1]}\n", encoding="utf-8")
    html = render(run)
    page = require_harmless(html)
    html.encode("utf-8")
    assert not set(map(ord, html)) & {*range(9), *range(11, 32), *range(0x7F, 0xA0)}
    if hostile.isascii() and hostile.isprintable() and len(hostile) < 1000:
        assert hostile in page.text
    assert "49" not in page.texts


@pytest.mark.parametrize("hostile", [h for h in HOSTILE if h.isprintable()])
def test_hostile_names_stay_text(tmp_path: Path, hostile: str) -> None:
    html = render(write_run(tmp_path / "run", [hostile, "other", f"{hostile}2"]))
    page = require_harmless(html)
    assert BROKEN not in page.text


def test_long_texts_are_cut_and_say_so(run: Path) -> None:
    change_files(run, lambda x: "w" * 10_000 if x == "positive" else x)
    html = render(run)
    assert "more characters)" in html
    assert len(html) < 600_000


# -- damaged and missing files ---------------------------------------------------------------------

FILES = [
    "environment.json",
    "result.json",
    "metrics.jsonl",
    "predictions/test/scores.json",
    "comparison.json",
    "forgetting.json",
    "affinity.json",
    "check.json",
    "cv.json",
    "audits.jsonl",
    "review.jsonl",
    "explanations.jsonl",
]


@pytest.mark.parametrize("name", [*FILES, "recipe.yaml"])
@pytest.mark.parametrize("damage", ["half", "bytes", "empty list", "folder"])
def test_a_damaged_file_is_named_and_the_rest_is_shown(run: Path, name: str, damage: str) -> None:
    path = run / name
    text = path.read_bytes()
    if damage == "half":
        half = text[: len(text) // 2].rstrip(b"}\n")  # never the end of a line
        path.write_bytes(b"{ : [" if name == "recipe.yaml" else half)
    elif damage == "bytes":
        path.write_bytes(b"\xff\xfe\x00" + text)
    elif damage == "empty list":
        path.write_text("[]\n")
    else:
        path.unlink()
        path.mkdir()
    page = require_harmless(render(run))
    notices = page.text[page.text.index("Damaged files") : page.text.index("Overall score")]
    assert f"{name} is damaged" in notices
    assert "Environment" in page.texts or name == "environment.json"


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_costs_its_part_only(run: Path, name: str) -> None:
    (run / name).unlink()
    page = require_harmless(render(run))
    assert "Damaged files" not in page.texts
    assert BROKEN not in page.text
    assert "Recipe" in page.texts


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("comparison.json", "mtlcore baseline"),
        ("affinity.json", "monitoring"),
        ("audits.jsonl", "mtlcore audit"),
        ("review.jsonl", "mtlcore review"),
        ("explanations.jsonl", "mtlcore explain"),
    ],
)
def test_what_was_not_measured_is_one_line_with_its_command(
    run: Path, name: str, what: str
) -> None:
    (run / name).unlink()
    change_result(run, conflicts=None)
    page = Page(render(run))
    line = page.text[page.text.rindex("Not measured") :]
    assert "not measured" in line
    assert what in line


def test_a_baseline_that_was_not_compared_is_to_be_compared(run: Path) -> None:
    (run / "comparison.json").unlink()
    (run / "baseline").mkdir()
    assert f"mtlcore compare {run} {run}/baseline" in Page(render(run)).text


ODD: list[Any] = [None, 5, "text", [[1, "a"], None], {"a": {"b": None}}]


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".json")])
def test_values_of_another_kind_never_stop_the_page(run: Path, name: str) -> None:
    whole = json.loads((run / name).read_text())
    for turn in range(2):
        for at, key in enumerate(whole):
            write(run / name, {**whole, key: ODD[(at + turn) % len(ODD)]})
            require_harmless(render(run))


def test_lines_that_are_damaged_are_counted(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 61, "losses": {"senti\n5\n{"step": "x"}\n')
    text = Page(render(run)).text
    assert "metrics.jsonl is damaged: 2 lines are left out" in text
    assert "metrics.jsonl has lines without a step" in text


def test_unknown_keys_are_ignored(run: Path) -> None:
    before = render(run)
    for name in FILES:
        if name.endswith(".json"):
            found = json.loads((run / name).read_text())
            if name != "affinity.json":
                write(run / name, {**found, "new in a later version": {"a": [1]}})
    assert render(run) == before


# -- what it reads ---------------------------------------------------------------------------------


def test_steps_that_a_resumed_run_repeats_count_once(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    again = [dict(line, loss=9.0) for line in lines if line["step"] > 40]
    write_lines(run / "metrics.jsonl", [*lines, *again])
    files = RunFiles.read(run)
    assert [line["step"] for line in files.steps] == list(range(1, 61))
    assert [line["loss"] for line in files.steps[40:]] == [9.0] * 20
    assert [line["step"] for line in files.evaluations] == [10, 20, 30, 40, 50, 60]


def test_a_resumed_run_that_is_shorter_now_does_not_show_steps_it_never_took(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    again = [line for line in lines if 40 < line["step"] <= 45]
    write_lines(run / "metrics.jsonl", [*lines, *again])
    assert RunFiles.read(run).steps[-1]["step"] == 45


def test_sums_are_exact_if_told_and_else_scaled_from_the_logged_steps(run: Path) -> None:
    whole = totals(RunFiles.read(run), "rows")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    write_lines(run / "metrics.jsonl", [line for line in lines if line["step"] % 3 == 0])
    assert totals(RunFiles.read(run), "rows") == pytest.approx(whole)
    assert "Sums are estimated from the 20 of 60 steps" in Page(render(run)).text
    result = json.loads((run / "result.json").read_text())
    exact = dict.fromkeys(TASKS, 7)
    write(run / "result.json", {**result, "totals": {"rows": exact, "seconds": 3.0}})
    assert totals(RunFiles.read(run), "rows") == exact


def test_skipped_rows_and_steps_are_told_only_if_there_were_any(run: Path) -> None:
    assert "not finite" not in Page(render(run)).text
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    task = next(iter(TASKS))
    none = {"loss": None, "losses": {}, "grad_norms": {}, "skipped_steps": 1}
    lines[3] |= {**none, "skipped_rows": {task: 2}}
    write_lines(run / "metrics.jsonl", lines)
    text = Page(render(run)).text
    assert f"Rows whose loss was not finite, in neither rows nor tokens: {task} 2." in text
    assert "Steps without an update: 1." in text
    result = json.loads((run / "result.json").read_text())
    exact = {"rows": {task: 7}, "skipped_rows": {task: 5}, "skipped_steps": 3}
    write(run / "result.json", {**result, "totals": exact})
    text = Page(render(run)).text
    assert f"tokens: {task} 5. Steps without an update: 3." in text


def test_a_task_whose_name_begins_like_another_keeps_its_own_curve(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ["a", "a_b", "a_b_c"])
    text = Page(render(run)).text
    for name in ("a", "a_b", "a_b_c"):
        assert f"{name} " in text
    files = RunFiles.read(run)
    from mtlcore.report.training import evaluation_keys

    found = evaluation_keys(files)
    assert found["eval_a_b_loss"] == ("a_b", "loss")
    assert found["eval_a_b_c_loss"] == ("a_b_c", "loss")


def test_another_column_does_not_replace_a_failed_audit(run: Path) -> None:
    lines = [
        {
            "step": 1,
            "split": "test",
            "findings": [
                {
                    "name": "group_metrics.accuracy", "task": "sentiment", "value": value,
                    "message": f"by {column}", "failed": failed, "limit": limit,
                    "details": {"enough": True, "column": column},
                }
            ],
        }
        for column, value, failed, limit in (
            ("sex", 0.4, True, 0.1),
            ("length", 0.01, False, 0.1),
            ("age", 0.9, False, None),
        )
    ]  # fmt: skip
    write_lines(run / "audits.jsonl", lines)
    text = Page(render(run)).text
    for column in ("sex", "length", "age"):
        assert f"by {column}" in text
    assert "no limit" in text
    assert "1 of 3 audit findings failed" in text


def test_an_audit_with_too_few_rows_has_not_passed(run: Path) -> None:
    finding = {"name": "group", "task": "spelling", "value": None, "details": {"enough": False}}
    write_lines(run / "audits.jsonl", [{"step": 1, "split": "test", "findings": [finding]}])
    text = Page(render(run)).text
    assert "too few rows" in text
    assert "The audits had too few rows to tell anything." in text


def test_a_task_has_no_weight_in_steps_without_its_rows(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["step"] <= 30 and "losses" in line:
            del line["losses"]["spelling"]
            line["weights"]["spelling"] = 1e6
    write_lines(run / "metrics.jsonl", lines)
    assert "1,000,000" not in Page(render(run)).text


def test_a_task_without_a_row_in_any_step_has_no_weight_and_no_pair(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.get("losses", {}).pop("spelling", None)
    write_lines(run / "metrics.jsonl", lines)
    found = json.loads((run / "affinity.json").read_text())
    alone = TASKS.index("spelling")
    for key in ("cosine", "conflict", "affinity"):
        for row in range(len(TASKS)):
            found[key][row][alone] = found[key][alone][row] = None
    write(run / "affinity.json", found)
    html = render(run)
    for title in ("Task weights (", "Mean cosine of gradients"):
        figure = html[html.index(f"<title>{title}") :]
        figure = figure[: figure.index("</svg>")]
        assert "definitions" in figure
        assert "spelling" not in figure
    assert "spelling" not in re.search(r"means over the logged steps: (.*?)\.</", html)[1]
    empty = [[1.0 if i == j else None for j in range(len(TASKS))] for i in range(len(TASKS))]
    found.pop("affinity")
    write(run / "affinity.json", {**found, **dict.fromkeys(("cosine", "conflict"), empty)})
    html = render(run)
    assert "No step held rows of two tasks" in html
    assert "Mean cosine of gradients" not in html


def test_conflicts_and_their_effect_are_told_and_drawn(run: Path) -> None:
    html = render(run)
    for title in (
        "Conflicts over the steps",
        "Spread of the norms",
        "Gradient norms of the tasks",
        "Cosine of the update with the mean gradient",
        "Spread of the weights over the scopes",
    ):
        assert f"<title>{title}</title>" in html
    text = Page(html).text
    assert "37.0% of the pairs of tasks were in conflict" in text
    assert "negative (mean over 60 steps)." in text
    assert "was 2.30 times the smallest (mean over 60 steps)." in text
    turned = "pcgrad turned the update away from the mean gradient of the tasks: "
    assert turned + "14.2° on average over 60 steps." in text
    change_result(run, conflicts=None)  # as in a run that is unfinished
    angle = sum(math.degrees(math.acos(0.9 + 0.05 * math.cos(s / 5))) for s in range(1, 61)) / 60
    text = Page(render(run)).text
    assert f"{turned}{angle:.1f}° on average over 60 logged steps." in text
    assert "50.0% of the pairs of tasks were in conflict" in text  # 0, 1/3, 2/3, 1, again and again
    assert "negative (mean over 60 logged steps)." in text
    unturned = {"steps": 9, "mean_cosine": 1.0, "mean_angle": 0.0}
    change_result(run, conflicts={"update": unturned})
    left = "pcgrad left the update in the direction of the mean gradient: 0.0° on average over 9"
    assert left in Page(render(run)).text


def test_pairs_are_those_of_the_run_itself_where_no_monitor_compared_them(run: Path) -> None:
    (run / "affinity.json").unlink()
    html = render(run)
    assert "<title>Mean cosine of gradients</title>" in html
    assert "<title>Share of steps in conflict</title>" in html
    assert "First-order affinity" not in html


def test_a_run_in_which_no_gramian_was_measured_tells_no_conflicts(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    keys = ("task_norms", "conflict_rate", "norm_spread", "update_cosine", "weight_spread")
    write_lines(run / "metrics.jsonl", [line | dict.fromkeys(keys) for line in lines])
    change_result(run, conflicts=None)
    html = render(run)
    assert "Over the steps" not in html
    assert "Cosine of the update" not in html
    assert "mean gradient" not in html


def test_what_a_monitor_draws_of_every_step_is_not_drawn_of_the_logged_ones(run: Path) -> None:
    chart = {"kind": "lines", "title": "Conflicts over the steps", "series": {"a": [[1, 0.5]]}}
    change_result(run, sections=[{"title": "Mine", "charts": [chart]}])
    html = render(run)
    assert html.count("<title>Conflicts over the steps</title>") == 1
    assert "of the pairs of tasks were in conflict" not in html
    assert "<title>Spread of the norms</title>" in html


def test_heatmaps_of_a_section_that_have_a_part_of_their_own_are_not_drawn_twice(run: Path) -> None:
    maps = json.loads((run / "affinity.json").read_text())
    result = json.loads((run / "result.json").read_text())
    chart = {"kind": "heatmap", "title": "Once more", "labels": TASKS, "columns": TASKS}
    section = {"title": "Pairs", "charts": [{**chart, "values": maps["cosine"]}]}
    write(run / "result.json", {**result, "sections": [section]})
    assert "Once more" not in render(run)


def test_a_folder_without_a_run_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        render(tmp_path)


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(capfd, monkeypatch)


def test_the_command_writes_one_file_and_says_where(cli: CommandLine, run: Path) -> None:
    before = {path for path in run.rglob("*") if path.is_file()}
    code, out, err = cli("report", run)
    page = run / "report" / "index.html"
    assert (code, out, err) == (0, f"wrote {page}\n", "")
    assert {path for path in run.rglob("*") if path.is_file()} - before == {page}
    assert page.read_text(encoding="utf-8") == render(run)
    code, out, _ = cli("report", run, "--json")
    assert code == 0
    assert json.loads(out) == {"page": str(page), "bytes": page.stat().st_size}


def test_a_run_that_is_none_is_exit_code_2(cli: CommandLine, tmp_path: Path) -> None:
    code, _, err = cli("report", tmp_path / "none")
    assert code == 2
    assert "holds no run" in err
    assert "fix:" in err


def test_a_file_in_the_way_of_the_page_is_not_overwritten(cli: CommandLine, run: Path) -> None:
    (run / "report").write_text("mine")
    code, _, err = cli("report", run)
    assert code == 2
    assert "is a file" in err
    assert (run / "report").read_text() == "mine"


def test_an_old_page_stays_if_no_new_one_can_be_made(run: Path) -> None:
    page = write_report(run)
    for name in ("recipe.yaml", "metrics.jsonl", "result.json", "cv.json"):
        (run / name).unlink()
    with pytest.raises(UserError):
        write_report(run)
    assert page.is_file()


def test_the_report_needs_no_torch(run: Path) -> None:
    code = (
        "import sys; from mtlcore.report import write_report; write_report(sys.argv[1]); "
        "print(sorted({'torch', 'transformers', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
