"""Rows of the tour on bias, labels and explanations."""

from __future__ import annotations

from statistics import mean

from mtlcore.tour.cases import dialect, opinions, task
from mtlcore.tour.recipes import opposite_tasks, people
from mtlcore.tour.tour import Tour, row

TROUBLE = "Ethics"


@row(
    TROUBLE,
    "Bias audit and mitigation",
    quantity="difference of accuracy between two groups of people, one of them 6% of the rows",
    better="lower",
)
def bias(tour: Tour) -> tuple[float, float]:
    """Rows of both groups equally often against rows as they come, both audited."""
    rows, tests = people(95), dialect(60, 97, rare=False) + dialect(60, 98, rare=True)
    tasks = {
        name: task(tour.folder, name, rows, test=tests, template=template)
        for name, template in (("people_one", "{{ text }} ="), ("people_two", "{{ text }} :"))
    }
    recipe = tour.recipe("people", {"tasks": tasks})
    chooser = "{name: group_balanced, column: group}"
    gaps = []
    for remedy in ([], [f"tasks.{name}.rows={chooser}" for name in tasks]):
        run = tour.train(recipe, *remedy)
        trained = tour.commands[-1]
        found = tour.json("audit", run, "--auditor", "group_metrics", "column=group")
        gaps.append(mean(f["value"] for f in found))
        tour.commands.append(trained)
    return gaps[0], gaps[1]


@row(
    TROUBLE,
    "Label consistency and representation",
    quantity="contradictions told: rows that stand there twice, with unlike labels (12 planted)",
    better="higher",
)
def labels(tour: Tour) -> tuple[float, float]:
    """`mtlcore check` against training as it is, which says nothing."""
    rows = list({row["text"]: row for row in opinions(100, 101)}.values())
    planted = [{**r, "label": "no" if r["label"] == "yes" else "yes"} for r in rows[:12]]
    tasks = {"doubtful": task(tour.folder, "doubtful", rows + planted, test=opinions(50, 100))}
    recipe = tour.recipe("doubtful", {"tasks": tasks})
    run = tour.train(recipe, "training.max_steps=1")
    told = sum("label" in note for note in tour.read(run, "result.json")["notes"])
    found = tour.json("check", recipe, "--column", "thing")
    return float(told), float(found["tasks"]["doubtful"]["conflict_count"])


@row(
    TROUBLE,
    "Explanations",
    quantity="fall of the answer's log-likelihood when three words are taken away",
    better="higher",
)
def explanations(tour: Tour) -> tuple[float, float]:
    """The words that the explanation names against three at random."""
    run = tour.train(opposite_tasks(tour), "sharing.own=4", "training.max_steps=200")
    falls = [
        tour.json("explain", run, "--task", "liked", "--row", str(number))["deletion"]
        for number in range(5)
    ]
    return mean(fall["random"] for fall in falls), mean(fall["top"] for fall in falls)
