"""The text of a recipe with a comment for what was guessed and for what people change."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mtlcore.terminal import plain
from mtlcore.yaml_text import yaml_value

if TYPE_CHECKING:
    from mtlcore.init.guess import TaskGuess, Trial
    from mtlcore.recipe import SourceRecipe

LENGTHS = (128, 256, 512, 1024, 2048)
ANSWERS = (8, 16, 32, 64, 128, 256)
ROOM = 1.25
"""Answers may be so much longer than those that were tried."""
ROWS_PER_STEP = 16
EPOCHS = 3
UNLIKE_SIZES = 10
"""From this ratio of the tasks' sizes on, the smaller tasks are drawn more often."""
HEAD = """\
# Written by `mtlcore init`: lines with "guessed" are guesses, look at them first.
#   mtlcore preview {name}    rows as the model gets them
#   mtlcore check {name}      all rows, before any training
#   mtlcore train {name}      any key can be set there too: training.seed=1
# All keys with their defaults: docs/recipe.md, or `mtlcore schema`.
"""


@dataclass(frozen=True)
class Plan:
    """What a recipe is written for: its file, the model, the tasks, and how tokens were counted."""

    path: Path
    model: str
    model_given: bool
    tasks: Sequence[TaskGuess]
    own_tokenizer: bool
    """Whether the lengths are those of the model's own tokenizer."""

    @property
    def known(self) -> list[TaskGuess]:
        """The tasks that some format reads."""
        return [task for task in self.tasks if task.best is not None]


def recipe_text(plan: Plan) -> str:
    """The whole file, UTF-8 text that `read_recipe` reads."""
    lines = [
        HEAD.format(name=_comment(plan.path.name)),
        *_model(plan),
        "",
        "tasks:",
        *(line for task in plan.tasks for line in _task(plan, task)),
        *_method(plan),
        *_training(plan),
    ]
    return "\n".join(lines) + "\n"


def _model(plan: Plan) -> Iterator[str]:
    yield "model:"
    why = "a name on the hub, or a folder made by save_pretrained"
    if not plan.model_given:
        why = f"guessed: no --model was given; {why}"
    yield f"  name_or_path: {yaml_value(_place(plan, plan.model))}  # {why}"


# -- tasks -------------------------------------------------------------------------------------


def _task(plan: Plan, task: TaskGuess) -> Iterator[str]:
    if task.best is None:
        yield f"  # {task.files.name}: left out, because {_comment(task.problem)}"
        yield "  # Complete it, and take the signs away:"
        yield from (f"  # {line}" for line in _unknown(plan, task))
        yield ""
        return
    best = task.best
    rows = ", ".join(f"{split} {count}" for split, count in task.rows.items())
    yield f"  {task.files.name}:  # rows: {rows}"
    for split, source in task.files.sources.items():
        yield f"    {split}: {_source(plan, source)}"
    if task.split:
        yield f"    split: {yaml_value(task.split)}  # {_split_comment(task)}"
    yield f"    # guessed: {_comment(best.guess.why)}"
    yield f"    format: {yaml_value(best.spec())}"
    if best.guess.columns:
        yield (
            f"    columns: {yaml_value(best.guess.columns)}"
            "  # the format's name of a column: the name in the file"
        )
    written = str(best.guess.options)
    if more := [c for c in task.columns if c not in best.columns and c not in written]:
        yield f"    # other columns: {_comment(', '.join(more))}"
    for other in task.others:
        yield f"    # or {_comment(_short(other))}: {_comment(other.guess.why)}"
    yield from _scores(best)
    bad = best.tried - len(best.lengths)
    if bad or task.bad:
        first = task.bad[0] if task.bad else best.problem
        yield f"    # bad rows, the first of them: {_comment(first)}"
        yield "    # on_bad_row: skip  # or warn; without it a bad row is an error"
    yield ""


def _short(trial: Trial) -> str:
    text = f"format: {yaml_value(trial.spec())}"
    return text + (f", columns: {yaml_value(trial.guess.columns)}" if trial.guess.columns else "")


def _unknown(plan: Plan, task: TaskGuess) -> Iterator[str]:
    yield f"{task.files.name}:"
    for split, source in task.files.sources.items():
        yield f"  {split}: {_source(plan, source)}"
    yield "  format: ...  # mtlcore plugins list"
    yield f"  columns: {{...}}  # found: {_comment(', '.join(task.columns))}"


