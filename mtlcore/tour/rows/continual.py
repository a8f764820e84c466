"""Rows of the tour on adding a task without losing the others."""

from __future__ import annotations

import json
import math

from mtlcore.tour.cases import GOOD, THINGS, opinions, task
from mtlcore.tour.recipes import opposite_tasks
from mtlcore.tour.tour import Tour, row

TROUBLE = "Continual learning"
LEARNED = 0.6
"""Accuracy from which the new task counts as learned: 0.58 without training, 0.5 by chance."""


def learned(tour: Tour) -> tuple[str, str]:
    """A run that knows two tasks, and the file of a third over the same texts."""
    tasks = {
        name: task(
            tour.folder,
            name,
            opinions(200, seed, flip=flip),
            test=opinions(100, seed + 1, flip=flip),
            template=template,
        )
        for name, seed, flip, template in (
            ("old_one", 80, False, "{{ text }} ="),
            ("old_two", 82, True, "{{ text }} :"),
        )
    }
    run = tour.train(tour.recipe("old", {"tasks": tasks, "training": {"max_steps": 150}}))
    new = task(
        tour.folder,
        "new",
        opinions(48, 84, good=THINGS[:6], bad=THINGS[6:], things=GOOD),
        test=opinions(100, 85, good=THINGS[:6], bad=THINGS[6:], things=GOOD),
        template="{{ text }} ?",
    )
    path = tour.folder / "new.yaml"
    path.write_text(json.dumps({"tasks": {"new": new}}), encoding="utf-8")
    return run, path.name


def change_of_old_tasks(tour: Tour, name: str, *overrides: str) -> float:
    """Adapt to the new task -> mean change of the old tasks' accuracies."""
    run, new = learned(tour)
    flags = ("--task", new, "--max-steps", "60", "--output-dir", name)
    found = tour.json("adapt", run, *flags, *overrides)
    if found["new_tasks"]["new"]["after"] < LEARNED:  # to forget nothing is easy then
        return -math.inf
    return float(found["mean_change"])


@row(
    TROUBLE,
    "Elastic weight consolidation",
    quantity="change of the old tasks' accuracy when a task is added and learned",
    better="higher",
)
def ewc(tour: Tour) -> tuple[float, float]:
    """EWC against plain training on the new task."""
    without = change_of_old_tasks(tour, "plain")
    remedy = "regularization=[{name: ewc, strength: 10}]"
    return without, change_of_old_tasks(tour, "with-ewc", remedy)


@row(
    TROUBLE,
    "Replay",
    quantity="change of the old tasks' accuracy when a task is added and learned",
    better="higher",
)
def replay(tour: Tour) -> tuple[float, float]:
    """A memory of 40 rows against none."""
    without = change_of_old_tasks(tour, "no-memory")
    remedy = "replay={name: reservoir, rows: 40, share: 0.5}"
    return without, change_of_old_tasks(tour, "memory", remedy)


@row(
    TROUBLE,
    "Few-shot adaptation",
    quantity="test loss of a new task with 12 rows, like one that the run knows",
    better="lower",
)
def few_shot(tour: Tour) -> tuple[float, float]:
    """Start from the nearest task's own adapter against a fresh one."""
    run = tour.train(opposite_tasks(tour), "sharing.own=4", "training.max_steps=200")
    new = task(tour.folder, "again", opinions(12, 90, flip=True), test=opinions(100, 91, flip=True))
    path = tour.folder / "again.yaml"
    path.write_text(json.dumps({"tasks": {"again": new}}), encoding="utf-8")
    losses = []
    for name, nearest in (("fresh", "false"), ("nearest", "true")):
        flags = ("--task", path.name, "--max-steps", "3", "--output-dir", name)
        tour.run("adapt", run, *flags, f"start.nearest={nearest}")
        losses.append(tour.scores(name).by_task["again"].loss)
    return losses[0], losses[1]
