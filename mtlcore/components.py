"""What a plugin derives from: one base class for each kind of component.

A component is a class with a `name`; its options are the typed keyword arguments of its
constructor, and its hooks are methods named `mtlcore_*`, which the base class marks. This file
imports no torch, so that plugins can be listed quickly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import FunctionType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt

from mtlcore.errors import Problem, UserError
from mtlcore.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from mtlcore.data.example import Example
    from mtlcore.data.tasks import Task
    from mtlcore.evaluation.predictions import Prediction
    from mtlcore.recipe import Recipe, TaskRecipe
    from mtlcore.run import Run

# Types for options: the recipe is checked against them, and the schema shows their ranges.
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
Count = Annotated[int, Ge(1)]
Scope = Literal["model", "layer", "factor"]
Needs = Literal["nothing", "losses", "gramian", "rows"]
"""What a component reads of a step; task gradients are kept only if one needs G or J."""


@dataclass(frozen=True)
class Penalty:
    """A term added to what is minimised, and what it acts on.

    on "weights": `value` is a scalar, differentiable in the trainable weights; its gradient is
        added after the tasks were combined.
    on "task": `value` [T] holds sums over the labelled tokens of each task in this batch; they are
        added to the sums of the token losses.
    on "batch": `value` is a scalar of this batch; it has a backward of its own.
    """

    name: str
    on: Literal["weights", "task", "batch"]
    value: Tensor


@dataclass(frozen=True)
class Finding:
    """One result of an audit: what was measured, where, and whether it is beyond its limit.

    `limit` is what it was compared with; None is no limit, so that it could not fail.
    """

    name: str
    task: str
    value: float
    message: str
    failed: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)
    limit: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values; a value that is no number, as with too few rows, is None."""
        value = self.value if math.isfinite(self.value) else None
        return {**vars(self), "value": value, "details": dict(self.details)}


@dataclass(frozen=True)
class Chart:
    """A picture of the report.

    "lines" and "points": `series` by name, each a list of (x, y).
    "bars": `series` by name, each a list of (position, value); `labels` names the positions.
    "heatmap": `values` [rows, columns] with `labels` for the rows and `columns` for the columns;
        None is a cell without a value.
    """

    kind: Literal["lines", "points", "bars", "heatmap"]
    title: str
    series: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    labels: Sequence[str] = ()
    columns: Sequence[str] = ()
    values: Sequence[Sequence[float | None]] = ()
    x_label: str = ""
    y_label: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the report: a title, paragraphs of plain text, a table and charts.

    `table` is column -> values. Sections with one `topic` stand together under it as a heading.
    Everything is text or numbers: the page escapes it.
    """

    title: str
    text: tuple[str, ...] = ()
    table: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    charts: tuple[Chart, ...] = ()
    topic: str = ""


CONFLICTS = "Conflicts and affinities of tasks"
"""The topic of sections on tasks that help or hinder each other; the page's own maps are in it."""


class Component:
    """Base of everything that a recipe names.

    The first line of a subclass's docstring is its summary in `mtlcore plugins list`.
    """

    kind: ClassVar[str] = ""
    name: str = ""
    paper: ClassVar[str] = ""  # title (venue), URL
    needs: Needs = "nothing"  # what it reads of the gradients of a step
    needs_pooled: ClassVar[bool] = False  # whether it reads `outputs.pooled`
    carries_over: ClassVar[bool] = False  # whether a run that starts from another takes its state
    common_options: ClassVar[type | None] = None  # a dataclass of options that all of a kind have

    def __init_subclass__(cls, **options: Any) -> None:
        """Mark every method named `mtlcore_*`: without its marker an override would be lost."""
        super().__init_subclass__(**options)
        for attribute, value in vars(cls).items():
            is_hook = attribute.startswith("mtlcore_") and isinstance(value, FunctionType)
            if is_hook and not hasattr(value, "mtlcore_impl"):
                hookimpl(value)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: tensors and JSON values by name."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        if state:
            raise ValueError(
                f"{self.kind} {self.name!r} keeps no state, found {', '.join(sorted(state))}"
            )


def _floats(values: Any) -> list[float] | None:
    """The values as numbers; None if they are none."""
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError):
        return None


def rows_per_step(run: Run) -> int:
    """Rows of one optimizer step: all its micro-batches on all ranks."""
    from mtlcore.distributed import world_size

    training = run.recipe.training
    per_rank = training.per_device_train_batch_size * training.gradient_accumulation_steps
    return per_rank * world_size()


