"""The rows of the tour, one function each: (value without, value with the remedy)."""

from __future__ import annotations

import json
import math
from statistics import mean, median
from typing import Any

from mtlcore.evaluation.review import WORST
from mtlcore.tour.cases import BAD, GOOD, THINGS, dialect, opinions, task, write
from mtlcore.tour.tour import Tour, loss, overall, row

INTERFERENCE = "Task interference"
RESOURCES = "Resource cost"
EVALUATION = "Evaluation"
DATA = "Data preparation"
FIT = "Over- and underfitting"
TRANSFER = "Transfer"
CONTINUAL = "Continual learning"
ETHICS = "Ethics"
CLEANED = "{unicode: NFC, whitespace: true, duplicates: drop, leakage: drop}"


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
    remedy = ("sharing.own=4", "tasks.disliked.head=classification")
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


@row(
    INTERFERENCE,
    "Curriculum",
    quantity="test loss after training with hard rows, marked as such, that teach nothing",
    better="lower",
)
def curriculum(tour: Tour) -> tuple[float, float]:
    """Easy rows first, by a column, against all rows from the start."""
    easy, hard = opinions(100, 105), opinions(100, 106, noise=0.5)
    rows = [{**r, "level": 0} for r in easy] + [{**r, "level": 1} for r in hard]
    tasks = {
        name: task(tour.folder, name, rows, test=opinions(100, 107), template=template)
        for name, template in (("hard_one", "{{ text }} ="), ("hard_two", "{{ text }} :"))
    }
    recipe = tour.recipe("hard", {"tasks": tasks, "training": {"max_steps": 60}})
    chooser = "{name: curriculum, difficulty: level, start: 0.5, duration: 1.0}"
    remedy = [f"tasks.{name}.rows={chooser}" for name in tasks]
    return tour.mean_of_seeds(recipe, loss), tour.mean_of_seeds(recipe, loss, *remedy)


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


@row(
    RESOURCES,
    "Distributed training",
    quantity="seconds per step of 256 rows, one thread per process",
    better="lower",
)
def distributed(tour: Tour) -> tuple[float, float]:
    """Two processes against one."""
    recipe = opposite_tasks(tour)
    seconds = []
    for name, processes in (("one-process", 1), ("two-processes", 2)):
        tour.shell(
            "torchrun", "--nproc-per-node", str(processes), "-m", "mtlcore.cli", "train", recipe,
            "training.max_steps=12", f"training.per_device_train_batch_size={256 // processes}",
            "training.logging_steps=1", f"training.output_dir={name}",
        )  # fmt: skip
        steps = [line["seconds"] for line in tour.lines(name, "metrics.jsonl")]
        seconds.append(median(steps[2:]))
    return seconds[0], seconds[1]


def people(seed: int) -> list[dict[str, Any]]:
    """Rows of the many, and 12 of the few among 202."""
    return dialect(190, seed, rare=False) + dialect(12, seed + 1, rare=True)


@row(
    RESOURCES,
    "Stratified sampling",
    quantity="accuracy on the critical rows, 6% of the train rows",
    better="higher",
)
def stratified(tour: Tour) -> tuple[float, float]:
    """Every kind of row equally often against rows as they come."""
    rows, tests = people(15), dialect(100, 17, rare=True)
    tasks = {
        name: task(tour.folder, name, rows, test=tests, template=template)
        for name, template in (("kinds_one", "{{ text }} ="), ("kinds_two", "{{ text }} :"))
    }
    recipe = tour.recipe("kinds", {"tasks": tasks})
    chooser = "{name: stratified, by: group, emphasis: 1.0}"
    remedy = [f"tasks.{name}.rows={chooser}" for name in tasks]
    return tour.mean_of_seeds(recipe, overall), tour.mean_of_seeds(recipe, overall, *remedy)


# -- evaluation --------------------------------------------------------------------------------


@row(
    EVALUATION,
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
    EVALUATION,
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
    "Review of outputs",
    quantity="share of wrong answers among the rows that one reads",
    better="higher",
)
def review(tour: Tour) -> tuple[float, float]:
    """The worst rows of a review against any rows of the test split."""
    run = tour.train(noisy_tasks(tour))
    wrong_anywhere = 1 - tour.overall(run)
    lines = [json.loads(line) for line in tour.run("review", run, "--json").splitlines()]
    worst = [line for line in lines if WORST in line["why"]]
    return wrong_anywhere, sum(line["after"] != line["target"] for line in worst) / len(worst)


# -- data --------------------------------------------------------------------------------------


@row(
    DATA,
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
    tune = {"name": "tune", "tasks": ["labelled"], "max_steps": 40}
    domain = {"name": "domain", "tasks": ["corpus"], "max_steps": 300}
    alone = tour.recipe("few", {"tasks": {"labelled": tasks["labelled"]}, "stages": [tune]})
    without = tour.scores(tour.train(alone)).by_task["labelled"].loss
    recipe = tour.recipe("domain", {"tasks": tasks, "stages": [domain, tune]})
    run = tour.train(recipe)
    scores = tour.scores(run)
    return without, scores.by_task["labelled"].loss


@row(
    DATA,
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
    FIT,
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


# -- transfer ----------------------------------------------------------------------------------


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


def plan(tour: Tour) -> str:
    """The plan made from a run of the two camps that measures affinities."""
    run = tour.train(two_camps(tour, monitoring=["affinity"]))
    tour.run("group", run, "--rank", "4", "--out", f"{run}.plan.yaml")
    return f"{run}.plan.yaml"


@row(
    TRANSFER,
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
    TRANSFER,
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
        flags = ("--task", path.name, "--max-steps", "3", "--output-dir", name)
        tour.run("adapt", run, *flags, f"start.nearest={nearest}")
        losses.append(tour.scores(name).by_task["again"].loss)
    return losses[0], losses[1]


# -- ethics ------------------------------------------------------------------------------------


@row(
    ETHICS,
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
    ETHICS,
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
    ETHICS,
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
