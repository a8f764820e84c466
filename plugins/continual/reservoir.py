"""A small memory of rows of earlier tasks, mixed into later steps."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import torch
from annotated_types import Gt, Le

from mtlcore.components import Count, Replay, Section
from mtlcore.data.example import Example
from mtlcore.errors import UserError
from mtlcore.stages import tasks_of
from mtlcore.start import trained_tasks

if TYPE_CHECKING:
    from mtlcore.data.tasks import Task
    from mtlcore.errors import Problem
    from mtlcore.recipe import Recipe
    from mtlcore.run import Run


class Reservoir(Replay):
    """Train on a few kept rows of earlier tasks again, beside the rows of the stage (replay).

    Experience Replay for Continual Learning (NeurIPS 2019), https://arxiv.org/abs/1811.11682; the
    memory is that of reservoir sampling (Vitter, Random Sampling with a Reservoir, ACM TOMS 1985,
    https://doi.org/10.1145/3147.3165).

    At the end of a stage the memory takes rows of its tasks. A reservoir over the train rows of a
    task holds, in law, a uniform draw without replacement, so that is what is drawn; when more
    tasks come, those kept before are thinned out the same way.

    rows: 200 rows in all, shared out evenly over the tasks; what a small task leaves goes to the
        others.
    share: 0.25, the rows that are added to a step, per row that it has without them: 16 rows
        become 20. Fractions are rounded up or down at random, right on average. They are drawn,
        none twice in a step, from the rows of tasks that the stage does not train, and keep the
        name of their task: it has its own row of J, its own loss and its weight.

    The memory holds the rows' columns and tokens; it is saved with the run, and a run that starts
    from it (`mtlcore adapt`) has it. If that kept none, it is filled from the train rows of the
    tasks that no stage trains. A memory that was changed after it was saved is refused. Draws
    depend on the seed and the step alone.
    """

    name = "reservoir"
    paper = (
        "Experience Replay for Continual Learning (NeurIPS 2019), https://arxiv.org/abs/1811.11682"
    )
    carries_over = True

    def __init__(self, *, rows: Count = 200, share: Annotated[float, Gt(0), Le(1)] = 0.25) -> None:
        self.rows, self.share = rows, share
        self.memory: dict[str, list[Example]] = {}

    def mtlcore_check(self, recipe: Recipe) -> list[Problem]:
        """Refuse a budget that is too small, and a memory of other tasks."""
        names = list(recipe.tasks)
        if self.rows < len(names):
            raise UserError(
                f"a memory of {self.rows} rows cannot hold a row of each of {len(names)} tasks",
                where="replay.rows",
                fix=f"give it {len(names)} rows or more",
            )
        for name in self.memory:
            if name not in names:
                raise UserError(
                    f"the replay memory holds rows of a task {name!r} that the recipe lacks",
                    where="replay",
                    fix="keep the tasks of the earlier run; a stage need not train them",
                )
        return []

    def mtlcore_run_start(self, run: Run) -> None:
        """In a run that starts from one without a memory, fill it."""
        trained = trained_tasks(run.recipe)
        missing = [t for t in run.tasks if t.name not in trained and t.name not in self.memory]
        if run.recipe.start is None:
            if len(run.recipe.stages) < 2:
                run.note(
                    f"{self.name} adds no rows in a run of one stage; what it keeps at the end "
                    "serves a run that starts from this one"
                )
        elif missing:
            run.note(
                f"{self.name}: the start run kept no rows of "
                f"{', '.join(task.name for task in missing)}; they are drawn now"
            )
            self._remember(run, missing)
        elif sum(map(len, self.memory.values())) > self.rows:
            self._remember(run, [])

    def mtlcore_stage_end(self, run: Run, stage: str) -> None:
        """Keep rows of the stage's tasks."""
        self._remember(run, tasks_of(run, stage))

    def _remember(self, run: Run, tasks: Sequence[Task]) -> None:
        """Fill the memory anew: from the train rows of `tasks`, and what is kept of the others."""
        choices: dict[str, Sequence[Example]] = {**self.memory}
        choices |= {task.name: list(task.train) for task in tasks}
        counts = quotas(self.rows, {name: len(choice) for name, choice in choices.items()})
        kept = {}
        for name, choice in choices.items():
            generator = run.generator(run.step, self.name, "keep", name)
            drawn = torch.randperm(len(choice), generator=generator)[: counts[name]]
            kept[name] = [choice[row] for row in drawn.sort().values.tolist()]
        self.memory = {task.name: kept[task.name] for task in run.tasks if task.name in kept}

    def mtlcore_add_rows(self, run: Run, step: int, rows: Sequence[Example]) -> list[Example]:
        """Rows of tasks that the stage does not train."""
        trained = {task.name for task in tasks_of(run, run.stage)}
        pool = [row for name, kept in self.memory.items() if name not in trained for row in kept]
        if not pool:
            return []
        generator = run.generator(step, self.name, "replay")
        place = torch.rand((), generator=generator, dtype=torch.float64).item()
        count = math.floor(self.share * len(rows) + place)
        return [pool[i] for i in torch.randperm(len(pool), generator=generator)[:count].tolist()]

    def mtlcore_report(self, run: Run) -> list[Section]:
        """How many rows are kept of each task."""
        if not self.memory:
            return []
        return [
            Section(
                "Replay memory",
                text=(
                    f"Up to {self.rows} rows; {self.share:g} replayed rows per row of a step, from "
                    "tasks that its stage does not train.",
                ),
                table={
                    "task": list(self.memory),
                    "rows kept": [len(kept) for kept in self.memory.values()],
                },
            )
        ]

    def state_dict(self) -> dict[str, Any]:
        """The memory as JSON values, and the SHA-256 of its content."""
        if not self.memory:
            return {}
        memory = {name: [_to_json(row) for row in kept] for name, kept in self.memory.items()}
        return {"memory": memory, "sha256": _digest(memory)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the memory back if it is what was saved."""
        memory = state.get("memory", {})
        if memory and _digest(memory) != state.get("sha256"):
            raise UserError(
                "the replay memory is not what the run had saved: its rows do not fit their "
                "SHA-256, so it was changed or damaged",
                where="replay",
                fix="restore state.json of the checkpoint, or name another one: --resume FOLDER",
            )
        self.memory = {name: [_from_json(row) for row in kept] for name, kept in memory.items()}


def quotas(budget: int, available: Mapping[str, int]) -> dict[str, int]:
    """Share a budget of rows out evenly; what a task cannot fill goes to the larger ones."""
    counts: dict[str, int] = {}
    for done, name in enumerate(sorted(available, key=available.__getitem__)):
        counts[name] = min(available[name], budget // (len(available) - done))
        budget -= counts[name]
    return counts


def _to_json(row: Example) -> dict[str, Any]:
    """As it comes back from a file: lists for tuples, texts for what JSON cannot hold."""
    values = {field.name: getattr(row, field.name) for field in fields(row)}
    values["fields"] = dict(row.fields)
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return plain


def _from_json(values: Mapping[str, Any]) -> Example:
    columns = values["fields"]
    return Example(**{**{name: _tuples(v) for name, v in values.items()}, "fields": columns})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value


def _digest(memory: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(memory, sort_keys=True).encode()).hexdigest()
