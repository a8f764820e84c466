"""What weightings that undo the scale of a loss share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtlcore.errors import Problem

if TYPE_CHECKING:
    from mtlcore.recipe import Recipe


def note_loss_weights(recipe: Recipe, weighting: str) -> list[Problem]:
    """Warn of loss weights that differ: the weighting makes up for them."""
    given = {name: task.loss_weight for name, task in recipe.tasks.items()}
    if len({*given.values()}) == 1:
        return []
    odd = next(name for name, value in given.items() if value != 1)
    return [
        Problem(
            f"tasks.{odd}.loss_weight",
            f"loss weights that differ have no effect: weighting {weighting} undoes the scale of "
            "every loss",
            "remove them, or use another weighting (fixed, stch)",
        )
    ]
