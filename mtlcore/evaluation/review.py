"""Outputs of single rows before and after training: the worst, the best and the most changed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mtlcore.errors import UserError
from mtlcore.evaluation.bootstrap import NO_SCORE
from mtlcore.evaluation.kept import KeptRun, answers_of

if TYPE_CHECKING:
    from rich.table import Table

    from mtlcore.components import Evaluator
    from mtlcore.evaluation.predictions import Prediction
    from mtlcore.model.backbone import MultiTaskModel

REVIEW = "review.jsonl"
BASE = "base"
"""What a run is compared with by default: its model without the adapters."""
WORST, BEST, CHANGED = "worst", "best", "changed"
"""Why a row was chosen."""
SAME = "same score"
"""Instead of worst and best where all rows have one score: of these the ones with most loss."""
LOSS = "-loss"
"""The score of a row whose task has no metric for single rows: minus its mean loss per token."""
SHOWN = 200  # characters of a text in the table


@contextmanager
def without_adapters(model: MultiTaskModel) -> Iterator[None]:
    """While it lasts every trained weight is 0, so that the model is the base model.

    LoRA and bottlenecks then add nothing; a head of a task's own gives equal scores to all labels.
    """
    state = model.adapter_state()
    before = {name: value.clone() for name, value in state.items()}
    with torch.no_grad():
        for value in state.values():
            value.zero_()
    try:
        yield
    finally:
        model.load_adapter_state(before)


@dataclass(frozen=True)
class Pair:
    """One row with both answers; scores are in the metric's unit, ranks order them."""

    before: Prediction
    after: Prediction
    score_before: float
    score_after: float
    change: float  # of the normalised score: positive is better
    rank: float  # the normalised score after
    text_change: float  # 0 (the same) .. 1

    @property
    def loss_before(self) -> float:
        return self.before.loss_sum / self.before.tokens

    @property
    def loss_after(self) -> float:
        return self.after.loss_sum / self.after.tokens


def review(
    run: str | Path,
    *,
    against: str | Path = BASE,
    split: str = "test",
    tasks: Sequence[str] | None = None,
    rows: int = 5,
    max_rows: int | None = None,
) -> list[dict[str, Any]]:
    """Choose rows of each task worth a look, and write them to ``review.jsonl`` in the folder.

    `against`: "base", the model without adapters, or the folder of another run that was asked the
    same rows. Of each task `rows` rows with the lowest score, as many with the highest (of rows
    that all score the same: with the highest loss), and as many whose score (then whose text)
    differs most. The score of a row is the task's primary metric of
    that row alone, where it has one. `max_rows` answers a seeded subset of so many rows per task.
    """
    if rows < 1:
        raise UserError(f"--rows {rows} shows nothing", where="--rows", fix="give 1 or more")
    mine = KeptRun(run, split)
    names = list(mine.recipe.tasks) if tasks is None else list(dict.fromkeys(tasks))
    mine.require_tasks(names)
    if str(against) != BASE:
        if max_rows is not None:
            raise UserError(
                "all rows of both runs are read, so a subset saves nothing",
                where="--max-rows",
                fix="leave --max-rows out, or compare with the base model",
            )
        after, before = answers_of([mine, KeptRun(against, split)], names)
    else:
        before, after = _base_answers(mine, names, max_rows)
    lines = [
        line | {"split": split, "against": str(against)}
        for name in names
        for line in _lines(name, mine.evaluators[name], before[name], after[name], rows)
    ]
    text = "".join(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in lines)
    (mine.folder / REVIEW).write_text(text, encoding="utf-8")
    return lines


def _base_answers(
    mine: KeptRun, names: Sequence[str], max_rows: int | None
) -> tuple[dict[str, list[Prediction]], dict[str, list[Prediction]]]:
    """The answers of the base model, and of the run to the same rows."""
    run = mine.load()
    if max_rows is None:
        mine.answer(names)
        after = mine.answers
    else:
        after = run.predict(mine.split, names, max_rows=max_rows)
    with without_adapters(run.model):
        before = run.predict(mine.split, names, max_rows=max_rows)
    if any([p.row for p in before[n]] != [p.row for p in after[n]] for n in names):
        mine.answer(names, anew=True)  # the files are of fewer rows, or of other data
        after = mine.answers
    return before, after


