"""The rows of the tour, one function each: (value without, value with the remedy)."""

from __future__ import annotations

import json
import math
from typing import Any

from mtlcore.tour.cases import BAD, GOOD, THINGS, opinions, task, write
from mtlcore.tour.tour import Tour, row

INTERFERENCE = "Task interference"
RESOURCES = "Resource cost"
EVALUATION = "Evaluation"
DATA = "Data preparation"
FIT = "Over- and underfitting"
TRANSFER = "Transfer"
CONTINUAL = "Continual learning"
ETHICS = "Ethics"


# -- interference ------------------------------------------------------------------------------


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


@row(
    INTERFERENCE,
    "Task-specific layers",
    quantity="accuracy on two tasks with the same texts and opposite labels",
    better="higher",
)
def own_layers(tour: Tour) -> tuple[float, float]:
    """Own adapters and a head against one shared adapter."""
    recipe = opposite_tasks(tour)
    without = tour.overall(tour.train(recipe))
    remedy = ("sharing.own=4",)
    return without, tour.overall(tour.train(recipe, *remedy))


@row(
    INTERFERENCE,
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


# -- resources ---------------------------------------------------------------------------------


@row(
    RESOURCES,
    "LoRA and adapters",
    quantity="megabytes to store what a task was taught",
    better="lower",
)
def adapters(tour: Tour) -> tuple[float, float]:
    """A merged model of the task against its adapter."""
    recipe = opposite_tasks(tour)
    run = tour.train(recipe, "sharing.own=4", "training.max_steps=10")
    sizes = []
    for name, flags in (("merged", ["--merged"]), ("adapter", [])):
        tour.run("export", run, "--task", "liked", "--out", name, *flags)
        weights = tour.folder.joinpath(name).glob("*.safetensors")
        sizes.append(sum(path.stat().st_size for path in weights) / 1e6)
    return sizes[0], sizes[1]


# -- evaluation --------------------------------------------------------------------------------


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


@row(
    EVALUATION,
    "One score from per-task metrics",
    quantity="overall score of the model that the run ends with, after it has overfitted",
    better="higher",
)
def one_score(tour: Tour) -> tuple[float, float]:
    """The checkpoint with the best overall score against the last one."""
    recipe = noisy_tasks(tour)
    without = tour.overall(tour.train(recipe))
    remedy = (
        "training.eval_steps=10",
        "training.load_best_model_at_end=true",
        "training.metric_for_best_model=eval_overall",
    )
    return without, tour.overall(tour.train(recipe, *remedy))


# -- data --------------------------------------------------------------------------------------


@row(
    DATA,
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
    tune = {"name": "tune", "tasks": ["labelled"], "max_steps": 60}
    domain = {"name": "domain", "tasks": ["corpus"], "max_steps": 150}
    alone = tour.recipe("few", {"tasks": {"labelled": tasks["labelled"]}, "stages": [tune]})
    without = tour.scores(tour.train(alone)).by_task["labelled"].loss
    recipe = tour.recipe("domain", {"tasks": tasks, "stages": [domain, tune]})
    run = tour.train(recipe)
    scores = tour.scores(run)
    return without, scores.by_task["labelled"].loss


# -- fit ---------------------------------------------------------------------------------------


@row(
    FIT,
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
    FIT,
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
    training = {"max_steps": 200, "eval_steps": 20, "eval_metrics": False}
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


# -- transfer ----------------------------------------------------------------------------------


def two_camps(tour: Tour, **changes: Any) -> str:
    """Four tasks over the same texts: two label them one way, two the other way."""
    tasks = {
        name: task(
            tour.folder,
            name,
            opinions(120, seed, flip=flip),
            test=opinions(60, seed + 1, flip=flip),
        )
        for name, seed, flip in (
            ("like", 60, False),
            ("dislike", 62, True),
            ("love", 64, False),
            ("hate", 66, True),
        )
    }
    return tour.recipe("camps", {"tasks": tasks, "sharing": {"shared": 4, "own": 0}, **changes})


def plan(tour: Tour) -> tuple[str, str]:
    """A run of the two camps that measures affinities, and the plan made from it."""
    run = tour.train(two_camps(tour, monitoring=["affinity"], training={"max_steps": 60}))
    tour.run("group", run, "--rank", "4", "--out", f"{run}.plan.yaml")
    return run, f"{run}.plan.yaml"


@row(
    TRANSFER,
    "Task grouping",
    quantity="accuracy of four tasks of two camps that contradict each other",
    better="higher",
)
def grouping(tour: Tour) -> tuple[float, float]:
    """Adapters of the groups that `mtlcore group` finds against one for all."""
    recipe = two_camps(tour)
    without = tour.overall(tour.train(recipe))
    _, found = plan(tour)
    path = tour.folder / "planned.yaml"
    path.write_text(json.dumps({"extends": [recipe, found]}), encoding="utf-8")
    return without, tour.overall(tour.train(path.name))


@row(
    TRANSFER,
    "Selective sharing by layer",
    quantity="trained weights (thousands) at the accuracy of the group adapters, or better",
    better="lower",
)
def selective_sharing(tour: Tour) -> tuple[float, float]:
    """Group adapters in the last block alone against group adapters in all."""
    groups = {
        "yes": {"tasks": ["like", "love"], "r": 4},
        "no": {"tasks": ["dislike", "hate"], "r": 4},
    }
    sizes, scores = [], []
    for layers in (None, [1]):
        chosen = {name: {**g, "layers_to_transform": layers} for name, g in groups.items()}
        sharing = {"shared": 4, "own": 0, "groups": chosen}
        run = tour.train(two_camps(tour, sharing=sharing, training={"max_steps": 200}))
        scores.append(tour.overall(run))
        sizes.append(tour.weights(run) / 1e3)
    if scores[1] < scores[0] - 0.02:  # fewer weights for a worse model are no gain
        return sizes[0], math.inf
    return sizes[0], sizes[1]


@row(
    TRANSFER,
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


# -- continual ---------------------------------------------------------------------------------


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
    return float(found["mean_change"])


@row(
    CONTINUAL,
    "Elastic weight consolidation",
    quantity="change of the old tasks' accuracy when a task is added",
    better="higher",
)
def ewc(tour: Tour) -> tuple[float, float]:
    """EWC against plain training on the new task."""
    without = change_of_old_tasks(tour, "plain")
    remedy = "regularization=[{name: ewc, strength: 1000}]"
    return without, change_of_old_tasks(tour, "with-ewc", remedy)


@row(
    CONTINUAL,
    "Replay",
    quantity="change of the old tasks' accuracy when a task is added",
    better="higher",
)
def replay(tour: Tour) -> tuple[float, float]:
    """A memory of 40 rows against none."""
    without = change_of_old_tasks(tour, "no-memory")
    remedy = "replay={name: reservoir, rows: 40, share: 0.5}"
    return without, change_of_old_tasks(tour, "memory", remedy)


@row(
    CONTINUAL,
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
        flags = ("--task", path.name, "--max-steps", "10", "--output-dir", name)
        tour.run("adapt", run, *flags, f"start.nearest={nearest}")
        losses.append(tour.scores(name).by_task["again"].loss)
    return losses[0], losses[1]
