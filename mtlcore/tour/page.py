"""The tour as a page of documentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mtlcore.tour.tour import Result

HEAD = """\
# The tour

<!-- Written by `make tour`; the rows are in mtlcore/tour/rows/. -->

Multi-task tuning has eight troubles, each with three known remedies. `make tour` runs one command
for each remedy (two for domain adaptation), on a small random model and on data made so that the
trouble is there (a planted conflict, imbalance, shift, leak, noise or bias), once without and once
with it. The quantity and the direction in which it must move are fixed beforehand; a wrong
direction fails the tour. The figures say that each remedy works as it should, not how much it gives
on your tasks.
"""


def markdown(results: Sequence[Result]) -> str:
    """A section per trouble, an entry per remedy."""
    lines = [HEAD]
    for result in results:
        heading = f"## {result.trouble}"
        if heading not in lines:
            lines += [heading, ""]
        lines += [
            f"**{result.remedy}.** {result.quantity[0].upper()}{result.quantity[1:]}, to be "
            f"{result.better}: **{result.without:.3g}** without, **{result.with_remedy:.3g}** with "
            f"it ({result.verdict}).",
            "",
            "```console",
            f"$ {result.command}",
            "```",
            "",
        ]
    return "\n".join(lines)