def row_scores(
    evaluator: Evaluator | None, predictions: Sequence[Prediction]
) -> tuple[str, list[float]]:
    """The name of what a row is scored by, and each row's score."""
    if evaluator is not None:
        try:
            scores = evaluator.row_scores(predictions)
            if scores is None:
                scores = [float(evaluator.score([row])) for row in predictions]
        except NO_SCORE:
            pass  # e.g. a correlation, which one row does not have
        else:
            return evaluator.name, scores
    return LOSS, [-row.loss_sum / row.tokens for row in predictions]


def _lines(
    task: str,
    evaluators: Sequence[Evaluator],
    before: Sequence[Prediction],
    after: Sequence[Prediction],
    count: int,
) -> list[dict[str, Any]]:
    evaluator = evaluators[0] if evaluators else None
    metric, scores = row_scores(evaluator, [*before, *after])
    if evaluator is None or metric == LOSS:
        ranks = scores
    else:
        ranks = [evaluator.normalized(score) for score in scores]
    size = len(before)
    pairs = [
        Pair(
            one,
            other,
            scores[index],
            scores[size + index],
            ranks[size + index] - ranks[index],
            ranks[size + index],
            1 - SequenceMatcher(None, one.output, other.output, autojunk=False).ratio(),
        )
        for index, (one, other) in enumerate(zip(before, after, strict=True))
    ]
    changed = [pair for pair in pairs if pair.change or pair.text_change]
    worst = sorted(pairs, key=lambda p: (p.rank, -p.loss_after))[:count]
    best = sorted(pairs, key=lambda p: (-p.rank, p.loss_after))[:count]
    differ = len({pair.rank for pair in pairs}) > 1
    chosen = {
        **({WORST: worst, BEST: best} if differ else {SAME: worst}),
        CHANGED: sorted(changed, key=lambda p: (-abs(p.change), -p.text_change))[:count],
    }
    why: dict[int, list[str]] = {}
    for reason, some in chosen.items():
        for pair in some:
            why.setdefault(pair.after.row, []).append(reason)
    by_row = {pair.after.row: pair for pair in pairs}
    return [
        {
            "task": task,
            "row": row,
            "why": reasons,
            "prompt": by_row[row].after.prompt,
            "target": by_row[row].after.target,
            "before": by_row[row].before.output,
            "after": by_row[row].after.output,
            "metric": metric,
            "score_before": by_row[row].score_before,
            "score_after": by_row[row].score_after,
            "loss_before": by_row[row].loss_before,
            "loss_after": by_row[row].loss_after,
        }
        for row, reasons in why.items()
    ]


def table(task: str, lines: Sequence[dict[str, Any]]) -> Table:
    """A rich table of the chosen rows of one task."""
    from rich.table import Table
    from rich.text import Text

    title = f"{task}: {lines[0]['metric']} by row"
    if any(SAME in line["why"] for line in lines):
        title += "; all rows score the same"
    found = Table(title=Text(title), show_lines=True)
    for column in ("row", "why", "prompt", "target", "before", "after", "score"):
        found.add_column(column, justify="right" if column == "row" else "left")
    for line in lines:
        texts = [_short(str(line[key])) for key in ("prompt", "target", "before", "after")]
        score = f"{line['score_before']:.3f} -> {line['score_after']:.3f}"
        cells = [str(line["row"]), ", ".join(line["why"]), *texts, score]
        found.add_row(*map(Text, cells))
    return found


def _short(text: str) -> str:
    """The two ends of a long text: questions stand last, subjects first.

    Control characters are written out: rows must not colour the terminal, or worse.
    """
    text = "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
    if len(text) <= SHOWN:
        return text
    return f"{text[: SHOWN // 2]} ... {text[-SHOWN // 2 :]}"
