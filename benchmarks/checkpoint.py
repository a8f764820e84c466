"""What a checkpoint costs: `python -m benchmarks.checkpoint`.

A Llama of 30 layers (hidden 256) with LoRA on all linear layers and AdamW, at 1, 10 and 40 million
adapter weights. All variants save the same adapter weights and both moments of each.

    wait        ours: how long the step loop stands still; the rest is done beside the next steps
    ours        ours until all is on the disk: copied, written, hashed, synced, renamed
    plain       safetensors' `save_file` of the same tensors, neither hashed nor synced
    hf          `Trainer.save_model` and its optimizer and scheduler, not synced
    torch       `torch.save` of the same tensors, not synced

    resume      ours: verify every file, and load its tensors
    plain_load  safetensors' `load_file` of the same files; pages are read when they are used
    hf_load     what HF loads: the adapter, and the optimizer by `torch.load(weights_only=True)`
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    TrainingArguments,
)
from transformers import Trainer as HfTrainer

from benchmarks.harness import Result, interleave, main, ratios, result
from mtlcore import api, checkpoint
from mtlcore.checkpoint_store import ADAPTERS, COMPONENTS, OPTIMIZER, checkpoints, open_checkpoint
from mtlcore.demo.tiny import TOKENIZER
from mtlcore.recipe_file import recipe_from_mapping

RANKS = {"1M": 7, "10M": 68, "40M": 273}  # 146,400 weights per rank
ROUNDS = {"1M": 15, "10M": 9, "40M": 5}
TARGET = 1.2  # wait / plain
RATE = 1e-4


class Case:
    """A training of ours and one of HF's, after their first step."""

    def __init__(self, name: str, folder: Path, model: Path) -> None:
        self.name, self.folder, rank = name, folder, RANKS[name]
        folder.mkdir()
        rows = folder / "rows.jsonl"
        rows.write_text(json.dumps({"text": "one row to train on"}) + "\n", encoding="utf-8")
        recipe = {
            "model": str(model),
            "tasks": {"one": {"train": str(rows), "format": "text", "split": {"eval": 0}}},
            "lora": {"r": rank},
            "training": {
                "output_dir": str(folder / "ours"),
                "max_steps": 1,
                "per_device_train_batch_size": 1,
                "learning_rate": RATE,
            },
        }
        self.trainer = api.prepare(recipe_from_mapping(recipe))
        self.trainer.train_step()
        self.hf = self._hf_trainer(model, rank)
        self.plain = {key: value.clone() for key, value in self._tensors().items()}
        self.variants: dict[str, Callable[[], None]] = {
            "wait": self.begin,
            "ours": self.save,
            "plain": self.save_plain,
            "hf": self.save_hf,
            "torch": self.save_torch,
        }
        self.loads: dict[str, Callable[[], None]] = {
            "resume": self.resume,
            "plain_load": self.load_plain,
            "hf_load": self.load_hf,
        }

    def _hf_trainer(self, model: Path, rank: int) -> HfTrainer:
        network = AutoModelForCausalLM.from_pretrained(model)
        adapted = get_peft_model(network, LoraConfig(r=rank, target_modules="all-linear"))
        ids = AutoTokenizer.from_pretrained(model)("one row to train on").input_ids
        trainer = HfTrainer(
            adapted,
            TrainingArguments(
                str(self.folder / "hf"), max_steps=1, report_to=[], save_strategy="no",
                per_device_train_batch_size=1, use_cpu=True, learning_rate=RATE,
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list([{"input_ids": ids, "labels": ids}]),
        )  # fmt: skip
        trainer.train()
        return trainer

    def _tensors(self) -> dict[str, Tensor]:
        found = checkpoint.snapshot(self.trainer).tensors
        return {f"{file}/{key}": value for file in found for key, value in found[file].items()}

    # -- saving -------------------------------------------------------------------------------

    def begin(self) -> None:
        """The step loop's part; what was written before is on the disk already."""
        self.trainer.run.step += 1
        self.trainer.save()

    def save(self) -> None:
        self.begin()
        self.trainer.writer.wait()

    def save_plain(self) -> None:
        save_file(self.plain, self.folder / "plain.safetensors")

    def save_hf(self) -> None:
        target = self.folder / "hf-saved"
        self.hf.save_model(str(target))
        self.hf._save_optimizer_and_scheduler(str(target))

    def save_torch(self) -> None:
        torch.save(self.plain, self.folder / "plain.pt")

    # -- loading ------------------------------------------------------------------------------

    @property
    def newest(self) -> Path:
        return checkpoints(self.trainer.run.folder)[-1]

    def resume(self) -> None:
        found = open_checkpoint(self.newest)
        for file in (ADAPTERS, OPTIMIZER, COMPONENTS):
            _read(found.tensors(file))

    def load_plain(self) -> None:
        _read(load_file(self.folder / "plain.safetensors"))

    def load_hf(self) -> None:
        target = self.folder / "hf-saved"
        _read(load_file(target / "adapter_model.safetensors"))
        state = torch.load(target / "optimizer.pt", weights_only=True)["state"]
        _read({f"{i}.{key}": value for i, m in state.items() for key, value in m.items()})

    # -- what is compared ---------------------------------------------------------------------

    def check(self) -> None:
        """All variants hold the same number of weights and moments, and ours come back."""
        self.save()
        self.save_hf()
        saved = open_checkpoint(self.newest)
        for file, tensors in checkpoint.snapshot(self.trainer).tensors.items():
            loaded = saved.tensors(file)
            assert loaded.keys() == tensors.keys(), f"{self.name}: {file} has other names"
            for key, value in tensors.items():
                assert torch.equal(loaded[key], value), f"{self.name}: {file} {key} differs"
        ours = sum(value.numel() for value in saved.tensors(ADAPTERS).values())
        theirs = load_file(self.folder / "hf-saved" / "adapter_model.safetensors")
        count = sum(value.numel() for value in theirs.values())
        assert ours == count == RANKS[self.name] * 146_400, f"{self.name}: {ours} and {count}"

    def results(self, rounds: int) -> list[Result]:
        """Times of all variants in turn, and sizes."""
        times = interleave(self.variants, rounds, settle=self.trainer.writer.wait)
        times |= interleave(self.loads, rounds)
        compared = {
            "wait": ["plain", "hf"],
            "ours": ["plain", "hf", "torch"],
            "resume": ["plain_load", "hf_load"],
        }
        found = [
            result(
                self.name,
                f"{mine} / {rival}",
                ratios(times, mine, rival),
                "ratio",
                target=TARGET if (mine, rival) == ("wait", "plain") else None,
            )
            for mine, rivals in compared.items()
            for rival in rivals
        ]
        found += [
            result(self.name, name, [1e3 * value for value in values], "ms")
            for name, values in times.items()
        ]
        sizes = {"ours": self.newest, "hf": self.folder / "hf-saved"}
        return found + [
            result(self.name, f"size of {name}", [_megabytes(path)], "MB")
            for name, path in sizes.items()
        ]


def _read(tensors: dict[str, Tensor]) -> None:
    """Touch every page: a mapped file is read only then."""
    for value in tensors.values():
        value.sum()


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.iterdir()) / 1e6


def _model(folder: Path) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=688, num_hidden_layers=30,
        num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _each_case(sizes: Sequence[str], what: Callable[[Case], list[Result]]) -> list[Result]:
    found = []
    with tempfile.TemporaryDirectory() as root:
        model = _model(Path(root) / "model")
        for name in sizes:
            with contextlib.redirect_stdout(sys.stderr):  # what the trainers say
                case = Case(name, Path(root) / name, model)
            found += what(case)
            shutil.rmtree(case.folder)
    return found


def check(sizes: Sequence[str]) -> None:
    """Every variant saves the same weights, and ours are read back."""

    def checked(case: Case) -> list[Result]:
        case.check()
        return []

    _each_case(sizes, checked)


def run(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--sizes", nargs="*", default=list(RANKS), help="adapter weights")
    parser.add_argument("--rounds", type=int, help="default: fewer for larger sizes")
    options, rest = parser.parse_known_args(argv)

    def measure() -> list[Result]:
        return _each_case(
            options.sizes, lambda case: case.results(options.rounds or ROUNDS[case.name])
        )

    main("checkpoint", lambda: check(options.sizes), measure, argv=rest)


if __name__ == "__main__":
    run()