@dataclass(frozen=True, kw_only=True)
class WeightSchedule:
    """What is made of a weighting's answers over the steps: options of every weighting.

    warmup: so many steps at first in which every task has the weight 1/T and nothing is asked.
    every: then the weighting is asked in every so many steps. Between them its last weights are
        kept, and no task gradients are taken for it; a task without a weight yet is asked for.
    ema: share of the past in a running mean of the weights, task by task (0: none).
    normalize: "sum_to_one" divides the weights by their sum (times T'/T where tasks are absent),
        before the running mean; weights whose sum is not above 0 are left as they are.
    """

    warmup: Annotated[int, Ge(0)] = 0
    every: Count = 1
    ema: Annotated[float, Ge(0), Lt(1)] = 0.0
    normalize: Literal["none", "sum_to_one"] = "none"


class Weighting(Component):
    """Gives each task present in the step its weight: implement `mtlcore_weigh_tasks`."""

    kind = "weighting"
    common_options = WeightSchedule
    needs: Needs = "gramian"
    native_scale: ClassVar[str] = ""  # what the weights sum to, in words
    gives: Literal["weights", "direction"] = "weights"
    # What `mtlcore.testing.check_weighting` holds it to:
    symmetric: ClassVar[bool] = True  # tasks in another order have the same weights
    homogeneity: float | None = None  # k, if J and l times c give weights times c^k
    undoes_scale: bool = False  # a loss in other units turns no update
    scope: Scope = "model"  # whether weights are [T] for the model, or [S, T] by layer or factor
    schedule: WeightSchedule = WeightSchedule()  # set by the framework
    inner: Weighting | None = None  # the weighting that its option `main` names
    weighs_auxiliary: bool = True

    def set_inner(self, inner: Weighting) -> None:
        """Take the weighting that the option `main` names; called once, before the run."""
        self.inner = inner

    def inner_places(self, run: Run, present: Sequence[int]) -> Sequence[int]:
        """Which of the present tasks, as places in 0 .. T'-1, the inner weighting is given."""
        return range(len(present))

    def loss_weight_warnings(self, recipe: Recipe) -> list[Problem]:
        """Warnings of loss weights that do not tell one task from another; no hook to override."""
        given = {name: task.loss_weight for name, task in recipe.tasks.items() if self.weighs(task)}
        if not self.undoes_scale or len({*given.values()}) == 1:
            return []
        odd = next(name for name, value in given.items() if value != 1)
        return [
            Problem(
                f"tasks.{odd}.loss_weight",
                "loss weights that differ do not turn the update of shared weights: weighting "
                f"{self.name} undoes the scale of every loss",
                "remove them, or use another weighting (fixed, stch)",
            )
        ]

    def weigh_main_tasks_alone(self) -> None:
        """Take it that it will never be asked for a weight of an auxiliary task."""
        self.weighs_auxiliary = False

    def weighs(self, task: TaskRecipe) -> bool:
        """Whether it is ever asked for a weight of this task."""
        return self.weighs_auxiliary or task.role == "main"

    def weighed(self, run: Run) -> list[int]:
        """Indices of the tasks that it weighs, absent ones too: T in a formula is their number."""
        return [task.index for task in run.tasks if self.weighs(task.recipe)]

    def needs_at(self, step: int, present: Sequence[int]) -> Needs:
        """What it reads in a step with these tasks, which the schedule may make less."""
        return self.needs


class Sampler(Component):
    """Says how many rows of each task a step takes: implement `shares`."""

    kind = "sampling"

    def shares(self, run: Run, step: int) -> list[float]:
        """The expected share of each task in the step's rows: [T], not negative, sum 1."""
        raise NotImplementedError(f"sampling {self.name!r} must implement `shares`")

    def mtlcore_plan_step(self, run: Run, step: int) -> list[int]:
        """Draw the counts by systematic sampling.

        Each count is its expectation rounded up or down, and right on average over the steps.
        """
        import torch

        shares = self.expected_shares(run, step)
        total = rows_per_step(run)
        generator = run.generator(step, "sampling")
        offset = torch.rand((), generator=generator, dtype=torch.float64).item()
        counts, reached, expected = [], 0, 0.0
        for share in shares:
            expected += total * share
            # Points stand at offset, offset + 1, ...: those below `expected` are taken so far.
            taken = max(reached, math.ceil(expected - offset))
            counts.append(taken - reached)
            reached = taken
        # The sum of the shares may miss 1 by rounding: the last task with a share gets the rest.
        last = max(index for index, share in enumerate(shares) if share > 0)
        counts[last] += total - reached
        return counts

    def expected_shares(self, run: Run, step: int) -> list[float]:
        """What `shares` gives, checked, with the tasks that are not trained now left out: [T]."""
        given = self.shares(run, step)
        shares = _floats(given)
        if (
            shares is None
            or len(shares) != len(run.tasks)
            or not all(share >= 0 for share in shares)
            or not abs(sum(shares) - 1) < 1e-6
        ):
            raise UserError(
                f"`shares` of sampling {self.name!r} gave {given!r} at step {step}",
                where="sampling",
                fix=f"return a list of {len(run.tasks)} numbers, one for each task in the order of "
                "run.tasks, none below 0, with sum 1",
            )
        return self.trained_shares(run, shares)

    def planned_shares(self, run: Run) -> list[float]:
        """The shares that a run is planned by before it begins: its epochs and rows by task, [T].

        Those of step 0; a sampler whose shares change over the run gives those of most of it.
        """
        return self.expected_shares(run, 0)

    def trained_shares(self, run: Run, shares: Sequence[float]) -> list[float]:
        """[T] without the tasks of other stages; those of this one share the rows as before.

        No task has more than its `max_share`, as long as another can have the rest.
        """
        pairs = zip(shares, run.tasks, strict=True)
        trained = [share * run.is_active(task) for share, task in pairs]
        if not sum(trained):
            raise ValueError(f"sampling {self.name!r} has no share for any task of this stage")
        limits = [task.recipe.max_share for task in run.tasks]
        return within([share / sum(trained) for share in trained], limits)


