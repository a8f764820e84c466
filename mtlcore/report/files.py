"""The files of a run's folder, read so that a damaged one is told and the others are shown."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtlcore.errors import UserError
from mtlcore.report.text import number

SIGNS_OF_A_RUN = ("recipe.yaml", "metrics.jsonl", "result.json", "cv.json")
PREFERRED_SPLITS = ("test", "eval")


@dataclass
class RunFiles:
    """What stands in a run's folder; whatever is missing or unreadable is empty.

    `problems` are sentences about damaged files, for the reader of the page.
    """

    folder: Path
    shown: str  # the folder as its user wrote it, for commands
    recipe: dict[str, Any] = field(default_factory=dict)
    recipe_text: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    comparison: dict[str, Any] = field(default_factory=dict)
    forgetting: dict[str, Any] = field(default_factory=dict)
    affinity: dict[str, Any] = field(default_factory=dict)
    check: dict[str, Any] = field(default_factory=dict)
    cv: dict[str, Any] = field(default_factory=dict)
    audits: list[dict[str, Any]] = field(default_factory=list)
    review: list[dict[str, Any]] = field(default_factory=list)
    explanations: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    # -- reading --------------------------------------------------------------------------------

    @classmethod
    def read(cls, folder: Path) -> RunFiles:
        """Read everything; UserError if the folder holds no run at all."""
        if not any((folder / name).is_file() for name in SIGNS_OF_A_RUN):
            raise UserError(
                f"{folder} holds no run", fix="give the folder of a run, e.g. runs/demo"
            )
        files = cls(folder, str(folder))
        files._read_recipe()
        for name in (
            "environment",
            "result",
            "comparison",
            "forgetting",
            "affinity",
            "check",
            "cv",
        ):
            setattr(files, name, files._object(folder / f"{name}.json"))
        files._read_metrics()
        for path in sorted(folder.glob("predictions/*/scores.json")):
            if found := files._object(path):
                files.scores[path.parent.name] = found
        for name in ("audits", "review", "explanations"):
            setattr(files, name, list(files._lines(folder / f"{name}.jsonl")))
        return files

    def _read_recipe(self) -> None:
        path = self.folder / "recipe.yaml"
        text = self._text(path)
        if text is None:
            if not path.exists():
                self.problems.append("recipe.yaml is missing: tasks are taken from the other files")
            return
        self.recipe_text = text
        from ruamel.yaml import YAML
        from ruamel.yaml.error import YAMLError

        try:
            found = YAML(typ="safe", pure=True).load(text)
        except (YAMLError, ValueError) as error:
            self.problems.append(f"recipe.yaml is damaged: {str(error).splitlines()[0]}")
            return
        if isinstance(found, dict):
            self.recipe = found
        else:
            self.problems.append("recipe.yaml is damaged: it holds no mapping")

    def _read_metrics(self) -> None:
        """Step and evaluation lines; of steps that a resumed run wrote twice, the last count."""
        steps: dict[float, dict[str, Any]] = {}
        evaluations: dict[float, dict[str, Any]] = {}
        last = -1.0
        for line in self._lines(self.folder / "metrics.jsonl"):
            step = line.get("step")
            if isinstance(step, bool) or not isinstance(step, int | float):
                self.problems.append("metrics.jsonl has lines without a step: they are left out")
                continue
            if "combined" in line:  # weights of several steps: no point of a curve
                continue
            # A resumed run begins again at an earlier step: what it overtakes is of a dead branch.
            if "losses" in line and step <= last:
                steps = {at: found for at, found in steps.items() if at < step}
                evaluations = {at: found for at, found in evaluations.items() if at < step}
            last = step if "losses" in line else last
            (steps if "losses" in line else evaluations)[step] = line
        self.steps = [steps[at] for at in sorted(steps)]
        self.evaluations = [evaluations[at] for at in sorted(evaluations)]
        self.problems = list(dict.fromkeys(self.problems))

    def _text(self, path: Path) -> str | None:
        try:
            return path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            self.problems.append(f"{self._name(path)} is damaged: {error}")
            return None

    def _object(self, path: Path) -> dict[str, Any]:
        text = self._text(path)
        if text is None:
            return {}
        try:
            found = json.loads(text, parse_int=_whole)
        except (ValueError, RecursionError) as error:
            self.problems.append(f"{self._name(path)} is damaged: {error}")
            return {}
        if not isinstance(found, dict):
            self.problems.append(f"{self._name(path)} is damaged: it holds no object")
            return {}
        return found

    def _lines(self, path: Path) -> Iterator[dict[str, Any]]:
        bad: list[int] = []
        for place, line in enumerate((self._text(path) or "").split("\n"), start=1):
            if not line.strip():
                continue
            try:
                found = json.loads(line, parse_int=_whole)
            except (ValueError, RecursionError):
                found = None
            if isinstance(found, dict):
                yield found
            else:
                bad.append(place)
        if bad:
            places = ", ".join(map(str, bad[:5])) + (" ..." if len(bad) > 5 else "")
            self.problems.append(
                f"{self._name(path)} is damaged: {_lines_left_out(len(bad))} (line {places})"
            )

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    # -- what parts of the page ask for ---------------------------------------------------------

    @property
    def name(self) -> str:
        """The run's name: training.run_name, or its folder's."""
        return str(
            mapping(self.recipe.get("training")).get("run_name") or self.folder.resolve().name
        )

    @property
    def tasks(self) -> list[str]:
        """Task names in the order of the recipe."""
        found = list(mapping(self.recipe.get("tasks")))
        for line in self.steps:
            found += [name for name in mapping(line["losses"]) if name not in found]
        for scores in self.scores.values():
            found += [name for name in mapping(scores.get("tasks")) if name not in found]
        return [str(name) for name in found]

    @property
    def colours(self) -> dict[str, int]:
        """A colour number for each task, the same in all charts."""
        return {name: index for index, name in enumerate(self.tasks)}

    def task_recipe(self, task: str) -> dict[str, Any]:
        """The recipe of one task."""
        return mapping(mapping(self.recipe.get("tasks")).get(task))

    def metrics_of(self, task: str) -> list[str]:
        """The names of a task's metrics, the primary one first."""
        specs = self.task_recipe(task).get("metrics")
        names = [spec.get("name") if isinstance(spec, dict) else spec for spec in sequence(specs)]
        return [str(name) for name in names if name]

    @property
    def split(self) -> str | None:
        """The split whose scores the page is about."""
        preferred = [self.comparison.get("split"), *PREFERRED_SPLITS]
        named = [name for name in preferred if isinstance(name, str)]
        return next((name for name in [*named, *self.scores] if name in self.scores), None)

    def weights_at(self, step: Any) -> str:
        """The step of the weights that a run had at a step: at its end those of its best one."""
        training, best = mapping(self.recipe.get("training")), self.result.get("best_step")
        at_end = step is not None and step == self.result.get("step")
        if at_end and training.get("load_best_model_at_end") and isinstance(best, int):
            return f"step {number(best)} (the best)"
        return f"step {number(step)}"

    @property
    def stage_starts(self) -> dict[str, float]:
        """The first logged step of each stage after the first, by name."""
        found: dict[str, float] = {}
        before = 0.0
        for line in self.steps:
            stage = line.get("stage")
            if isinstance(stage, str) and stage not in found:
                found[stage] = before
            before = line["step"]
        return {name: at for name, at in found.items() if len(found) > 1}

    def command(self, verb: str, *rest: str) -> str:
        """A command line about this run."""
        return " ".join(["mtlcore", verb, shlex.quote(self.shown), *rest])


def mapping(value: Any) -> dict[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return dict(value) if isinstance(value, Mapping) else {}


def sequence(value: Any) -> list[Any]:
    """The value if it is a list, else an empty one."""
    return list(value) if isinstance(value, list | tuple) else []


def _whole(digits: str) -> int | float:
    """A whole number; one that no float can hold is infinite."""
    return int(digits) if len(digits) < 300 else float(digits)


def _lines_left_out(count: int) -> str:
    return "1 line is left out" if count == 1 else f"{count} lines are left out"
