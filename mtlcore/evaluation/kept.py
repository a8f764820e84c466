"""A finished run's answers to a split: from its files, or made anew with its model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlcore import api, checkpoint
from mtlcore.checkpoint_store import step_of
from mtlcore.errors import UserError, did_you_mean
from mtlcore.evaluation.predictions import Prediction
from mtlcore.plugins import PluginManager
from mtlcore.recipe_file import read_recipe
from mtlcore.run import RECIPE

if TYPE_CHECKING:
    from mtlcore.components import Aggregator, Evaluator
    from mtlcore.run import Run


def read_predictions(path: Path) -> list[Prediction]:
    """What `write_predictions` wrote; keys that are not known here are left out."""
    known = {field.name for field in fields(Prediction)}
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line:
            continue
        try:
            values = {key: value for key, value in json.loads(line).items() if key in known}
            values |= {key: tuple(values[key]) for key in ("options", "scores") if key in values}
            found.append(Prediction(**values))
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"is no prediction: {error}",
                where=f"{path}:{number}",
                fix="make it anew with mtlcore evaluate",
            ) from None
    return found


class KeptRun:
    """A run's folder as evaluations see it: recipe, evaluators and answers, without its model.

    `answers` by task: those of ``predictions/<split>/`` if they are of the weights that the run
    ended with; else the model is loaded and makes them. `made` says which.
    """

    def __init__(self, folder: str | Path, split: str) -> None:
        self.folder, self.split = Path(folder), split
        if not (self.folder / RECIPE).is_file():
            raise UserError(
                f"{self.folder} holds no run", fix="give the folder of a run, e.g. runs/demo"
            )
        self.recipe = read_recipe(self.folder / RECIPE, check_files=False).recipe
        used = api.checkpoint_to_load(self.folder, self.recipe, None)
        self.step = step_of(used)
        self.unfinished = checkpoint.unfinished(self.folder, self.recipe, used)
        plugins = PluginManager.load(
            local=self.recipe.plugins.load, disable=self.recipe.plugins.disable
        )
        self.aggregator: Aggregator = plugins.create("overall", self.recipe.overall, "overall")
        self.evaluators: dict[str, list[Evaluator]] = {}
        for name, task in self.recipe.tasks.items():
            self.evaluators[name] = []
            for index, spec in enumerate(task.metrics):
                metric = plugins.create("evaluation", spec, f"tasks.{name}.metrics[{index}]")
                metric.tasks = (name,)
                self.evaluators[name].append(metric)
        self.answers: dict[str, list[Prediction]] = {}
        self.made = False
        self._run: Run | None = None

    def load(self) -> Run:
        """The run with its model; loaded once."""
        if self._run is None:
            self._run = api.load(self.folder)
        return self._run

    @property
    def name(self) -> str:
        """The folder as the user gave it."""
        return str(self.folder)

    def require_tasks(self, names: Iterable[str]) -> None:
        """Refuse a task that the run does not have."""
        for name in names:
            if name not in self.recipe.tasks:
                raise UserError(
                    f"{self.name} has no task {name!r}", fix=did_you_mean(name, self.recipe.tasks)
                )

    def is_auxiliary(self, task: str) -> bool:
        """Whether the task is learned for the sake of the others."""
        return self.recipe.tasks[task].role == "auxiliary"

    def answer(self, tasks: Sequence[str], *, anew: bool = False) -> None:
        """Fill `answers` for these tasks; with `anew` never from files."""
        self.require_tasks(tasks)
        kept = {} if anew else self._kept(tasks)
        missing = [task for task in tasks if task not in kept]
        if missing:
            # All tasks: one file says of which step they are.
            self.load().evaluate(self.split, save_as=self.split, resamples="auto")
            kept = self._kept(tasks)
            self.made = True
        elif self.unfinished and self._run is None:  # a run that was loaded has said it
            print(self.unfinished)
        self.answers = kept

    def _kept(self, tasks: Sequence[str]) -> dict[str, list[Prediction]]:
        """The answers that lie in files, of the step that the run ended with."""
        folder = self.folder / "predictions" / self.split
        try:
            scores: Any = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
            step, scored = scores["step"], scores["tasks"]
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        if step != self.step:
            return {}
        return {
            task: read_predictions(folder / f"{task}.jsonl")
            for task in tasks
            if task in scored and (folder / f"{task}.jsonl").is_file()
        }


def answers_of(
    runs: Sequence[KeptRun], tasks: Sequence[str]
) -> tuple[dict[str, list[Prediction]], ...]:
    """The answers of several runs to the same rows; runs whose rows differ are refused.

    Files may be of fewer rows, or of data that has changed since: before the runs are refused,
    what came from files is made anew.
    """
    for run in runs:
        run.answer(tasks)
    if any(difference_of_rows(runs[0], run, tasks) for run in runs[1:]):
        for run in runs:
            if not run.made:
                run.answer(tasks, anew=True)
    for run in runs[1:]:
        if difference := difference_of_rows(runs[0], run, tasks):
            raise UserError(
                f"{runs[0].name} and {run.name} were not asked the same rows: {difference}",
                fix="compare runs with the same files and splits for these tasks (a held-out "
                "split depends on training.seed: set tasks.<name>.split.seed, or name files)",
            )
    return tuple(run.answers for run in runs)


def difference_of_rows(mine: KeptRun, theirs: KeptRun, tasks: Sequence[str]) -> str:
    """Where the rows of two runs differ first, in words; empty if they do not."""
    for task in tasks:
        one, other = mine.answers[task], theirs.answers[task]
        if len(one) != len(other):
            return f"task {task!r} has {len(one)} and {len(other)} {mine.split} rows"
        for left, right in zip(one, other, strict=True):
            if left.row != right.row:
                return f"task {task!r} has row {left.row} where the other has row {right.row}"
            if left.target != right.target or not _same_fields(left.fields, right.fields):
                return f"row {left.row} of task {task!r} has other content"
    return ""


def _same_fields(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Equal where both have a column: the formats may have given it names of their own."""

    def plain(value: Any) -> str:
        return json.dumps(value, sort_keys=True, default=str)

    return all(plain(one[key]) == plain(other[key]) for key in one.keys() & other.keys())
