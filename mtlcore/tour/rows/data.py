"""Rows of the tour on rows: clean, of the right domain, balanced."""

from __future__ import annotations

from typing import Any

from mtlcore.tour.cases import THINGS, opinions, task, write
from mtlcore.tour.tour import Tour, overall, row

TROUBLE = "Data preparation"
CLEANED = "{unicode: NFC, whitespace: true, duplicates: drop, leakage: drop}"


@row(
    TROUBLE,
    "Standard pipeline",
    quantity="error of the test score when half of the test rows stand in the train file too",
    better="lower",
)
def pipeline(tour: Tour) -> tuple[float, float]:
    """Rows normalised, and duplicates and leaked rows dropped, against rows as they are."""
    train, test = opinions(60, 110, noise=0.3), opinions(60, 111, noise=0.3)
    leaked = [{**row, "text": f" {row['text']}  "} for row in test[:30]]
    fresh = opinions(500, 112, noise=0.3)
    errors = []
    recipe = ""
    for name, rows in (("fresh", fresh), ("leaky", test)):
        tasks = {"leaky": task(tour.folder, name, train + leaked * 2, test=rows)}
        recipe = tour.recipe(name, {"tasks": tasks, "training": {"max_steps": 200}})
    for cleaning in ([], ["tasks.leaky.cleaning=" + CLEANED]):
        true = tour.overall(tour.train("fresh.yaml", *cleaning))
        errors.append(abs(tour.overall(tour.train(recipe, *cleaning)) - true))
    return errors[0], errors[1]


@row(
    TROUBLE,
    "Domain adaptation",
    quantity="loss on the texts of the new domain, 24 of them labelled",
    better="lower",
)
def domain_adaptation(tour: Tour) -> tuple[float, float]:
    """A first stage of language modelling on unlabelled text against none."""
    corpus = opinions(400, 40)
    tasks: dict[str, Any] = {
        "labelled": task(tour.folder, "labelled", corpus[:24], test=opinions(100, 41)),
        "corpus": {
            "train": write(tour.folder, "corpus", corpus),
            "format": "text",
            "role": "auxiliary",
            "split": {"eval": 0.0},
        },
    }
    tune = {"name": "tune", "tasks": ["labelled"], "max_steps": 40}
    domain = {"name": "domain", "tasks": ["corpus"], "max_steps": 300}
    alone = tour.recipe("few", {"tasks": {"labelled": tasks["labelled"]}, "stages": [tune]})
    without = tour.scores(tour.train(alone)).by_task["labelled"].loss
    recipe = tour.recipe("domain", {"tasks": tasks, "stages": [domain, tune]})
    run = tour.train(recipe)
    scores = tour.scores(run)
    return without, scores.by_task["labelled"].loss


@row(
    TROUBLE,
    "Domain adaptation",
    quantity="test loss in a domain of other words with 24 labelled rows, beside one with 200",
    better="lower",
)
def coral(tour: Tour) -> tuple[float, float]:
    """Hidden states of both domains aligned against the same training without it.

    The large domain speaks of two things, the small one of ten others, which few rows let stand for
    labels. Between rows about the same things, with nothing to align, `coral` harms.
    """
    head = {"name": "classification", "pooling": "mean"}
    domains = (("large", 200, 200, THINGS[:2]), ("small", 24, 201, THINGS[2:]))
    tasks = {
        name: task(
            tour.folder,
            name,
            opinions(rows, seed, things=things),
            test=opinions(200, seed + 2, things=things),
            head=head,
        )
        for name, rows, seed, things in domains
    }
    training = {"per_device_train_batch_size": 32}
    recipe = tour.recipe("shift", {"tasks": tasks, "sampling": "equal", "training": training})
    remedy = "regularization=[{name: coral, strength: 100}]"
    without = tour.scores(tour.train(recipe)).by_task["small"].loss
    return without, tour.scores(tour.train(recipe, remedy)).by_task["small"].loss


@row(
    TROUBLE,
    "Balanced sampling",
    quantity="accuracy on test rows with as many of one label as of the other (train: 6%)",
    better="higher",
)
def balanced(tour: Tour) -> tuple[float, float]:
    """Every label equally often against rows as they come."""
    tasks = {
        name: task(
            tour.folder,
            name,
            opinions(200, 145, share=0.06),
            test=opinions(100, 146),
            template=text,
        )
        for name, text in (("rare_one", "{{ text }} ="), ("rare_two", "{{ text }} :"))
    }
    recipe = tour.recipe("rare", {"tasks": tasks})
    remedy = [f"tasks.{name}.rows=class_balanced" for name in tasks]
    return tour.mean_of_seeds(recipe, overall), tour.mean_of_seeds(recipe, overall, *remedy)
