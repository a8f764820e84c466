"""How good the weightings are: `python -m benchmarks.quality --json`, hours, in several sittings.

SmolLM2-135M learns four tasks of the larger set with one shared adapter, once with each weighting,
and with an adapter of the same rank for each task (the single-task models, in one run).

    choice   on seed 0: for each method the learning rate with the best overall score on the eval
             rows; for `fixed` the weights, of some drawn evenly from the simplex and equal ones,
             with the learning rate of `equal`
    result   that choice with each of the seeds, on the test rows: delta_m over the single-task
             models of the same seed, as `mtlcore compare` defines it
    times    steps of all methods in turn, over those of `equal`

A method's delta_m less that of `equal` has a 95% interval of a paired bootstrap: in each draw both
have the same seeds, drawn with replacement, and the same test rows. A method is recommended where
the interval is above 0. A finished run is kept in a folder named by the hash of its recipe, rows
and model, and not run again; so the study goes on where it was stopped, and several processes may
share the runs (`--runs-only`); steps are timed last, by one that is alone. The hash knows nothing
of the code: give another `--folder` for another version.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock, Timeout
from torch import Tensor

import mtlcore
from benchmarks import large_set
from benchmarks.harness import OtherLoad, Result, interleave, main, ratios, result
from mtlcore import api
from mtlcore.cache import cache_folder
from mtlcore.checkpoint import RESULT
from mtlcore.checkpoint_store import OPTIMIZER
from mtlcore.demo.model import fetch_model
from mtlcore.demo.run import RECIPE
from mtlcore.demo.tiny import make_tiny_model
from mtlcore.evaluation import baseline, bootstrap
from mtlcore.evaluation.bootstrap import Interval
from mtlcore.evaluation.compare import metric_of_both
from mtlcore.evaluation.kept import KeptRun, answers_of
from mtlcore.files import replace_text, sha256_of
from mtlcore.recipe import Recipe
from mtlcore.recipe_file import LoadedRecipe, read_part, recipe_from_mapping
from mtlcore.run import Run, write_json
from mtlcore.seeds import generator
from mtlcore.trainer import Trainer

TASKS = ("sentiment", "word_sense", "translation", "spelling")
METHODS = ("equal", "scale_invariant", "pcgrad", "upgrad", "famo", "fixed")
SINGLE = "single-task"
SCORES = "scores.json"
TIMES = "times"


@dataclass(frozen=True)
class Size:
    """How much is run: `rows` of each task by file, steps of 16 rows, rounds of timed steps."""

    rates: tuple[float, ...]
    searches: int
    seeds: tuple[int, ...]
    steps: int
    rows: Mapping[str, int]
    rounds: int
    resamples: int
    methods: tuple[str, ...] = METHODS


FULL = Size(
    rates=(5e-4, 1e-3, 2e-3),
    searches=8,
    seeds=(0, 1, 2),
    steps=80,
    rows={"train": 2000, "dev": 64, "test": 160},
    rounds=10,
    resamples=2000,
)
QUICK = Size(
    rates=(1e-3, 1e-2),
    searches=1,
    seeds=(0, 1),
    steps=2,
    rows={"train": 64, "dev": 4, "test": 8},
    rounds=1,
    resamples=100,
)


@dataclass(frozen=True)
class Trial:
    """One run: a method, or the single-task models; `weights` are those of `fixed`, by task."""

    method: str
    rate: float
    seed: int = 0
    weights: tuple[float, ...] = ()

    def __str__(self) -> str:
        weights = f", weights {self.weights}" if self.weights else ""
        return f"{self.method}, learning rate {self.rate:g}{weights}, seed {self.seed}"


class Unit(NamedTuple):
    """A piece of work that is done when its file is there."""

    name: str
    file: Path
    work: Callable[[], None]


class Study:
    """All runs of the study in one folder, which holds what is done so far."""

    def __init__(self, size: Size, folder: Path, model: Path, data: Path | None = None) -> None:
        self.size, self.folder, self.model = size, folder, model
        self.tasks = large_set.tasks(TASKS, data)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "rows.lock"):
            for name, task in self.tasks.items():
                for split, file in large_set.FILES.items():
                    path = folder / "rows" / f"{name}.{file}.jsonl"
                    take_rows(Path(task[split]), path, size.rows[file])
                    task[split] = str(path.resolve())
        self._recipes: dict[Trial, LoadedRecipe] = {}
        self._hash = functools.cache(sha256_of)

    # --- what is run ---------------------------------------------------------------------------

    def recipe(self, trial: Trial) -> LoadedRecipe:
        """The recipe of a run, whose folder is named by the hash of all that it depends on."""
        if trial in self._recipes:
            return self._recipes[trial]
        parts = read_part(RECIPE)
        del parts["sharing"]  # one adapter for all
        parts |= {"tasks": self.tasks, "sampling": "equal"}
        parts["model"] = {"name_or_path": str(self.model)}
        parts["training"] |= {
            "learning_rate": trial.rate,
            "max_steps": self.size.steps,
            "seed": trial.seed,
        }
        parts["weighting"] = "equal" if trial.method == SINGLE else trial.method
        if trial.weights:
            weights = dict(zip(TASKS, trial.weights, strict=True))
            parts["weighting"] = {"name": trial.method, "weights": weights}
        loaded = recipe_from_mapping(parts)
        if trial.method == SINGLE:
            loaded = baseline.derive(loaded, self.folder)
        out = str(self.folder / self._fingerprint(loaded.recipe))
        training = loaded.recipe.training.model_copy(update={"output_dir": out})
        loaded = replace(loaded, recipe=loaded.recipe.model_copy(update={"training": training}))
        self._recipes[trial] = loaded
        return loaded

    def _fingerprint(self, recipe: Recipe) -> str:
        data = recipe.model_dump(mode="json")
        del data["training"]["output_dir"]
        data["model"]["name_or_path"] = self._hash(self.model / "model.safetensors")
        for task in data["tasks"].values():
            task |= {split: self._hash(Path(task[split])) for split in large_set.FILES}
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]

    def scores_file(self, trial: Trial, split: str) -> Path:
        return self.recipe(trial).output_dir / "predictions" / split / SCORES

    def score(self, trial: Trial, split: str) -> None:
        """Train, if that is not done, and answer the rows of a split."""
        loaded = self.recipe(trial)
        folder = loaded.output_dir
        if (folder / RESULT).is_file():
            run = mtlcore.load(folder)
        else:
            train = baseline.train if trial.method == SINGLE else api.train
            run = train(loaded, resume=folder.is_dir())
        for moments in folder.glob(f"checkpoints/*/{OPTIMIZER}"):
            moments.unlink()  # two thirds of what a run takes
        run.evaluate(split, save_as=split)

    # --- what is chosen ------------------------------------------------------------------------

    def candidates(self, method: str) -> list[Trial]:
        """What the choice of a method is between; empty while that is not known."""
        if method != "fixed":
            return [Trial(method, rate) for rate in self.size.rates]
        equal = self.chosen("equal")
        if equal is None:
            return []
        draw = torch.empty(self.size.searches, len(TASKS), dtype=torch.float64)
        draw.exponential_(generator=generator(0, "weights"))
        shares = (draw / draw.sum(1, keepdim=True)).tolist()  # even on the simplex
        drawn = [tuple(round(share, 3) for share in row) for row in shares]
        return [equal, *(Trial(method, equal.rate, weights=weights) for weights in drawn)]

    def eval_score(self, trial: Trial) -> float | None:
        """Overall score on the eval rows, 0 to 1; None if it is not known yet."""
        file = self.scores_file(trial, "eval")
        return float(json.loads(file.read_text())["overall"]) if file.is_file() else None

    def chosen(self, method: str) -> Trial | None:
        """The candidate with the best score, the first of equal ones; None if one is missing."""
        best, highest = None, -math.inf
        for trial in self.candidates(method):
            score = self.eval_score(trial)
            if score is None:
                return None
            if score > highest:
                best, highest = trial, score
        return best

    def choices(self) -> dict[str, Trial]:
        """The choice of every method and of the single-task models, where it is made."""
        found = {method: self.chosen(method) for method in (SINGLE, *self.size.methods)}
        return {method: trial for method, trial in found.items() if trial is not None}

    # --- what is done --------------------------------------------------------------------------

    def units(self) -> Iterator[Unit]:
        """The work in its order, as far as it is known: what comes last depends on choices."""
        for method in (SINGLE, *self.size.methods):
            for trial in self.candidates(method):
                yield self._unit(trial, "eval")
        choices = self.choices()
        for seed in self.size.seeds:
            for trial in choices.values():
                yield self._unit(replace(trial, seed=seed), "test")
        if len(choices) == 1 + len(self.size.methods):
            yield Unit(TIMES, self.times_file(), self.time_steps)

    def _unit(self, trial: Trial, split: str) -> Unit:
        work = functools.partial(self.score, trial, split)
        return Unit(f"{trial}, {split} rows", self.scores_file(trial, split), work)

    @property
    def total(self) -> int:
        """How many units there are in all, known or not."""
        methods = len(self.size.methods)
        candidates = methods * len(self.size.rates) + 1 + self.size.searches
        return candidates + (methods + 1) * len(self.size.seeds) + 1

    def progress(self) -> tuple[int, Unit | None]:
        """How many units are done, and the next one; None when all are."""
        units = list(self.units())
        missing = [unit for unit in units if not unit.file.is_file()]
        return len(units) - len(missing), missing[0] if missing else None

    def is_complete(self) -> bool:
        return self.progress()[0] == self.total

    def go_on(self, minutes: float | None = None, *, times: bool = True) -> None:
        """Do what is missing, without timing steps if not `times`.

        After so many minutes no other unit is begun.
        """
        started = time.monotonic()
        while missing := [unit for unit in self.units() if not unit.file.is_file()]:
            begun = time.monotonic()
            free = [unit for unit in missing if unit.name != TIMES] or missing
            if not times and free[0].name == TIMES:
                return
            done = next((unit for unit in free if self._do(unit)), None)
            now = time.monotonic()
            if done is not None:
                told = f"{done.name}: {now - begun:.0f} s"
                print(f"[{self.progress()[0]} of {self.total}] {told}", file=sys.stderr)
            if minutes is not None and now - started >= 60 * minutes:
                return
            if done is None:
                time.sleep(1)  # other processes are at all of them

    def _do(self, unit: Unit) -> bool:
        """Do a unit, unless another process is at it or has just done it."""
        locks = self.folder / "locks"
        locks.mkdir(exist_ok=True)
        lock = FileLock(locks / unit.name, timeout=0, fallback_to_soft=False)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(lock)
            except Timeout:
                return False
            if unit.file.is_file():
                return False
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))  # stdout: the JSON line
            unit.work()
        return True

    def times_file(self) -> Path:
        runs = [self.recipe(trial).output_dir.name for trial in self.choices().values()]
        return self.folder / f"times-{hashlib.sha256(''.join(runs).encode()).hexdigest()[:16]}.json"

    def time_steps(self) -> None:
        """Steps of the chosen methods in turn, each on the same rows as the others."""
        with tempfile.TemporaryDirectory() as folder:
            steps = {
                method: Trainer(Run(self.recipe(trial).recipe, Path(folder) / method)).train_step
                for method, trial in self.choices().items()
                if method != SINGLE
            }
            load = OtherLoad()
            times = interleave(steps, self.size.rounds)
            found = {"times": times, "load": load.share(), "threads": torch.get_num_threads()}
            write_json(self.times_file(), found)

    # --- what comes out ------------------------------------------------------------------------

    def results(self) -> list[Result]:
        """All figures; of a study that is not complete, how much of it is done."""
        done, _ = self.progress()
        if done < self.total:
            return [result("study", f"done of {self.total}", [done], "units")]
        choices = self.choices()
        gains = self.gains(choices)
        times = json.loads(self.times_file().read_text())
        results = []
        for method, trial in choices.items():
            results += self._choice(method, trial)
            if method != SINGLE:
                results += self._against_single(method, gains[method])
                ratio = ratios(times["times"], method, "equal")
                results.append(result(method, "step time / equal", ratio, "x"))
            if method not in (SINGLE, "equal"):
                results += against_equal(method, gains[method], gains["equal"])
        results.append(result("study", "other load while timed", [times["load"]], ""))
        results.append(result("study", "threads while timed", [times["threads"]], "threads"))
        return results

    def _choice(self, method: str, trial: Trial) -> list[Result]:
        """What was chosen, and its test scores with each seed."""
        found = [
            result(method, "learning rate", [trial.rate], ""),
            result(method, "eval score", [self.eval_score(trial) or 0.0], "0 to 1"),
        ]
        if method == "fixed":
            weights = trial.weights or [1 / len(TASKS)] * len(TASKS)
            for task, weight in zip(TASKS, weights, strict=True):
                found.append(result(method, f"weight, {task}", [weight], ""))
        scored = [
            json.loads(self.scores_file(replace(trial, seed=seed), "test").read_text())["tasks"]
            for seed in self.size.seeds
        ]
        for task, recipe in self.tasks.items():
            [metric] = recipe["metrics"]
            values = [scores[task][metric] for scores in scored]
            found.append(mean_result(method, task, values, metric))
        return found

    def _against_single(self, method: str, gains: Gains) -> list[Result]:
        found = [mean_result(method, "delta_m", gains.delta_m, "%")]
        for seed, value in zip(self.size.seeds, gains.delta_m, strict=True):
            found.append(result(method, f"delta_m, seed {seed}", [value], "%"))
        means = {task: sum(values) / len(values) for task, values in gains.by_task.items()}
        for task, values in gains.by_task.items():
            found.append(mean_result(method, f"gain, {task}", values, "%"))
        worst = min(means, key=means.__getitem__)
        found.append(result(method, f"worst task: {worst}", [means[worst]], "%"))
        below = sum(mean < 0 for mean in means.values())
        found.append(result(method, "tasks below single-task", [below], "tasks"))
        counted = sum(len(values) == len(self.size.seeds) for values in gains.by_task.values())
        found.append(result(method, "tasks in delta_m, every seed", [counted], "tasks"))
        return found

    def gains(self, choices: Mapping[str, Trial]) -> dict[str, Gains]:
        """Each method against the single-task models of the same seed, on the test rows."""
        found = {method: Gains({}, [], []) for method in choices if method != SINGLE}
        for seed in self.size.seeds:
            runs = {
                method: KeptRun(self.recipe(replace(trial, seed=seed)).output_dir, "test")
                for method, trial in choices.items()
            }
            answers = dict(zip(runs, answers_of(list(runs.values()), TASKS), strict=True))
            for method, gains in found.items():
                by_task, drawn = {}, []
                for task in TASKS:
                    metric = metric_of_both(
                        runs[SINGLE].evaluators[task][0],
                        answers[method][task],
                        answers[SINGLE][task],
                        self.size.resamples,
                        "quality",  # with the task: the same draws for every run and seed
                        task,
                    )
                    if metric.gain is not None:  # else the single-task model scored 0
                        by_task[task] = metric.gain
                        drawn.append(metric.gain_drawn)
                assert by_task, f"every single-task model scores 0 with seed {seed}"
                for task, gain in by_task.items():
                    gains.by_task.setdefault(task, []).append(gain)
                gains.delta_m.append(sum(by_task.values()) / len(by_task))
                gains.drawn.append(torch.stack(drawn).mean(0))
        return found


class Gains(NamedTuple):
    """Relative gains of a method over the single-task models in percent, by seed."""

    by_task: dict[str, list[float]]
    delta_m: list[float]
    drawn: list[Tensor]  # delta_m [B] on the draws of rows


def interval_over(mine: Sequence[Tensor], other: Sequence[Tensor]) -> Interval | None:
    """The interval of mean delta_m less that of the other: [B] of each seed, on the same draws.

    Draw b has row draw b, and as many seeds as there are, drawn with replacement.
    """
    differences = torch.stack(list(mine)) - torch.stack(list(other))  # [S, B]
    seeds, count = differences.shape
    picked = torch.cat(list(bootstrap.draws(seeds, count, "quality", "seeds")))  # [B, S]
    return bootstrap.interval(differences.T.gather(1, picked).mean(1))


def verdict(found: Interval | None) -> str:
    """What may be said of a method whose difference to `equal` has this interval."""
    if found is not None and found.low > 0:
        return "recommended"
    return "worse" if found is not None and found.high < 0 else "no difference seen"


def against_equal(method: str, gains: Gains, equal: Gains) -> list[Result]:
    """The difference of delta_m to that of `equal`, its interval, and what follows from it."""
    differences = [a - b for a, b in zip(gains.delta_m, equal.delta_m, strict=True)]
    found = interval_over(gains.drawn, equal.drawn)
    results = [mean_result(method, "delta_m - equal", differences, "%")]
    if found is not None:
        results.append(result(method, "delta_m - equal, low", [found.low], "%"))
        results.append(result(method, "delta_m - equal, high", [found.high], "%"))
    said = verdict(found)
    return [*results, result(method, f"over equal: {said}", [float(said == "recommended")], "")]


def mean_result(case: str, metric: str, values: Sequence[float], unit: str) -> Result:
    """The mean over seeds, which is what the intervals are of."""
    return replace(result(case, metric, values, unit), value=sum(values) / len(values))


def take_rows(source: Path, target: Path, count: int) -> None:
    """Copy so many rows, evenly spaced: neighbours may be of one source."""
    with source.open(encoding="utf-8") as file:
        lines = list(file)
    count = min(count, len(lines))
    target.parent.mkdir(parents=True, exist_ok=True)
    chosen = (lines[place * len(lines) // count] for place in range(count))
    text = "".join(chosen)
    if not target.is_file() or target.read_text(encoding="utf-8") != text:
        replace_text(target, text)  # another process may be reading it


def open_study(quick: bool, folder: Path) -> Study:
    """The study in a folder; `quick` has a tiny random model and the demo's rows."""
    if quick:
        model = folder / "model"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "model.lock"):
            if not model.is_dir():
                make_tiny_model(model, initializer_range=0.2)
        return Study(QUICK, folder, model, RECIPE.parent / "data")
    return Study(FULL, folder, fetch_model())


