"""Run the rows of the tour: each a remedy, measured without and with it."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mtlcore.errors import MtlcoreError, UserError, did_you_mean

if TYPE_CHECKING:
    from mtlcore.evaluation.scores import Scores

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Row:
    """A remedy: what is measured, in which direction it must move, and how."""

    trouble: str
    remedy: str
    quantity: str
    better: Better
    measure: Callable[[Tour], tuple[float, float]]

    @property
    def name(self) -> str:
        """What `--row` calls it."""
        return self.measure.__name__


@dataclass(frozen=True)
class Result:
    """What a row gave; `command` is the one that applies the remedy."""

    name: str
    trouble: str
    remedy: str
    command: str
    quantity: str
    better: Better
    without: float
    with_remedy: float
    seconds: float

    @property
    def moved(self) -> bool:
        """Whether the quantity moved in the named direction, by more than 1% of it."""
        change = self.with_remedy - self.without
        least = 0.01 * max(abs(self.with_remedy), abs(self.without))
        return change > least if self.better == "higher" else -change > least

    @property
    def verdict(self) -> str:
        """In one word."""
        return "helped" if self.moved else "did not help"

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return {**asdict(self), "verdict": self.verdict}


ROWS: list[Row] = []


def row(
    trouble: str, remedy: str, *, quantity: str, better: Better
) -> Callable[[Callable[[Tour], tuple[float, float]]], Callable[[Tour], tuple[float, float]]]:
    """Make a function that measures (without, with the remedy) a row of the tour."""

    def add(
        measure: Callable[[Tour], tuple[float, float]],
    ) -> Callable[[Tour], tuple[float, float]]:
        ROWS.append(Row(trouble, remedy, quantity, better, measure))
        return measure

    return add


def overall(scores: Scores) -> float:
    """The overall score."""
    assert scores.overall is not None
    return scores.overall


def loss(scores: Scores) -> float:
    """The mean loss of the tasks."""
    return scores.loss


class Tour:
    """A folder with a small model and the cases of the rows; runs `mtlcore` command lines in it."""

    def __init__(self, folder: Path) -> None:
        from mtlcore.demo.tiny import make_tiny_model

        self.folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        # Its random embeddings must be large, or no adapter could make it sure of a word.
        make_tiny_model(folder / "model", initializer_range=0.2)
        self.commands: list[str] = []
        self._runs = 0

    def recipe(self, name: str, recipe: dict[str, Any]) -> str:
        """Write a recipe (JSON is YAML too) over the common parts -> its file name."""
        common: dict[str, Any] = {
            "model": {"name_or_path": "model"},
            "lora": {"r": 4, "lora_alpha": 16},
            "training": {
                "max_steps": 100,
                "per_device_train_batch_size": 16,
                "learning_rate": 5e-3,
                "max_length": 64,
                "logging_steps": 50,
            },
        }
        merged = {**common, **recipe}
        merged["training"] = {**common["training"], **recipe.get("training", {})}
        if "stages" in recipe:
            del merged["training"]["max_steps"]
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps(merged, indent=2), encoding="utf-8")
        return path.name

    def run(self, *args: str, exit_code: int = 0) -> str:
        """Run `mtlcore <args>` in the tour's folder -> what it printed on stdout."""
        from mtlcore.cli import main

        self.commands.append(shlex.join(["mtlcore", *args]))
        out, err = io.StringIO(), io.StringIO()
        code: object = 0
        with self._inside(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main(args)
            except SystemExit as end:
                code = end.code or 0
        if code != exit_code:
            raise MtlcoreError(f"{self.commands[-1]} ended with {code}:\n{err.getvalue()[-2000:]}")
        return out.getvalue()

    def shell(self, *args: str) -> None:
        """Run a program of this environment in the tour's folder, with one thread."""
        self.commands.append(shlex.join(args))
        program = Path(sys.executable).with_name(args[0])
        environ = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [program, *args[1:]], cwd=self.folder, env=environ, capture_output=True, text=True
        )
        if done.returncode:
            raise MtlcoreError(
                f"{self.commands[-1]} ended with {done.returncode}:\n{done.stderr[-2000:]}"
            )

    def lines(self, *parts: str) -> list[Any]:
        """A file of JSON lines in the tour's folder."""
        text = self.folder.joinpath(*parts).read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def json(self, *args: str, exit_code: int = 0) -> Any:
        """The same for a command that prints JSON."""
        return json.loads(self.run(*args, "--json", exit_code=exit_code))

    def train(self, recipe: str, *overrides: str, exit_code: int = 0) -> str:
        """`mtlcore train` into a new run folder -> its name."""
        self._runs += 1
        folder = f"run-{self._runs:02d}"
        self.run("train", recipe, *overrides, f"training.output_dir={folder}", exit_code=exit_code)
        return folder

    def scores(self, run: str, split: str = "test") -> Scores:
        """The scores of a run."""
        import mtlcore

        with (
            self._inside(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            return mtlcore.load(run).evaluate(split)

    def overall(self, run: str) -> float:
        """The overall score of a run on its test rows."""
        return overall(self.scores(run))

    def mean_of_seeds(
        self, recipe: str, quantity: Callable[[Scores], float], *overrides: str
    ) -> float:
        """What three runs with different seeds give on their test rows, in the mean."""
        found = []
        for seed in range(3):
            runs = self.train(recipe, *overrides, f"training.seed={seed}")
            found.append(quantity(self.scores(runs)))
        return sum(found) / len(found)

    def weights(self, run: str) -> int:
        """How many weights a run trained."""
        from mtlcore import checkpoint
        from mtlcore.checkpoint_store import checkpoints

        adapters = checkpoint.read_adapters(checkpoints(self.folder / run)[-1])
        return sum(value.numel() for value in adapters.values())

    def read(self, *parts: str) -> Any:
        """A JSON file in the tour's folder."""
        return json.loads(self.folder.joinpath(*parts).read_text(encoding="utf-8"))

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        before = Path.cwd()
        os.chdir(self.folder)
        try:
            yield
        finally:
            os.chdir(before)


def choose(names: Iterable[str]) -> list[Row]:
    """The rows of these names, in order; all without names."""
    from mtlcore.tour.rows import load_rows

    load_rows()
    wanted = list(names)
    known = [row.name for row in ROWS]
    for name in wanted:
        if name not in known:
            raise UserError(f"the tour has no row {name!r}", fix=did_you_mean(name, known))
    return [row for row in ROWS if not wanted or row.name in wanted]


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """So small a model gains nothing from a second one, and waits for it on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def take(tour: Tour, row: Row) -> Result:
    """Measure one row."""
    started = time.perf_counter()
    tour.commands.clear()
    with _one_thread():
        without, with_remedy = row.measure(tour)
    if not (math.isfinite(without) and math.isfinite(with_remedy)):
        raise MtlcoreError(f"{row.name}: {row.quantity} is {without} and {with_remedy}")
    return Result(
        name=row.name,
        trouble=row.trouble,
        remedy=row.remedy,
        command=tour.commands[-1],
        quantity=row.quantity,
        better=row.better,
        without=without,
        with_remedy=with_remedy,
        seconds=time.perf_counter() - started,
    )
