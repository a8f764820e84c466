"""A run's folder with every file that the page can show, made by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

TASKS = ("sentiment", "spelling", "definitions", "en_fr")
METRICS = ("accuracy", "exact_match", "rouge_l", "chrf")


def write_run(folder: Path, tasks: Sequence[str] = TASKS, *, steps: int = 60) -> Path:
    """Write a finished run of these tasks with all optional files; numbers are made up."""
    folder.mkdir(parents=True, exist_ok=True)
    metric = {task: METRICS[i % len(METRICS)] for i, task in enumerate(tasks)}
    write_yaml(folder / "recipe.yaml", recipe(tasks, metric))
    write(folder / "environment.json", environment(tasks))
    write(
        folder / "result.json",
        {"step": steps, "notes": NOTES, "sections": SECTIONS, "conflicts": conflicts(tasks)},
    )
    write_lines(folder / "metrics.jsonl", metrics(tasks, metric, steps))
    for split in ("test", "eval"):
        write(folder / "predictions" / split / "scores.json", scores(split, tasks, metric, steps))
    write(folder / "comparison.json", comparison(tasks, metric))
    write(folder / "forgetting.json", forgetting(tasks, metric))
    write(folder / "affinity.json", affinity(tasks))
    write(folder / "check.json", check(tasks))
    write(folder / "cv.json", folds(tasks, metric))
    write_lines(folder / "audits.jsonl", audits(tasks))
    write_lines(folder / "review.jsonl", review(tasks, metric))
    write_lines(folder / "explanations.jsonl", [explanation(tasks[0])])
    return folder


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_lines(path: Path, values: Sequence[Any]) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")


def write_yaml(path: Path, value: Any) -> None:
    with path.open("w", encoding="utf-8") as file:
        yaml = YAML(typ="safe", pure=True)
        yaml.default_flow_style = False
        yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
        yaml.dump(value, file)


NOTES = [
    "sentiment: train 400 rows; eval 60 rows; test 60 rows",
    "task 'spelling' has no test split: its eval split is scored",
    "warning: 3 of 60 test rows of sentiment stand among its train rows",
]


def score_of(metric: str, at: int) -> float:
    """A made-up score: chrf goes to 100, the others to 1."""
    value = 0.55 + 0.35 * math.sin(1.7 * at + 0.4) ** 2
    return 100 * value if metric == "chrf" else value


def recipe(tasks: Sequence[str], metric: dict[str, str]) -> dict[str, Any]:
    return {
        "model": {"name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct", "dtype": "auto"},
        "tasks": {
            task: {
                "train": f"data/{task}.jsonl",
                "metrics": [metric[task]],
                "role": "auxiliary" if len(tasks) > 2 and at == len(tasks) - 1 else "main",
                "format": {"name": "prompt_completion", "template": "Q: {{ text }}\nA:"},
            }
            for at, task in enumerate(tasks)
        },
        "weighting": "pcgrad",
        "sampling": {"name": "temperature", "temperature": 2.0},
        "overall": "mean",
        "start": {"run": "runs/before"},
        "training": {"max_steps": 60, "seed": 0},
    }


def environment(tasks: Sequence[str]) -> dict[str, Any]:
    counts = {
        "used": 400,
        "truncated": 3,
        "skipped": 1,
        "duplicates": 2,
        "bad": ["x.jsonl:7: text"],
    }
    split = {"path": "data/rows.jsonl", "fingerprint": "f" * 64, "rows": 403, **counts}
    small = {"path": "data/dev.jsonl", "rows": 60, "used": 60}
    return {
        "versions": {"mtlcore": "0.1.0", "torch": "2.13.0+cpu", "transformers": "5.23.0"},
        "python": "3.11.7",
        "platform": "Linux-6.1-x86_64",
        "device": "cpu",
        "threads": 2,
        "base_model": "a1b2c3" * 8,
        "plugins": [
            {"name": "weighting/pcgrad", "distribution": "mtlcore", "version": "0.1.0"},
            {"name": "auditing/mine", "distribution": None, "version": None, "sha256": "ab" * 32},
        ],
        "data": {task: {"train": split, "eval": small, "test": small} for task in tasks},
        "flat_batches": True,
        "notes": NOTES[:2],
    }


def metrics(tasks: Sequence[str], metric: dict[str, str], steps: int) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        stage = "general" if step <= steps // 3 else "domain"
        losses = {
            task: 1.4
            + 2.2 * math.exp(-(step + 6 * at) / (14 + 3 * at))
            + 0.14 * math.sin(step * (at + 2))
            for at, task in enumerate(tasks)
        }
        weights = {t: 1 + 0.5 * math.sin(step / 9 + at) for at, t in enumerate(tasks)}
        rows = {task: 2 + (step + at) % 4 for at, task in enumerate(tasks)}
        tokens = {task: count * (30 + 25 * at) for at, (task, count) in enumerate(rows.items())}
        lines.append(
            {
                "loss": sum(losses.values()) / len(losses),
                "step": step,
                "stage": stage,
                "losses": losses,
                "weights": weights,
                "learning_rate": 2e-4 * (1 - step / steps),
                "grad_norms": {"shared": 0.8 + 0.1 * math.cos(step)} | dict.fromkeys(tasks, 0.3),
                "rows": rows,
                "tokens": tokens,
                "seconds": 0.4,
                "task_seconds": {t: 0.4 * n / sum(tokens.values()) for t, n in tokens.items()},
                "penalties": {"l2_anchor": 0.01 * step},
                "peak_memory_mb": 1480.0,
                "task_peak_memory_mb": dict.fromkeys(tasks, 1480.0),
                "task_norms": {t: 1 + at + 0.2 * math.sin(step) for at, t in enumerate(tasks)},
                "conflict_rate": None if len(tasks) < 2 else (step % 4) / 3,
                "norm_spread": None if len(tasks) < 2 else 2 + 0.5 * math.sin(step / 3),
                "update_cosine": None if len(tasks) < 2 else 0.9 + 0.05 * math.cos(step / 5),
                "weight_spread": {t: 0.1 + 0.02 * at for at, t in enumerate(tasks)},
            }
        )
        if step % (steps // 6) == 0:
            found: dict[str, Any] = {"step": step, "stage": stage, "eval_loss": 2.0}
            for at, task in enumerate(tasks):
                found[f"eval_{task}_loss"] = losses[task] + 0.1
                share = 1 - math.exp(-step / (steps / (3 + at % 4)))
                found[f"eval_{task}_{metric[task]}"] = score_of(metric[task], at) * share
            found["eval_overall"] = 0.7 * (1 - math.exp(-step / (steps / 4)))
            lines.append(found)
    return lines


def scores(split: str, tasks: Sequence[str], metric: dict[str, str], step: int) -> dict[str, Any]:
    by_task: dict[str, Any] = {}
    for at, task in enumerate(tasks):
        name, value = metric[task], score_of(metric[task], at)
        half = 0.04 * (100 if name == "chrf" else 1)
        interval = {"metric": name, "low": value - half, "high": value + half, "resamples": 1000}
        extra = {"macro_f1": 0.61} if name == "accuracy" else {}
        by_task[task] = {"loss": 1.5, "rows": 60, name: value, **extra, "interval": interval}
    return {
        "split": split,
        "tasks": by_task,
        "loss": 1.52,
        "overall": 0.712,
        "overall_interval": {"low": 0.681, "high": 0.742, "resamples": 1000},
        "step": step,
    }


def comparison(tasks: Sequence[str], metric: dict[str, str]) -> dict[str, Any]:
    by_task: dict[str, Any] = {}
    for at, task in enumerate(tasks):
        run = score_of(metric[task], at)
        other = run * (1 - 0.09 * math.cos(2.1 * at))
        half = abs(run) * 0.05
        values = {
            "run": run,
            "other": other,
            "difference": run - other,
            "low": run - other - half,
            "high": run - other + half,
            "gain": 100 * (run - other) / other,
            "greater_is_better": True,
        }
        by_task[task] = {
            "rows": 60,
            "role": "main",
            "gain": values["gain"],
            "metrics": {metric[task]: values},
        }
    mean = sum(found["gain"] for found in by_task.values()) / len(by_task)
    interval = {"low": mean - 2.1, "high": mean + 2.4, "resamples": 1000}
    baseline = {
        "run": "runs/x/baseline",
        "name": "baseline",
        "delta_m": mean,
        "delta_m_interval": interval,
        "tasks": by_task,
        "notes": ["1 task was trained with fewer steps"],
    }
    return {"run": "runs/x", "split": "test", "resamples": 1000, "others": [baseline]}


def forgetting(tasks: Sequence[str], metric: dict[str, str]) -> dict[str, Any]:
    rows = {
        task: {
            "metric": metric[task],
            "before": 0.8 - 0.05 * at,
            "after": 0.78 - 0.02 * at,
            "change": -0.02 + 0.03 * at,
        }
        for at, task in enumerate(tasks[:-1] or tasks)
    }
    return {"split": "test", "tasks": rows, "mean_change": 0.01}


def affinity(tasks: Sequence[str]) -> dict[str, Any]:
    count = range(len(tasks))
    cosine = [
        [1.0 if i == j else round(math.sin(3 * (i + j)) * 0.6, 3) for j in count] for i in count
    ]
    return {
        "tasks": list(tasks),
        "steps": 60,
        "cosine": cosine,
        "conflict": [[0.0 if i == j else abs(math.cos(i + j)) * 0.7 for j in count] for i in count],
        "affinity": [[0.002 * math.cos(2 * i + j) for j in count] for i in count],
    }


def conflicts(tasks: Sequence[str]) -> dict[str, Any]:
    pairs = {key: value for key, value in affinity(tasks).items() if key != "affinity"}
    update = {"steps": 60, "mean_cosine": 0.97, "mean_angle": 14.2}
    mean = {"steps": 60, "conflict_rate": 0.37, "norm_spread": 2.3}
    return {**pairs, "norm": [1.0] * len(tasks), "mean": mean, "update": update}


def check(tasks: Sequence[str]) -> dict[str, Any]:
    share = {"rows": 40, "share": 0.1, "low": 0.07, "high": 0.14}
    few = {"rows": 3, "share": 0.01, "low": 0.0, "high": 0.02}
    groups = [
        {"value": "women", "total": share, "labels": {"positive": share}, "too_few": False},
        {"value": "other", "total": few, "labels": {}, "too_few": True},
    ]
    warning = {"where": "data/a.jsonl:12", "message": "duplicate of line 3", "fix": "drop it"}
    return {
        "ok": True,
        "errors": [],
        "warnings": [warning],
        "groups": [{"task": tasks[0], "column": "gender", "groups": groups, "values": 2}],
    }


def folds(tasks: Sequence[str], metric: dict[str, str]) -> dict[str, Any]:
    def spread(middle: float) -> dict[str, Any]:
        values = [middle * factor for factor in (0.95, 1.0, 1.02, 1.03)]
        return {"values": values, "mean": middle, "std": middle * 0.03}

    by_task = {
        task: {"metric": metric[task], **spread(0.4 + 0.03 * at)} for at, task in enumerate(tasks)
    }
    return {"folds": 4, "split": "eval", "tasks": by_task, "overall": spread(0.5)}


def audits(tasks: Sequence[str]) -> list[dict[str, Any]]:
    def finding(name: str, task: str, value: float, *, failed: bool) -> dict[str, Any]:
        return {
            "name": name,
            "task": task,
            "value": value,
            "message": f"{value:.0%} of 120 answers change when women and men are swapped",
            "failed": failed,
            "limit": 0.1,
            "details": {
                "enough": True,
                "n": 120,
                "low": value - 0.02,
                "high": value + 0.03,
                "p": 0.004,
                "by_group": {"she": {"n": 61, "value": value}, "he": {"n": 59, "value": 0.1}},
                "examples": [
                    {"row": 4, "prompt": "She sang.", "swapped": "He sang.", "output": "a"}
                ],
            },
        }

    return [
        {
            "step": step,
            "split": "eval",
            "findings": [
                finding("counterfactual", tasks[0], 0.05 + 0.002 * step, failed=step == 60),
                finding("counterfactual", tasks[-1], 0.03, failed=False),
            ],
        }
        for step in (20, 40, 60)
    ]


def review(tasks: Sequence[str], metric: dict[str, str]) -> list[dict[str, Any]]:
    return [
        {
            "task": task,
            "row": 3 + at,
            "why": why,
            "prompt": "Review: a tense, well-acted film that never lets go.\nSentiment:",
            "target": "positive",
            "before": "The film is about a man who wants to be a film about a man who",
            "after": "positive",
            "metric": metric[task],
            "score_before": 0.0,
            "score_after": 1.0,
            "loss_before": 4.2,
            "loss_after": 0.31,
        }
        for task in tasks[:2]
        for at, why in enumerate((["best", "changed"], ["worst"]))
    ]


def explanation(task: str) -> dict[str, Any]:
    words = ["Review:", "a", "tense", ",", "well-acted", "film", "that", "never", ".\nSentiment:"]
    return {
        "task": task,
        "row": 3,
        "split": "test",
        "method": "integrated_gradients",
        "target": "positive",
        "tokens": [f" {word}" if at else word for at, word in enumerate(words)],
        "scores": [round(math.sin(2.4 * at) * (0.3 + 0.06 * at), 3) for at in range(len(words))],
        "delta": 2.1e-4,
        "deletion": {"k": 3, "top": 1.7, "random": 0.4, "draws": 8},
    }


SECTIONS = [
    {
        "title": "Elastic weights",
        "text": ["The penalty holds the weights near those of the first stage."],
        "table": {"block": [0, 1, 2], "mean F": [0.0012, 0.0034, 2.3e-5], "kind": ["a", "b", "c"]},
        "charts": [
            {
                "kind": "lines",
                "title": "Penalty",
                "series": {"l2": [[1, 0.2], [2, 0.4], [3, 0.3]]},
                "x_label": "stage",
                "y_label": "penalty",
            },
            {
                "kind": "points",
                "title": "Weights",
                "series": {"a": [[0.1, 3], [0.4, 1]], "b": [[0.2, 2], [0.6, 2.5]]},
            },
            {
                "kind": "bars",
                "title": "Rows kept",
                "series": {"kept": [[0, 12], [1, 30]], "dropped": [[0, 3], [1, 9]]},
                "labels": ["sentiment", "spelling"],
                "y_label": "rows",
            },
            {
                "kind": "heatmap",
                "title": "Fisher",
                "labels": ["q", "v"],
                "columns": ["block 0", "block 1"],
                "values": [[0.1, None], [0.7, 0.3]],
            },
        ],
    }
]
