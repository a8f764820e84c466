"""Rows of the tour on tasks that disturb one another."""

from __future__ import annotations

from typing import Any

from mtlcore.tour.cases import BAD, GOOD, opinions, task
from mtlcore.tour.recipes import opposite_tasks
from mtlcore.tour.tour import Tour, loss, row

TROUBLE = "Task interference"


@row(
    TROUBLE,
    "Task-specific layers",
    quantity="accuracy on two tasks with the same texts and opposite labels",
    better="higher",
)
def own_layers(tour: Tour) -> tuple[float, float]:
    """Own adapters and a head against one shared adapter."""
    recipe = opposite_tasks(tour)
    without = tour.overall(tour.train(recipe))
    remedy = ("sharing.own=4", "tasks.disliked.head=classification")
    return without, tour.overall(tour.train(recipe, *remedy))


@row(
    TROUBLE,
    "Dynamic task weighting",
    quantity="loss of the task that another one drowns (its loss weighs 50 times as much)",
    better="lower",
)
def dynamic_weighting(tour: Tour) -> tuple[float, float]:
    """Weights that follow the losses against equal ones."""
    tasks: dict[str, Any] = {
        "loud": task(tour.folder, "loud", opinions(200, 0), test=opinions(60, 1), loss_weight=50.0),
        "quiet": task(
            tour.folder,
            "quiet",
            opinions(200, 2, good=GOOD[::2] + BAD[::2], bad=GOOD[1::2] + BAD[1::2]),
            test=opinions(60, 3, good=GOOD[::2] + BAD[::2], bad=GOOD[1::2] + BAD[1::2]),
            template="{{ text }} :",
        ),
    }
    recipe = tour.recipe("drowned", {"tasks": tasks})
    without = tour.scores(tour.train(recipe)).by_task["quiet"].loss
    remedy = "weighting={name: uncertainty, learning_rate: 0.1}"
    return without, tour.scores(tour.train(recipe, remedy)).by_task["quiet"].loss


@row(
    TROUBLE,
    "Curriculum",
    quantity="test loss after training with hard rows, marked as such, that teach nothing",
    better="lower",
)
def curriculum(tour: Tour) -> tuple[float, float]:
    """Easy rows first, by a column, against all rows from the start."""
    easy, hard = opinions(100, 105), opinions(100, 106, noise=0.5)
    rows = [{**r, "level": 0} for r in easy] + [{**r, "level": 1} for r in hard]
    tasks = {
        name: task(tour.folder, name, rows, test=opinions(100, 107), template=template)
        for name, template in (("hard_one", "{{ text }} ="), ("hard_two", "{{ text }} :"))
    }
    recipe = tour.recipe("hard", {"tasks": tasks, "training": {"max_steps": 60}})
    chooser = "{name: curriculum, difficulty: level, start: 0.5, duration: 1.0}"
    remedy = [f"tasks.{name}.rows={chooser}" for name in tasks]
    return tour.mean_of_seeds(recipe, loss), tour.mean_of_seeds(recipe, loss, *remedy)
