"""`mtlcore preview`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mtlcore.cli.console import only_results_on_stdout
from mtlcore.cli.options import AsJson, Overrides, SplitName, Tasks
from mtlcore.errors import UserError
from mtlcore.terminal import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table
    from rich.text import Text

    from mtlcore.preview.rows import Piece, RowPreview
    from mtlcore.preview.step import BatchPreview, StepPreview

MARKS = "⟦⟧⟨⟩⟪⟫"
LEGEND = "⟦trained⟧ ⟨special token⟩ ⟪cut away⟫"
SHOWN_OF_A_CUT = 60
STYLES = {"given": "", "trained": "bold green", "cut": "red"}


def preview(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe's YAML file.")],
    overrides: Overrides = None,
    task: Tasks = None,
    split: SplitName = "train",
    rows: Annotated[int, typer.Option(help="Rows of each task.", min=0)] = 3,
    step: Annotated[
        int | None, typer.Option(help="The batch of this training step, from 1.", min=1)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print rows as the model gets them, or the batch of a step; loads no model."""
    from mtlcore.preview.rows import preview_rows

    found: StepPreview | None = None
    with only_results_on_stdout():
        if step is None:
            some = preview_rows(recipe, overrides or (), tasks=task, split=split, rows=rows)
        else:
            if split != "train":
                raise UserError(f"a step has train rows, found --split {split}", fix="leave it out")
            from mtlcore.preview.step import preview_step

            found = preview_step(recipe, overrides or (), step=step, tasks=task, rows=rows)
    values = some.to_json() if found is None else found.to_json()
    if as_json:
        typer.echo(json.dumps(values, indent=2, ensure_ascii=False))
    elif found is None:
        _print(some.rows, some.notes, None)
    else:
        _print(found.rows, found.notes, found)


def _print(rows: Sequence[RowPreview], notes: Sequence[str], step: StepPreview | None) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)

    def say(text: str, style: str = "") -> None:
        console.print(Text(plain(text), style), soft_wrap=True)

    for note in notes:
        say(f"note: {note}")
    if step is not None:
        form = "flat, without padding" if step.flat else "padded"
        say(f"step {step.step} of {step.steps}, stage {step.stage}: batches are {form}", "bold")
        for number, batch in enumerate(step.micro_batches, start=1):
            console.print(_batch_table(number, batch, flat=step.flat))
    if rows:
        say(LEGEND, "dim")
    for row in rows:
        say("")
        say(headline(row), "bold")
        if row.pieces:
            console.print(marked(row.pieces), soft_wrap=True)
        for line in option_lines(row):
            say(line)


def headline(row: RowPreview) -> str:
    """Where a row stands, and its numbers."""
    start = f"{row.task}, {row.split} row {row.row} ({row.place})"
    if row.unused:
        return f"{start}: not used: {row.unused}"
    learned = "answered by its head" if row.head else f"{row.trained} trained"
    cut = f", {row.cut} cut away" if row.cut else ""
    return f"{start}: {row.tokens} tokens, {learned}{cut}"


def marked(pieces: Sequence[Piece]) -> Text:
    """The text of a row with marks that survive a pipe, and colours where there are any."""
    from itertools import groupby

    from rich.text import Text

    text = Text()
    for kind, group in groupby(pieces, key=lambda piece: piece.kind):
        stretch = list(group)
        if kind == "cut":
            text.append(_cut(stretch), STYLES[kind])
            continue
        inner = Text(style=STYLES[kind])
        for piece in stretch:
            spelled = _spelled(piece.text)
            inner.append(f"⟨{spelled}⟩" if piece.special else spelled, "cyan" * piece.special)
        text += Text.assemble("⟦", inner, "⟧", style=STYLES[kind]) if kind == "trained" else inner
    return text


def option_lines(row: RowPreview) -> list[str]:
    """The answers to choose from, one a line; the right one has an x."""
    lines = []
    for option in row.options:
        tokens = f" ({option.tokens} token{'s' * (option.tokens != 1)})" if option.tokens else ""
        lines.append(f"  [{'x' if option.right else ' '}] {_spelled(option.text)}{tokens}")
    return lines


def _cut(pieces: Sequence[Piece]) -> str:
    text = "".join(piece.text for piece in pieces)
    if len(text) > SHOWN_OF_A_CUT:
        half = SHOWN_OF_A_CUT // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return f"⟪{sum(piece.tokens for piece in pieces)} tokens cut: {_spelled(text)}⟫"


def _spelled(text: str) -> str:
    """Text of the data, in which nothing looks like one of the marks."""
    return "".join(ascii(c)[1:-1] if c in MARKS else c for c in plain(text))


def _batch_table(number: int, batch: BatchPreview, *, flat: bool) -> Table:
    from rich import box
    from rich.table import Table

    rows = sum(len(segment.row_lengths) for segment in batch.segments)
    title = f"micro-batch {number}: {rows} rows, shape [{batch.shape[0]}, {batch.shape[1]}]"
    title += "" if flat else f", {batch.padding:.0%} padding"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for name in ("task", "places" if flat else "rows", "row lengths"):
        table.add_column(name, overflow="fold")
    for name in ("tokens", "labels"):
        table.add_column(name, justify="right")
    for part in batch.segments:
        lengths = " ".join(map(str, part.row_lengths))
        place = f"{part.start}-{part.stop - 1}"
        table.add_row(part.task, place, lengths, str(part.tokens), str(part.labels))
    return table
