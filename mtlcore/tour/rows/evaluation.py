"""Rows of the tour on scores, baselines and review."""

from __future__ import annotations

import json

from mtlcore.evaluation.review import SAME, WORST
from mtlcore.tour.cases import BAD, GOOD, opinions, task
from mtlcore.tour.recipes import noisy_tasks, two_camps
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
    quantity="share of wrong answers among the rows that one reads",
    better="higher",
)
def review(tour: Tour) -> tuple[float, float]:
    """The worst rows of a review against any rows of the test split."""
    run = tour.train(noisy_tasks(tour))
    wrong_anywhere = 1 - tour.overall(run)
    lines = [json.loads(line) for line in tour.run("review", run, "--json").splitlines()]
    worst = [line for line in lines if {WORST, SAME} & {*line["why"]}]
    return wrong_anywhere, sum(line["after"] != line["target"] for line in worst) / len(worst)
