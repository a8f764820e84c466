"""Runs in processes of their own, which are ended at any moment; used by tests and benchmarks."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mtlcore.checkpoint_store import ADAPTERS, COMPONENTS, OPTIMIZER, STATE
from mtlcore.manifest import MANIFEST
from tests.recipes import final_adapters, metrics, training_part, write_tiny_recipe

FILES = (ADAPTERS, OPTIMIZER, COMPONENTS, STATE, MANIFEST)
CLOCKS = ("seconds", "task_seconds", "eval_seconds", "peak_memory_mb", "task_peak_memory_mb")

PRELOADED = [
    "mtlcore.api", "mtlcore.cli", "tests.faults", "transformers.models.llama.modeling_llama",
    "sklearn.metrics", "sacrebleu",
]  # fmt: skip


def recipe_in(folder: Path, model: Path) -> Path:
    """Dropout, own weights, replay, an auditor, a regularizer with state, two stages, best weights
    in the end."""
    training = training_part(
        folder,
        max_steps="null",
        eval_steps=2,
        eval_max_rows=6,
        save_steps=1,
        save_total_limit=3,
        metric_for_best_model="eval_loss",
        load_best_model_at_end="true",
        gradient_accumulation_steps=2,
    )
    return write_tiny_recipe(
        folder,
        model,
        training=training,
        weighting="uncertainty",
        replay="{name: reservoir, rows: 8}",
        stages="[{name: first, tasks: [sentiment, spelling], max_steps: 5}, "
        "{name: second, tasks: [definitions], max_steps: 4}]",
        auditing="[{name: counterfactual, every_n_steps: 3}]",
    )


def train_in_process(recipe: Path, **environ: str) -> multiprocessing.process.BaseProcess:
    """Begin `mtlcore train RECIPE --resume` in a process of its own.

    It is forked from a server that has everything imported, so it is training at once.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_train, args=(str(recipe), environ))
    process.start()
    return process


def _train(recipe: str, environ: dict[str, str]) -> None:
    os.environ |= environ
    torch.set_num_threads(1)
    from mtlcore.cli import main

    with open(Path(recipe).parent / "output.txt", "a", encoding="utf-8") as output:
        sys.stdout = sys.stderr = output
        main(["train", recipe, "--resume"])


def seconds_of_a_run(recipe: Path) -> float:
    """Train to the end, which must go well; how long that took."""
    started = time.monotonic()
    process = train_in_process(recipe)
    process.join()
    if process.exitcode != 0:
        raise AssertionError((recipe.parent / "output.txt").read_text(encoding="utf-8"))
    return time.monotonic() - started


def end_after(recipe: Path, seconds: float, number: signal.Signals) -> int:
    """Begin a run and send it a signal after so many seconds; its exit code."""
    process = train_in_process(recipe)
    process.join(seconds)
    if process.pid is not None and process.exitcode is None:
        os.kill(process.pid, number)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def differences(one: Path, other: Path) -> list[str]:
    """In what two runs differ: final weights by name, lines of the log by step."""
    first, second = final_adapters(one), final_adapters(other)
    found = [
        name
        for name in sorted(first.keys() | second.keys())
        if name not in first or name not in second or not torch.equal(first[name], second[name])
    ]
    lines, others = _timeless(one), _timeless(other)
    if len(lines) != len(others):
        found.append(f"{len(lines)} and {len(others)} lines in metrics.jsonl")
    found += [f"step {a['step']}" for a, b in zip(lines, others, strict=False) if a != b]
    return found


def _timeless(folder: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in line.items() if key not in CLOCKS} for line in metrics(folder)
    ]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def link(path: Path) -> None:
    """The same bytes, but somewhere else."""
    elsewhere = path.with_name(f"moved-{path.name}")
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


DAMAGES: list[Callable[[Path], None]] = [truncate, flip, empty, Path.unlink, link]