def check() -> None:
    """Fixed weights that are equal give what `equal` gives, and no difference is seen."""
    with tempfile.TemporaryDirectory() as place, contextlib.redirect_stdout(sys.stderr):
        study = open_study(True, Path(place))
        study.size = replace(study.size, seeds=(0,))
        rate = study.size.rates[-1]
        same = (1 / len(TASKS),) * len(TASKS)
        trials = {
            SINGLE: Trial(SINGLE, rate),
            "equal": Trial("equal", rate),
            "fixed": Trial("fixed", rate, weights=same),
        }
        for trial in trials.values():
            study.score(trial, "test")
        gains = study.gains(trials)
        found = interval_over(gains["fixed"].drawn, gains["equal"].drawn)
        assert found is not None, "no interval of a difference of 0"
        assert gains["fixed"].delta_m == gains["equal"].delta_m
        assert (found.low, found.high, verdict(found)) == (0, 0, "no difference seen")


def status(study: Study) -> str:
    """What is done, what was chosen, and what comes next."""
    done, following = study.progress()
    lines = [f"quality: {done} of {study.total} units done, in {study.folder}"]
    for method, trial in study.choices().items():
        lines.append(f"  chosen for {method}: {trial}, eval score {study.eval_score(trial):.4f}")
    return "\n".join([*lines, f"next: {following.name}" if following else "complete"])


def run(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality", epilog="--json, --record: benchmarks/harness.py"
    )
    parser.add_argument("--minutes", type=float, help="stop after the run that is under way then")
    parser.add_argument(
        "--runs-only", action="store_true", help="time no steps: for processes that share the runs"
    )
    parser.add_argument("--status", action="store_true", help="tell what is done, and run nothing")
    parser.add_argument("--quick", action="store_true", help="a tiny random model: a smoke test")
    parser.add_argument("--folder", type=Path, help="default: quality in the cache")
    options, rest = parser.parse_known_args(argv)
    folder = options.folder or cache_folder() / "quality" / ("quick" if options.quick else "full")
    study = open_study(options.quick, folder)
    if options.status:
        print(status(study))
        return

    def measure() -> list[Result]:
        study.go_on(options.minutes, times=not options.runs_only)
        return study.results()

    main("quality", check, measure, argv=rest, complete=study.is_complete)


if __name__ == "__main__":
    run()
