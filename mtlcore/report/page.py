"""The page: every part is made by itself, so that a damaged file costs its own part only."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mtlcore.errors import UserError
from mtlcore.report import palette, record, results, rows, training, verdict
from mtlcore.report.blocks import Heading, Missing, Part
from mtlcore.report.files import RunFiles
from mtlcore.report.text import clean

TEMPLATES = Path(__file__).parent / "templates"
PAGE = Path("report") / "index.html"

Maker = Callable[[RunFiles], "Part | Missing | list[Part] | None"]
PARTS: tuple[tuple[str, Maker], ...] = (  # what it is called if it cannot be made, and its maker
    ("scores", results.scores_part),
    ("gains", results.gains_part),
    ("curves", training.curves_part),
    ("task weights", training.weights_part),
    ("rows and tokens", training.rows_part),
    ("conflicts over the steps", training.conflicts_part),
    ("conflicts and affinities", training.affinity_part),
    ("forgetting", results.forgetting_part),
    ("cross-validation", results.folds_part),
    ("audits", rows.audits_part),
    ("outputs before and after", rows.review_part),
    ("explanations", rows.explanations_part),
    ("data", record.data_part),
    ("cost", training.cost_part),
    ("sections of plugins", record.plugin_parts),
    ("environment", record.environment_part),
    ("recipe", record.recipe_part),
)


def write_report(folder: str | Path) -> Path:
    """Write ``report/index.html`` into a run's folder and return its path."""
    path = Path(folder) / PAGE
    text = render(folder)
    if path.parent.exists() and not path.parent.is_dir():
        raise UserError(f"{path.parent} is a file", fix="move it away: the page goes into a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    # The old page stays whole until the new one is.
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def render(folder: str | Path) -> str:
    """The page of a run as HTML; UserError if the folder holds no run."""
    folder = Path(folder)
    files = RunFiles.read(folder)
    parts: list[Part] = []
    missing: list[Missing] = []
    for name, maker in PARTS:
        found = _made(files, name, maker)
        if isinstance(found, Missing):
            missing.append(found)
        elif found is not None:
            parts += found if isinstance(found, list) else [found]
    parts = _by_topic(parts)
    _name_parts(parts)
    head = {
        "cards": _made(files, "headline numbers", verdict.cards) or [],
        "sentences": _made(files, "verdict", verdict.sentences) or [],
        "warnings": _made(files, "warnings", record.warnings_of) or [],
        "model": _made(files, "model", _model) or "",
    }
    template = _environment().get_template("page.html.j2")
    css = palette.css() + (TEMPLATES / "page.css").read_text(encoding="utf-8")
    return template.render(
        name=files.name,
        tasks=files.tasks,
        css=Markup(css),
        parts=parts,
        missing=missing,
        problems=list(dict.fromkeys(files.problems)),
        **head,
    )


def _made(files: RunFiles, name: str, maker: Callable[[RunFiles], Any]) -> Any:
    """What a maker gives; if its file holds something unheard of, None and a notice."""
    try:
        return maker(files)
    except Exception as error:  # whatever stands in a file, the rest of the page is of use
        files.problems.append(
            f"The part “{name}” cannot be shown, its files hold something unexpected: "
            f"{type(error).__name__}: {error}"
        )
        return None


def _model(files: RunFiles) -> str:
    model = files.recipe.get("model")
    return str((model.get("name_or_path") if isinstance(model, dict) else model) or "")


def _by_topic(parts: list[Part]) -> list[Part]:
    """Parts with one topic as one part in the place of the first, each below its own title."""
    found: list[Part] = []
    topics: dict[str, Part] = {}
    for part in parts:
        if not part.topic:
            found.append(part)
            continue
        if part.topic not in topics:
            topics[part.topic] = Part(part.topic)
            found.append(topics[part.topic])
        topics[part.topic].blocks += [Heading(part.title), *part.blocks]
    return found


def _name_parts(parts: list[Part]) -> None:
    """Anchors: letters, digits and dashes only, each once."""
    taken: set[str] = set()
    for part in parts:
        base = re.sub(r"[^a-z0-9]+", "-", part.title.lower()).strip("-")[:40] or "part"
        name, number = base, 2
        while name in taken:
            name, number = f"{base}-{number}", number + 1
        taken.add(name)
        part.id = name


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )


def _finalize(value: Any) -> Any:
    """Text of any origin is cleaned before it is escaped; markup is our own."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else clean(value)