def within(shares: Sequence[float], limits: Sequence[float]) -> list[float]:
    """[T] shares of sum 1, none above its limit; what is over goes to the others as they share.

    Where every share is at its limit they go by their limits instead.
    """
    found, full = list(shares), set[int]()
    while over := {t for t, share in enumerate(found) if share > limits[t]} - full:
        full |= over
        taken = sum(limits[t] for t in full)
        free = sum(share for t, share in enumerate(shares) if t not in full)
        if not free:
            return [limits[t] / taken * (t in full) for t in range(len(shares))]
        found = [
            limits[t] if t in full else share * (1 - taken) / free for t, share in enumerate(shares)
        ]
    return found


class RowChooser(Component):
    """Says which rows of its tasks a step takes: implement `choose`."""

    kind = "rows"
    tasks: tuple[str, ...] = ()  # names of the tasks it serves; set by the framework

    def choose(self, run: Run, step: int, task: Task, count: int) -> list[int]:
        """`count` row ids in 0 .. len(task.train) - 1."""
        raise NotImplementedError(f"rows {self.name!r} must implement `choose`")

    def mtlcore_choose_rows(self, run: Run, step: int, task: Task, count: int) -> list[int] | None:
        """Choose for the tasks of this chooser, pass on the others."""
        return self.choose(run, step, task, count) if task.name in self.tasks else None


class Regularizer(Component):
    """Adds penalties to what is minimised: implement `mtlcore_penalties`."""

    kind = "regularization"
    acts_on: ClassVar[Literal["weights", "task", "batch"]] = "weights"


class Evaluator(Component):
    """Scores the predictions of its tasks: implement `score`."""

    kind = "evaluation"
    tasks: tuple[str, ...] = ()  # names of the tasks it scores; set by the framework
    greater_is_better: ClassVar[bool] = True
    best: ClassVar[float] = 1.0  # the score of perfect predictions
    inputs: ClassVar[Literal["output", "label"]] = "output"  # generated text, or the chosen option

    def score(self, predictions: Sequence[Prediction]) -> float:
        """One number for all predictions of a task."""
        raise NotImplementedError(f"evaluation {self.name!r} must implement `score`")

    def normalized(self, score: float) -> float:
        """The score mapped to 0 (worst) .. 1 (best), for the overall score of a run.

        Where more is better: its share of `best`. Where less is better: 1 / (1 + distance to
        `best`). A metric with another range overrides this.
        """
        if self.greater_is_better:
            return score / self.best
        return 1 / (1 + abs(score - self.best))

    def row_scores(self, predictions: Sequence[Prediction]) -> list[float] | None:
        """The score of each row by itself, where `score` is their mean; else None."""
        return None

    def resample(self, predictions: Sequence[Prediction], draws: Tensor) -> list[float]:
        """The scores of several draws of the rows, for intervals.

        draws: [draws, rows] row numbers, with repetitions. A metric that is a function of sums
        over the rows overrides this: to score each draw anew is slow.
        """
        import torch

        rows = self.row_scores(predictions)
        if rows is not None:
            means = torch.tensor(rows, dtype=torch.float64)[draws].mean(1)
            return [float(mean) for mean in means]
        return [float(self.score([predictions[row] for row in draw])) for draw in draws.tolist()]

    def details(self) -> dict[str, Any]:
        """What someone needs to compare the score with another tool's: library, signature."""
        return {}

    def require(self, predictions: Sequence[Prediction]) -> None:
        """Refuse what cannot be scored: no predictions, or rows without a label."""
        if not predictions:
            raise UserError(f"{self.name} has no predictions to score")
        if self.inputs != "label":
            return
        for prediction in predictions:
            if prediction.label is None:
                raise UserError(
                    f"{self.name} compares class labels, and row {prediction.row} has none",
                    where=f"tasks.{prediction.task}.metrics",
                    fix="use a metric on text (exact_match), or a format with options",
                )

    def mtlcore_check(self, tasks: Sequence[Task]) -> list[Problem]:
        """Refuse a metric on labels for a task whose rows have none."""
        for task in tasks:
            wanted = task.name in self.tasks and self.inputs == "label"
            if wanted and any(row.label is None for row in task.train):
                raise UserError(
                    f"{self.name} compares class labels, and the rows of {task.name!r} have none",
                    where=f"tasks.{task.name}.metrics",
                    fix="use a metric on text (exact_match), or a format with options",
                )
        return []

    def mtlcore_evaluate(
        self, run: Run, task: Task, predictions: Sequence[Prediction]
    ) -> dict[str, float] | None:
        """Score the tasks of this evaluator, pass on the others."""
        if task.name not in self.tasks:
            return None
        self.require(predictions)
        return {self.name: float(self.score(predictions))}


