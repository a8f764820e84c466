"""A small tokenizer and small tasks, made in memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mtlcore.data.example import IGNORED, Example
from mtlcore.data.tasks import Task, load_tasks
from mtlcore.plugins import PluginManager
from mtlcore.recipe import Recipe

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
LINES = (
    "the film was good and the actors were good",
    "the film was bad and nobody laughed",
    "translate this sentence into French: the house is red",
    "label: positive\nlabel: negative\nLabel: neutral",
)


@cache
def small_tokenizer(*, bos: bool = True, adds_eos: bool = False, eos: bool = True) -> Any:
    """A byte-level BPE tokenizer with a chat template; treat it as read-only."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>" if adds_eos else "<s> $A",
            special_tokens=[("<s>", 1), ("</s>", 2)],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>" if bos else None,
        eos_token="</s>" if eos else None,
        chat_template=CHAT_TEMPLATE,
    )


def learned_text(example: Example, tokenizer: Any) -> str:
    """The text of the tokens that are trained on."""
    return str(tokenizer.decode([label for label in example.labels if label != IGNORED]))


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load(
    tasks: Mapping[str, Mapping[str, Any]],
    *,
    tokenizer: Any = None,
    splits: Sequence[str] = ("train", "eval", "test"),
    **training: Any,
) -> list[Task]:
    """The tasks of a recipe that has only tasks and training options."""
    recipe = Recipe.model_validate(
        {"model": {"name_or_path": "none"}, "tasks": tasks, "training": training}
    )
    plugins = PluginManager.load(environ={})
    return load_tasks(recipe, tokenizer or small_tokenizer(), plugins, splits=splits)


def torchrun(
    script: Path, *arguments: object, check: bool = True, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run a script, which may import `tests`, in two processes of one thread each."""
    root = str(Path(__file__).parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         str(script), *map(str, arguments)],
        check=False, timeout=300, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environ},
    )  # fmt: skip
    assert not (check and done.returncode), done.stderr
    return done
