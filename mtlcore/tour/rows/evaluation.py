"""Rows of the tour on scores, baselines and review."""

from __future__ import annotations

import json
from statistics import mean

from mtlcore.evaluation.review import WORST
from mtlcore.tour.cases import BAD, GOOD, opinions, task
from mtlcore.tour.recipes import two_camps
from mtlcore.tour.tour import Tour, overall, row

TROUBLE = "Evaluation"


@row(
    TROUBLE,
    "One score from per-task metrics",
    quantity="mean accuracy of the checkpoint that is chosen during training",
    better="higher",
)
def one_score(tour: Tour) -> tuple[float, float]:
    """The best by the overall score against the best by the task that one happens to watch."""
    tasks = {
        name: task(
            tour.folder,
            f"{name}.watched",
            opinions(rows, seed, good=GOOD[:words], bad=BAD[:words]),
            eval=opinions(60, seed + 1, good=GOOD[:words], bad=BAD[:words]),
            test=opinions(100, seed + 2, good=GOOD[:words], bad=BAD[:words]),
            template=template,
        )
        for name, rows, words, seed, template in (
            ("first", 300, 2, 20, "{{ text }} ="),
            ("second", 100, 12, 30, "{{ text }} :"),
        )
    }
    training = {"max_steps": 150, "eval_steps": 10, "load_best_model_at_end": True}
    recipe = tour.recipe("watched", {"tasks": tasks, "training": training})
    chosen = [
        tour.mean_of_seeds(recipe, overall, f"training.metric_for_best_model={metric}")
        for metric in ("eval_first_accuracy", "eval_overall")
    ]
    return chosen[0], chosen[1]


@row(
    TROUBLE,
    "Single-task baselines",
    quantity="seconds of training for the single-task models of four tasks",
    better="lower",
)
def baselines(tour: Tour) -> tuple[float, float]:
    """All of them in one run against one run for each."""
    recipe = two_camps(tour, training={"per_device_train_batch_size": 8})
    alone = 0.0
    for name in ("like", "rise", "love", "climb"):
        single = ("training.per_device_train_batch_size=2", f"training.output_dir=single-{name}")
        tour.run("baseline", recipe, "--task", name, *single)
        alone += tour.read(f"single-{name}-baseline", "result.json")["totals"]["seconds"]
    tour.run("baseline", recipe, "training.output_dir=all")
    return alone, tour.read("all-baseline", "result.json")["totals"]["seconds"]


@row(
    TROUBLE,
    "Review of outputs",
    quantity="share, among rows one reads, of those about the one thing mislabelled in training",
    better="higher",
)
def review(tour: Tour) -> tuple[float, float]:
    """The worst rows of a review against any rows of the test split, whose labels are right."""
    unlike = {"yes": "no", "no": "yes"}
    rows, test = opinions(400, 24), opinions(300, 26)
    rows = [r if r["thing"] != "hotel" else {**r, "label": unlike[r["label"]]} for r in rows]
    tasks = {"things": task(tour.folder, "things", rows, test=test)}
    run = tour.train(tour.recipe("things", {"tasks": tasks, "training": {"max_steps": 200}}))
    found = tour.run("review", run, "--rows", "10", "--json")
    lines = [json.loads(line) for line in found.splitlines()]
    worst = [test[line["row"]]["thing"] for line in lines if WORST in line["why"]]
    return mean(r["thing"] == "hotel" for r in test), mean(thing == "hotel" for thing in worst)
