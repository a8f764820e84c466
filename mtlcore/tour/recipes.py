"""Recipes that several rows of the tour use."""

from __future__ import annotations

from typing import Any

from mtlcore.tour.cases import dialect, opinions, task
from mtlcore.tour.tour import Tour


def opposite_tasks(tour: Tour) -> str:
    """Two tasks with the same texts and opposite labels: no shared weight can serve both."""
    tasks = {
        name: task(
            tour.folder,
            name,
            opinions(200, seed, flip=flip),
            eval=opinions(60, seed + 1, flip=flip),
            test=opinions(60, seed + 2, flip=flip),
        )
        for name, seed, flip in (("liked", 0, False), ("disliked", 10, True))
    }
    return tour.recipe("opposite", {"tasks": tasks, "sharing": {"shared": 4, "own": 0}})


def people(seed: int) -> list[dict[str, Any]]:
    """Rows of the many, and 12 of the few among 202."""
    return dialect(190, seed, rare=False) + dialect(12, seed + 1, rare=True)


def noisy_tasks(tour: Tour) -> str:
    """Two tasks of 40 rows, a quarter of their labels wrong, and steps enough to learn them."""
    tasks = {
        name: task(
            tour.folder,
            name,
            opinions(40, seed, noise=0.25),
            eval=opinions(80, seed + 1),
            test=opinions(200, seed + 2),
            template=template,
        )
        for name, seed, template in (("first", 20, "{{ text }} ="), ("second", 30, "{{ text }} :"))
    }
    return tour.recipe("noisy", {"tasks": tasks, "training": {"max_steps": 200}})


def two_camps(tour: Tour, **changes: Any) -> str:
    """Four tasks over the same prompts: two answer yes or no, two answer up or down."""
    tasks: dict[str, Any] = {}
    for seed, name in enumerate(("like", "rise", "love", "climb")):
        words = {"yes": "yes", "no": "no"} if seed % 2 == 0 else {"yes": "up", "no": "down"}
        train, test = (
            [{**r, "label": words[r["label"]]} for r in opinions(count, 60 + 2 * seed + part)]
            for part, count in enumerate((120, 60))
        )
        tasks[name] = task(tour.folder, name, train, test=test, labels=list(words.values()))
    sharing = {"shared": 4, "own": 0}
    return tour.recipe("camps", {"tasks": tasks, "sharing": sharing, **changes})
