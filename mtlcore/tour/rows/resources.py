"""Rows of the tour on what training costs."""

from __future__ import annotations

from mtlcore.tour.cases import dialect, task
from mtlcore.tour.recipes import opposite_tasks, people
from mtlcore.tour.tour import Tour, overall, row

TROUBLE = "Resource cost"


@row(
    TROUBLE,
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
    TROUBLE,
    "Distributed training",
    quantity="seconds of the fastest of ten steps of 256 rows, one thread per process",
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
        seconds.append(min(steps[2:]))  # other work on the machine slows single steps
    return seconds[0], seconds[1]


@row(
    TROUBLE,
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
