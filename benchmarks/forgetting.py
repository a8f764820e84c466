"""Adding a task to a real model: `python -m benchmarks.forgetting --folder runs/forgetting`.

The demo's model learns four of its tasks, then the fifth from 64 rows: plainly, with EWC, and with
EWC and replay. What counts is what the old tasks lose. A seed whose runs are in the folder is read,
not run again: a seed takes about 10 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Result, main, result
from mtlcore.adaptation import FORGETTING, adapt
from mtlcore.api import train
from mtlcore.demo.model import fetch_model
from mtlcore.demo.run import RECIPE
from mtlcore.demo.tiny import make_tiny_model
from mtlcore.recipe_file import read_part

NEW = "translation"
ROWS = {"train": 600, "dev": 40, "test": 40}
NEW_ROWS = {"train": 64, "dev": 40, "test": 40}
SEEDS = (0, 1, 2)
EWC = "regularization=[{name: ewc, rows: 64}]"
REPLAY = "replay={name: reservoir, rows: 200, share: 0.5}"
VARIANTS = {"plain": [], "ewc": [EWC], "ewc + replay": [EWC, REPLAY]}


def write_data(folder: Path, model: Path, **training: Any) -> tuple[Path, Path]:
    """The recipe of the four tasks, and the file of the fifth."""
    recipe = read_part(RECIPE)
    folder.mkdir(parents=True, exist_ok=True)
    for name, task in recipe["tasks"].items():
        counts = NEW_ROWS if name == NEW else ROWS
        for split, file in (("train", "train"), ("eval", "dev"), ("test", "test")):
            with (RECIPE.parent / "data" / name / f"{file}.jsonl").open(encoding="utf-8") as rows:
                text = "".join(itertools.islice(rows, counts[file]))
            path = folder / f"{name}.{file}.jsonl"
            path.write_text(text, encoding="utf-8")
            task[split] = str(path.resolve())
    new = {"tasks": {NEW: recipe["tasks"].pop(NEW)}}
    recipe["model"]["name_or_path"] = str(model)
    recipe["training"] |= training
    paths = folder / "old.yaml", folder / "new.yaml"
    for path, part in zip(paths, (recipe, new), strict=True):
        path.write_text(json.dumps(part, indent=2), encoding="utf-8")
    return paths


def run_seed(folder: Path, model: Path, seed: int, steps: int, new_steps: int) -> None:
    """Train and adapt, unless the folder has it."""
    old, new = write_data(folder, model, max_steps=steps, seed=seed)
    if not (folder / "old" / "result.json").is_file():
        train(old, [f"training.output_dir={folder / 'old'}"])
    for name, overrides in VARIANTS.items():
        out = folder / name.replace(" ", "")
        if not (out / FORGETTING).is_file():
            adapt(folder / "old", new, overrides, max_steps=new_steps, output_dir=out)


def check() -> None:
    """With a tiny model: four old tasks are compared, and the new one is learned."""
    import tempfile

    with tempfile.TemporaryDirectory() as place, contextlib.redirect_stdout(sys.stderr):
        folder = Path(place)
        run_seed(folder / "seed", make_tiny_model(folder / "model"), 0, 2, 1)
        for name in VARIANTS:
            told = read(folder / "seed", name)
            assert len(told["tasks"]) == 4
            before = read(folder / "seed", "plain")["tasks"]
            assert {t: r["before"] for t, r in told["tasks"].items()} == {
                t: r["before"] for t, r in before.items()
            }


def read(folder: Path, variant: str) -> dict[str, Any]:
    """The table of changes of one variant, and the new task's score as `new`."""
    out = folder / variant.replace(" ", "")
    told: dict[str, Any] = json.loads((out / FORGETTING).read_text(encoding="utf-8"))
    scores = json.loads((out / "predictions" / "test" / "scores.json").read_text(encoding="utf-8"))
    before = json.loads(
        (out / "predictions" / "before" / "scores.json").read_text(encoding="utf-8")
    )
    told["new"] = scores["tasks"][NEW]["chrf"]
    told["loss"] = {
        t: scores["tasks"][t]["loss"] - before["tasks"][t]["loss"] for t in told["tasks"]
    }
    return told


def measure(options: argparse.Namespace) -> list[Result]:
    """The change of each old task by variant; the target is less loss of skill in the mean."""
    model = fetch_model()
    for seed in options.seeds:
        with contextlib.redirect_stdout(sys.stderr):
            run_seed(options.folder / f"seed-{seed}", model, seed, options.steps, options.new_steps)
    results: list[Result] = []
    means: dict[str, list[float]] = {}
    for variant in VARIANTS:
        told = [read(options.folder / f"seed-{seed}", variant) for seed in options.seeds]
        for name, task in told[0]["tasks"].items():
            changes = [one["tasks"][name]["change"] for one in told]
            results.append(result(f"{name}, {task['metric']}", f"change, {variant}", changes, ""))
            losses = [one["loss"][name] for one in told]
            results.append(result(f"{name}, loss", f"change, {variant}", losses, "nats/token"))
        means[variant] = [one["mean_change"] for one in told]
        results.append(result("old tasks", f"mean change, {variant}", means[variant], "0 to 1"))
        for seed, value in zip(options.seeds, means[variant], strict=True):
            results.append(result("old tasks", f"mean change, {variant}, seed {seed}", [value], ""))
        results.append(result(NEW, f"after, {variant}", [one["new"] for one in told], "chrf"))
    for variant in ("ewc", "ewc + replay"):
        gains = [kept - plain for kept, plain in zip(means[variant], means["plain"], strict=True)]
        kept = f"kept by {variant}, worst seed"
        results.append(result("old tasks", kept, [min(gains)], "0 to 1"))
    return results


def run(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.forgetting", epilog="--json, --record: benchmarks/harness.py"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--steps", type=int, default=60, help="for the four tasks")
    parser.add_argument("--new-steps", type=int, default=30, help="for the fifth")
    parser.add_argument("--folder", type=Path, default=Path("runs/forgetting"))
    options, rest = parser.parse_known_args(argv)
    main("forgetting", check, functools.partial(measure, options), argv=rest)


if __name__ == "__main__":
    run()
