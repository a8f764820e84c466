"""The rows of one training step, planned and packed without a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlcore.data.batches import Batch, micro_batches, plan_rows
from mtlcore.errors import RecipeError, UserError
from mtlcore.preview.rows import RowPreview, RowReader, chosen_tasks, row_of
from mtlcore.recipe_components import check_components
from mtlcore.recipe_file import read_recipe
from mtlcore.run import Run, layout_of
from mtlcore.stages import Stage, plan_stages
from mtlcore.start import carry_over

if TYPE_CHECKING:
    from mtlcore.data.example import Example

PLANNING = ("mtlcore_plan_step", "mtlcore_choose_rows", "mtlcore_add_rows")
"""The hooks that decide which rows a step takes."""
LEARNING = ("mtlcore_before_update", "mtlcore_step_end", "mtlcore_evaluate")
"""The hooks by which a component sees how the training goes."""


class ModelNeededError(UserError):
    """Something asked for the model of a run that has none."""


class PlanningRun(Run):
    """A run with tasks and components, and no model: enough to plan its rows."""

    def _load_model(self) -> None:
        """Leave the model out."""

    def note(self, message: str) -> None:
        """Keep what the user should be told, once; who asked for the preview shows it."""
        if message not in self.notes:
            self.notes.append(message)

    def __getattr__(self, name: str) -> Any:
        """Called for what is not there: the model, or what no run has."""
        if name in ("model", "base_fingerprint"):
            raise ModelNeededError(
                "which rows come next depends on the model, and the preview loads none",
                fix="leave --step away to see the rows, or choose another `sampling` or `rows`",
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


@dataclass(frozen=True)
class SegmentPreview:
    """The rows of one task in a micro-batch.

    `tokens` without padding; `labels` are the labelled tokens, or the rows that a head answers;
    `start` and `stop` are places in the flat batch, or rows of the padded one.
    """

    task: str
    row_lengths: tuple[int, ...]
    tokens: int
    labels: int
    start: int
    stop: int


@dataclass(frozen=True)
class BatchPreview:
    """A micro-batch: `shape` is [1, N] if flat, [rows, length] if padded.

    `padding` is the share of its places that hold no token.
    """

    shape: tuple[int, int]
    padding: float
    segments: tuple[SegmentPreview, ...]


@dataclass(frozen=True)
class StepPreview:
    """A training step, from 1, of one process; `steps` are those of the whole run."""

    step: int
    steps: int
    stage: str
    flat: bool
    micro_batches: tuple[BatchPreview, ...]
    rows: tuple[RowPreview, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def preview_step(
    recipe: str | Path,
    overrides: Iterable[str] = (),
    *,
    step: int,
    tasks: Sequence[str] | None = None,
    rows: int = 3,
) -> StepPreview:
    """What a step (from 1) trains on, with up to `rows` decoded rows of all or some tasks.

    The steps before it are planned too, as the rows drawn so far decide what comes next. UserError
    if the run has fewer steps, or if a component needs the model to plan.
    """
    read = read_recipe(recipe, overrides)
    names = chosen_tasks(read.recipe, tasks)
    with read.locating_errors():
        run = PlanningRun(read.recipe, read.output_dir, splits=("train",))
        for note in read.notes:
            run.note(note)
        _check(run)
        if run.recipe.start is not None:
            carry_over(run)
        stages = plan_stages(run)
        planned = _plan(run, stages, step)
    _note_what_may_differ(run, step)
    flat = read.recipe.model.attn_implementation != "padded"
    batches = micro_batches(run, planned, flat=flat)
    shown = _decoded(run, [row for batch in batches for row in batch.examples], names, rows)
    return StepPreview(
        step=step,
        steps=sum(stage.steps for stage in stages),
        stage=run.stage,
        flat=flat,
        micro_batches=tuple(_batch(run, batch) for batch in batches),
        rows=tuple(shown),
        notes=tuple(run.notes),
    )


def _check(run: Run) -> None:
    layout = layout_of(run.recipe)
    errors, _ = check_components(run.plugins, run.components, run.recipe, run.tasks, layout)
    if errors:
        raise RecipeError(errors)


def _plan(run: Run, stages: Sequence[Stage], step: int) -> list[Example]:
    """The examples of a step, after planning those before it as the trainer does."""
    total = sum(stage.steps for stage in stages)
    if not 1 <= step <= total:
        raise UserError(
            f"the run has no step {step}", where=f"--step {step}", fix=f"give one of 1 to {total}"
        )
    _call(run, "mtlcore_run_start")
    for stage in stages:
        run.stage, run.active = stage.name, list(stage.active)
        _call(run, "mtlcore_stage_start", stage=stage.name)
        for _ in range(stage.steps):
            examples = plan_rows(run, run.step)
            run.step += 1
            if run.step == step:
                return examples
        _call(run, "mtlcore_stage_end", stage=stage.name)
    raise AssertionError("the steps of the stages are those of the run")


def _planners(run: Run) -> list[object]:
    """What answers one of the hooks that choose rows."""
    hooks = (getattr(run.plugins.hook, name) for name in PLANNING)
    found = {id(impl.plugin): impl.plugin for hook in hooks for impl in hook.get_hookimpls()}
    return list(found.values())


def _call(run: Run, hook: str, **arguments: Any) -> None:
    """Call a hook of those that choose rows; the others may need the model."""
    run.plugins.only(hook, _planners(run))(run=run, **arguments)


def _note_what_may_differ(run: Run, step: int) -> None:
    """Say what the plan cannot know."""
    if step == 1:
        return
    for planner in _planners(run):
        if any(callable(getattr(planner, hook, None)) for hook in LEARNING):
            name = getattr(planner, "name", type(planner).__name__)
            run.note(f"{name!r} follows the training: in a real run this step may differ")
    patience = [task.recipe.early_stopping_patience for task in run.tasks]
    if any([run.recipe.training.early_stopping_patience, *patience]):
        run.note("planned as if nothing stops early")


def _batch(run: Run, batch: Batch) -> BatchPreview:
    lengths = batch.row_lengths or batch.true_lengths or ()
    height, width = batch.input_ids.shape
    return BatchPreview(
        shape=(height, width),
        padding=1 - sum(lengths) / (height * width),
        segments=tuple(_segments(run, batch, lengths)),
    )


def _segments(run: Run, batch: Batch, lengths: Sequence[int]) -> Iterator[SegmentPreview]:
    for task, start, stop in batch.rows:
        flat = batch.row_lengths is not None
        yield SegmentPreview(
            task=run.tasks[task].name,
            row_lengths=tuple(lengths[start:stop]),
            tokens=batch.tokens[task],
            labels=batch.counts[task],
            start=sum(lengths[:start]) if flat else start,
            stop=sum(lengths[:stop]) if flat else stop,
        )


def _decoded(
    run: Run, examples: Sequence[Example], names: Sequence[str], rows: int
) -> Iterator[RowPreview]:
    """Up to `rows` rows of each task, read again so that what was cut away is known."""
    for name in names:
        chosen = [example for example in examples if example.task == name][:rows]
        if not chosen:
            continue
        reader = RowReader(run.recipe, name, run.tokenizer, run.plugins)
        own = set(reader.numbers)
        for example in chosen:
            found = reader.row(example.row) if example.row in own else None
            if found is None or found.input_ids != example.input_ids:  # made by a component
                found = row_of(example, "train", "added", run.tokenizer)
            yield found
