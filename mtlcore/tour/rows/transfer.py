"""Rows of the tour on which tasks share what."""

from __future__ import annotations

import json
import math

from mtlcore.tour.cases import opinions, task
from mtlcore.tour.recipes import two_camps
from mtlcore.tour.tour import Tour, row

TROUBLE = "Transfer"


def plan(tour: Tour) -> str:
    """The plan made from a run of the two camps that measures affinities."""
    run = tour.train(two_camps(tour, monitoring=["affinity"]))
    tour.run("group", run, "--rank", "4", "--out", f"{run}.plan.yaml")
    return f"{run}.plan.yaml"


@row(
    TROUBLE,
    "Task grouping",
    quantity="loss of four tasks of two camps that want other answers to the same prompts",
    better="lower",
)
def grouping(tour: Tour) -> tuple[float, float]:
    """Adapters of the groups that `mtlcore group` finds against one for all."""
    recipe = two_camps(tour)
    without = tour.scores(tour.train(recipe)).loss
    found = plan(tour)
    path = tour.folder / "planned.yaml"
    path.write_text(json.dumps({"extends": [recipe, found]}), encoding="utf-8")
    return without, tour.scores(tour.train(path.name)).loss


@row(
    TROUBLE,
    "Selective sharing by layer",
    quantity="trained weights (thousands) that give a loss at most 5% above that of all",
    better="lower",
)
def selective_sharing(tour: Tour) -> tuple[float, float]:
    """Group adapters in the last block alone against group adapters in all."""
    groups = {
        "yes": {"tasks": ["like", "love"], "r": 4},
        "up": {"tasks": ["rise", "climb"], "r": 4},
    }
    sizes, losses = [], []
    for layers in (None, [1]):
        chosen = {name: {**g, "layers_to_transform": layers} for name, g in groups.items()}
        sharing = {"shared": 4, "own": 0, "groups": chosen}
        run = tour.train(two_camps(tour, sharing=sharing))
        losses.append(tour.scores(run).loss)
        sizes.append(tour.weights(run) / 1e3)
    if losses[1] > 1.05 * losses[0]:  # fewer weights for a worse model are no gain
        return sizes[0], math.inf
    return sizes[0], sizes[1]


@row(
    TROUBLE,
    "Auxiliary tasks",
    quantity="accuracy of the main task beside a harmful auxiliary one",
    better="higher",
)
def auxiliary_tasks(tour: Tour) -> tuple[float, float]:
    """An auxiliary task is dropped where its gradient opposes that of the main task."""
    tasks = {
        "main": task(tour.folder, "main", opinions(100, 70), test=opinions(100, 71)),
        "helper": task(tour.folder, "helper", opinions(300, 72, flip=True), role="auxiliary"),
    }
    recipe = tour.recipe("helper", {"tasks": tasks, "sampling": "equal"})
    without = tour.overall(tour.train(recipe))
    return without, tour.overall(tour.train(recipe, "weighting=gradient_similarity"))
