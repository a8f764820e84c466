"""`mtlcore explain`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mtlcore.cli.console import only_results_on_stdout, warn
from mtlcore.cli.options import AsJson, SplitName, Step

if TYPE_CHECKING:
    from rich.text import Text

    from mtlcore.explain import Explanation


def explain(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    task: Annotated[str, typer.Option(help="The task of the row.")],
    row: Annotated[int, typer.Option(help="Its number in its file, from 0.", min=0)],
    split: SplitName = "test",
    method: Annotated[
        str, typer.Option(help="integrated_gradients, input_x_gradient or feature_ablation.")
    ] = "integrated_gradients",
    n_steps: Annotated[
        int | None,
        typer.Option(help="Steps of the integral; default as many as it takes.", min=1),
    ] = None,
    step: Step = None,
    as_json: AsJson = False,
) -> None:
    """Show which tokens of a prompt the answer depends on."""
    from mtlcore.explain import captum, require_method
    from mtlcore.explain import explain as explain_row

    require_method(method)
    captum()  # says what is missing before a model is loaded

    from mtlcore.api import load

    with only_results_on_stdout():
        found = explain_row(
            load(run, step=step, tasks=[task]),
            task,
            row,
            split=split,
            method=method,
            n_steps=n_steps,
        )
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    console = Console()
    console.print(coloured(found))
    for line in summary(found):
        console.print(line, markup=False, highlight=False)
    if method == "integrated_gradients" and not found.attribution.complete:
        warn(f"the scores miss completeness by {found.attribution.delta:.2g}: more --n-steps")
    if found.deletion is not None and found.deletion.top <= found.deletion.random:
        warn("the tokens with the highest scores matter no more than others: do not trust them")


def coloured(found: Explanation) -> Text:
    """The prompt; green tokens speak for the answer, red ones against it."""
    from rich.text import Text

    largest = max(map(abs, found.scores)) or 1.0
    text = Text()
    for token, score in zip(found.tokens, found.scores, strict=True):
        strength = abs(score) / largest
        style = ""
        if strength >= 0.1:
            shade = round(60 + 140 * strength)
            style = f"on rgb(0,{shade},0)" if score > 0 else f"on rgb({shade},0,0)"
        text.append(token, style=style)
    return text


def summary(found: Explanation, shown: int = 10) -> list[str]:
    """The tokens with the largest scores, completeness and the deletion test, as text."""
    order = sorted(range(len(found.scores)), key=lambda place: -abs(found.scores[place]))
    lines = ["", f"{found.quantity}: {found.attribution.value:.4f}"]
    lines += [
        f"  {found.scores[place]:+.4f}  {found.tokens[place]!r} (token {place})"
        for place in order[:shown]
        if found.scores[place]
    ]
    attribution = found.attribution
    lines.append(
        f"sum of scores {sum(found.scores):.4f}, difference to the baseline "
        f"{attribution.value - attribution.baseline_value:.4f} (off by {attribution.delta:.2g}, "
        f"{attribution.n_steps} steps)"
    )
    deletion = found.deletion
    if deletion is None:
        lines.append("deletion test: too few tokens")
    else:
        lines.append(
            f"deletion test: without the {deletion.k} highest tokens it falls by "
            f"{deletion.top:.4f}, without any {deletion.k} by {deletion.random:.4f} (mean of "
            f"{deletion.draws} draws)"
        )
    return lines