@dataclass(frozen=True)
class FormatGuess:
    """A way to read rows that nobody has described: what `mtlcore init` writes of a task.

    score: how likely it is, from 0 to 1; the guesses of all formats are compared.
    why: what it goes by, for the reader of the recipe.
    options, columns, metrics: those keys of the task.
    """

    score: float
    why: str
    options: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    metrics: Sequence[str] = ()


class Format(Component):
    """Turns a raw row into an `Example`: implement `example`, and `question` for new rows."""

    kind = "format"
    columns: Mapping[str, str] = {}  # required column -> what it holds
    label_column: str | None = None  # the column whose values stratify a split, if any

    def prepare(self, rows: Sequence[dict[str, Any]]) -> None:
        """Read the train rows once before the first example, e.g. to collect the label set.

        `state_dict` gives what it took from them, in JSON values: a loaded run hands that to
        `load_state_dict` and does not call `prepare`.
        """

    def example(self, row: dict[str, Any], *, task: str, index: int, tokenizer: Any) -> Example:
        """The tokens and labels of one row; raises `RowError` for a bad one."""
        raise NotImplementedError(f"format {self.name!r} must implement `example`")

    def question(self, row: dict[str, Any], *, task: str, index: int, tokenizer: Any) -> Example:
        """A new row, whose answer is not known: the same prompt and options, nothing to learn.

        This default takes the answer off what `example` makes, so its rows must bring one.
        """
        from mtlcore.data.example import without_answer

        return without_answer(self.example(row, task=task, index=index, tokenizer=tokenizer))

    @classmethod
    def guess(cls, rows: Sequence[Mapping[str, Any]]) -> FormatGuess | None:
        """How it would read these rows of a file; None if it cannot.

        This default reads them as they are, if they have all of its columns.
        """
        try:
            needed = cls().columns
        except TypeError:  # an option without a default: nothing to guess it from
            return None
        found = {name for row in rows for name in row}
        if not needed or not found.issuperset(needed):
            return None
        return FormatGuess(0.5, f"columns {', '.join(map(repr, needed))}")

    @property
    def reads_train_rows(self) -> bool:
        """Whether `prepare` must see the train rows before a first row can be read."""
        return type(self).prepare is not Format.prepare


class Aggregator(Component):
    """Makes one number of the tasks' primary scores: implement `aggregate`."""

    kind = "overall"

    def aggregate(self, values: Mapping[str, float]) -> float:
        """Task name -> score in 0 (worst) .. 1 (best); the result lies there too."""
        raise NotImplementedError(f"overall {self.name!r} must implement `aggregate`")


class Replay(Component):
    """Keeps rows and trains on them again: implement `mtlcore_add_rows` and `mtlcore_stage_end`.

    An added row keeps the name of its task. What is kept is the component's state.
    """

    kind = "replay"


class Monitor(Component):
    """Measures the tasks while they are trained, and changes nothing.

    Implement `mtlcore_before_update` (gradients) or `mtlcore_step_end` (the step's record), and
    `mtlcore_report`.
    """

    kind = "monitoring"


class Auditor(Component):
    """Looks for bias and other faults in predictions: implement `audit`.

    every_n_steps: also audit the eval split every so many steps; at the end it is always audited.
    fail_above: a finding beyond it is a failure: the run is kept, and the command ends with 3.
    Both are options of the subclass's constructor if it offers them.
    """

    kind = "auditing"
    every_n_steps: int | None = None
    fail_above: float | None = None

    def audit(self, run: Run, predictions: Mapping[str, Sequence[Prediction]]) -> list[Finding]:
        """Findings on the predictions of all tasks (task name -> predictions)."""
        raise NotImplementedError(f"auditing {self.name!r} must implement `audit`")

    def mtlcore_audit(
        self, run: Run, predictions: Mapping[str, Sequence[Prediction]]
    ) -> list[Finding]:
        """What `audit` finds."""
        return self.audit(run, predictions)