def _source(plan: Plan, source: SourceRecipe) -> str:
    return yaml_value(source.model_copy(update={"path": _place(plan, source.path)}).model_dump())


def _place(plan: Plan, path: str) -> str:
    """A path as the recipe names it: relative ones from its own folder."""
    if not Path(path).exists() or Path(path).is_absolute():
        return path
    relative = os.path.relpath(path, plan.path.parent)
    return os.path.abspath(path) if relative.startswith("~") else relative


def _split_comment(task: TaskGuess) -> str:
    missing = " and ".join(task.split)
    if not any(task.split.values()):
        return f"too few rows to hold {missing} rows out"
    return f"no file for {missing}: these shares of the train rows are held out"


def _scores(best: Trial) -> Iterator[str]:
    if not best.guess.metrics:
        yield "    metrics: []  # the loss alone; `mtlcore plugins list` names the metrics"
        return
    yield f"    metrics: {yaml_value(list(best.guess.metrics))}  # the first is the primary one"
    if best.answers:
        longest = max(best.answers)
        limit = next((n for n in ANSWERS if n >= ROOM * longest), ANSWERS[-1])
        yield (
            f"    generation: {{max_new_tokens: {limit}}}"
            f"  # guessed: the longest answer tried has {longest} tokens"
        )


# -- method and training -----------------------------------------------------------------------


def _method(plan: Plan) -> Iterator[str]:
    yield "lora: {r: 16, lora_alpha: 32}  # rank and scale of the adapters"
    sizes = [task.rows["train"] for task in plan.known]
    if len(sizes) < 2:
        return
    yield (
        "sharing: {shared: 16, own: 8}"
        "  # ranks: one adapter for all tasks, and one for each task alone"
    )
    yield (
        "weighting: equal"
        "  # how the tasks' gradients become one update; pcgrad and upgrad solve conflicts"
    )
    if max(sizes) >= UNLIKE_SIZES * min(sizes):
        yield (
            "sampling: {name: temperature, temperature: 2.0}"
            f"  # guessed: tasks have from {min(sizes)} to {max(sizes)} rows; small ones come more "
            "often than by their size"
        )
    else:
        yield "sampling: proportional  # rows of each task by its size; equal: the same for all"


def _training(plan: Plan) -> Iterator[str]:
    lengths = [n for task in plan.known if task.best is not None for n in task.best.lengths]
    longest = max(lengths)
    limit = next((n for n in LENGTHS if n >= longest), LENGTHS[-1])
    counted = "" if plan.own_tokenizer else " (by a small tokenizer: the model's may need fewer)"
    total = sum(task.rows["train"] * (1 - sum(task.split.values())) for task in plan.known)
    steps = math.ceil(total * EPOCHS / ROWS_PER_STEP)
    every = max(1, steps // 5)
    scored = any("eval" in task.files.sources or task.split.get("eval") for task in plan.known)
    values: list[tuple[str, object, str]] = [
        ("learning_rate", "2e-4", "usual for adapters; a larger model takes a smaller one"),
        ("num_train_epochs", EPOCHS, f"about {steps} steps; or give max_steps"),
        ("per_device_train_batch_size", ROWS_PER_STEP, "rows of all tasks in one pass"),
        ("gradient_accumulation_steps", 1, "passes per step: more rows where memory is short"),
        ("max_length", limit, f"guessed: the longest row tried has {longest} tokens{counted}"),
        ("warmup_ratio", 0.03, "share of the steps in which the learning rate rises"),
        ("bf16", "false", "true on a GPU that computes in bfloat16: half the memory"),
    ]
    if scored:
        values.append(("eval_steps", every, "guessed: score the eval rows five times in the run"))
    values += [
        ("save_steps", every, "a checkpoint to go on from with --resume"),
        ("seed", 0, "of everything that is drawn"),
    ]
    yield ""
    yield "training:"
    yield from (f"  {key}: {value}  # {why}" for key, value, why in values)


def _comment(text: str) -> str:
    """Text of the data in a comment: one line, nothing that a terminal or YAML would obey."""
    return plain(text).replace("\n", "\\n")
