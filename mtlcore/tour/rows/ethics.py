"""Rows of the tour on bias, labels and explanations."""

from __future__ import annotations

from operator import itemgetter
from statistics import mean

from mtlcore.tour.cases import dialect, opinions, task, write
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
    quantity="accuracy after training on 100 texts, 20 of them repeated thrice with wrong labels",
    better="higher",
)
def labels(tour: Tour) -> tuple[float, float]:
    """The texts that `mtlcore check` reports with unlike labels left out against all rows."""
    text = itemgetter("text")
    rows = list({text(row): row for row in opinions(100, 101)}.values())
    wrong = [{**r, "label": "no" if r["label"] == "yes" else "yes"} for r in rows[:20]]
    known = set(map(text, rows))
    test = [row for row in opinions(200, 100) if text(row) not in known]
    rows += 3 * wrong
    recipe = tour.recipe(
        "doubtful", {"tasks": {"doubtful": task(tour.folder, "doubtful", rows, test=test)}}
    )
    without = tour.overall(tour.train(recipe))
    found = tour.json("check", recipe, "--column", "thing")
    checked = tour.commands[-1]
    places = [place for c in found["tasks"]["doubtful"]["conflicts"] for place in c["rows"]]
    doubted = {text(rows[int(place.rpartition(":")[2]) - 1]) for place in places}
    write(tour.folder, "doubtful.train", [row for row in rows if text(row) not in doubted])
    with_remedy = tour.overall(tour.train(recipe))
    tour.commands.append(checked)
    return without, with_remedy


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
