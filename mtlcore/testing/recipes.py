"""A small recipe of three tasks of different kinds and sizes, on rows of the demo."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

import mtlcore.demo

ROWS = {"sentiment": 40, "spelling": 24, "definitions": 12}
"""Train rows of each task."""


def write_tiny_recipe(folder: Path, model: Path, **changes: str) -> Path:
    """Write recipe.yaml and its data into `folder`; `changes` replace whole top-level parts."""
    demo = Path(mtlcore.demo.__file__).parent / "data"
    for task, count in ROWS.items():
        for split, rows in (("train", count), ("dev", 6), ("test", 6)):
            with (demo / task / f"{split}.jsonl").open(encoding="utf-8") as file:
                lines = list(itertools.islice(file, rows))
            path = folder / f"{task}.{split}.jsonl"
            path.write_text("".join(lines), encoding="utf-8")
    parts = {
        "tasks": TASKS,
        "lora": "{r: 4, lora_alpha: 8, lora_dropout: 0.1}",
        "sharing": "{shared: 4, own: 2}",
        "weighting": "pcgrad",
        "sampling": "{name: temperature, temperature: 2.0}",
        "regularization": "[{name: l2_anchor, strength: 0.01}]",
        "training": f"""
  output_dir: {folder / "run"}
  max_steps: 6
  per_device_train_batch_size: 6
  learning_rate: 5e-3
  max_length: 96
  save_steps: 2
  save_total_limit: 10
  logging_steps: 1""",
        **changes,
    }
    text = f"model: {{name_or_path: {model}}}\n"
    text += "".join(f"{key}: {value}\n" for key, value in parts.items())
    recipe = folder / "recipe.yaml"
    recipe.write_text(text, encoding="utf-8")
    return recipe


def override_recipe(recipe: Path, overrides: Iterable[str]) -> None:
    """Write ``key=value`` overrides, as the command line takes them, into a recipe file."""
    from mtlcore.recipe_file import read_recipe, write_recipe

    write_recipe(read_recipe(recipe, overrides).recipe, recipe)


TASKS = """
  sentiment:
    train: sentiment.train.jsonl
    eval: sentiment.dev.jsonl
    test: sentiment.test.jsonl
    format: {name: classification, labels: [negative, positive], \
template: "Review: {{ text }}\\nSentiment:"}
    metrics: [accuracy, macro_f1]
  spelling:
    train: spelling.train.jsonl
    eval: spelling.dev.jsonl
    test: spelling.test.jsonl
    format: {name: prompt_completion, template: "Correct: {{ text }}\\nCorrected:"}
    columns: {completion: corrected}
    metrics: [exact_match]
    generation: {max_new_tokens: 6}
    loss_weight: 2.0
  definitions:
    train: definitions.train.jsonl
    eval: definitions.dev.jsonl
    test: definitions.test.jsonl
    format: {name: prompt_completion, template: "Define {{ word }}:"}
    columns: {completion: gloss}
    metrics: [rouge_l]
    generation: {max_new_tokens: 6}
"""
