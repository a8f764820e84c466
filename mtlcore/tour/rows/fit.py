"""Rows of the tour on over- and underfitting."""

from __future__ import annotations

from statistics import mean
from typing import Any

from mtlcore.tour.cases import opinions, task
from mtlcore.tour.recipes import noisy_tasks
from mtlcore.tour.tour import Tour, row

TROUBLE = "Over- and underfitting"


@row(
    TROUBLE,
    "Regularization",
    quantity="loss on test rows after many passes over 40 rows, a quarter of them mislabelled",
    better="lower",
)
def regularization(tour: Tour) -> tuple[float, float]:
    """Dropout, weight decay, label smoothing and early stopping against none of them."""
    recipe = noisy_tasks(tour)
    without = tour.scores(tour.train(recipe)).loss
    remedy = (
        "lora.lora_dropout=0.2",
        "training.weight_decay=0.1",
        "training.label_smoothing_factor=0.1",
        "training.eval_steps=20",
        "training.early_stopping_patience=2",
        "training.load_best_model_at_end=true",
        "training.metric_for_best_model=eval_loss",
    )
    return without, tour.scores(tour.train(recipe, *remedy)).loss


@row(
    TROUBLE,
    "Regularization of single tasks",
    quantity="test loss of the small noisy task beside a large clean one",
    better="lower",
)
def task_regularization(tour: Tour) -> tuple[float, float]:
    """Own weight decay, dropout, smoothing and early stopping of one task against none."""
    tasks = {
        "large": task(
            tour.folder, "large", opinions(300, 50), eval=opinions(60, 51), test=opinions(60, 52)
        ),
        "small": task(
            tour.folder,
            "small",
            opinions(40, 53, noise=0.25),
            eval=opinions(60, 54),
            test=opinions(100, 55),
            template="{{ text }} :",
        ),
    }
    training: dict[str, Any] = {"max_steps": 200, "eval_steps": 20, "eval_metrics": False}
    training |= {"metric_for_best_model": "eval_loss", "load_best_model_at_end": True}
    sharing = {"shared": 2, "own": 4}
    recipe = tour.recipe(
        "small", {"tasks": tasks, "sampling": "equal", "sharing": sharing, "training": training}
    )
    without = tour.scores(tour.train(recipe)).by_task["small"].loss
    remedy = (
        "tasks.small.early_stopping_patience=2",
        "tasks.small.weight_decay=0.1",
        "tasks.small.lora_dropout=0.2",
        "tasks.small.label_smoothing_factor=0.1",
    )
    return without, tour.scores(tour.train(recipe, *remedy)).by_task["small"].loss


@row(
    TROUBLE,
    "Cross-validation",
    quantity="distance of the estimated score from that on 1000 other rows",
    better="lower",
)
def cross_validation(tour: Tour) -> tuple[float, float]:
    """The mean over five folds against one split (the mean distance of four such splits)."""
    tasks = {
        name: task(
            tour.folder,
            name,
            opinions(60, seed, noise=0.2),
            test=opinions(500, seed + 1, noise=0.2),
            template=text,
        )
        for name, seed, text in (("cv_one", 57, "{{ text }} ="), ("cv_two", 59, "{{ text }} :"))
    }
    distances, truths = [], []
    for seed in range(4):
        for one in tasks.values():
            one["split"] = {"eval": 0.2, "seed": seed}
        run = tour.train(tour.recipe("folds", {"tasks": tasks}))
        truths.append(tour.overall(run))
        estimate = tour.scores(run, "eval").overall
        assert estimate is not None
        distances.append(abs(estimate - truths[-1]))
    flags = ("--folds", "5", "training.output_dir=folds")
    found = tour.json("cv", "folds.yaml", *flags)
    return mean(distances), abs(found["overall"]["mean"] - mean(truths))
