"""Rows per second of training beside Hugging Face: `python -m benchmarks.throughput`.

The demo's model and rows, 16 rows a step, float32, AdamW, all-linear LoRA of rank 16; nothing is
evaluated, saved or logged in between. In a run every variant trains on the same tokenised rows:

    single       ours: one shared adapter, equal weights
    everything   ours: shared 16 + own 8 of each task, PCGrad
    hf_default   Trainer and PEFT: the same rows in every step, padded to the longest of the step
    hf_grouped   the same with `group_by_length`, all rows of the run being one of its mega-batches

`hf_grouped` is the order that transformers makes, its steps dealt to the rounds so that each round
has long and short rows. Hugging Face's clock starts at the first step, with its first batch ready.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForSeq2Seq,
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
)
from transformers import Trainer as HFTrainer
from transformers.trainer_pt_utils import get_length_grouped_indices

from benchmarks import large_set
from benchmarks.harness import Result, interleave, main, ratios, result, seconds
from benchmarks.step import TOLERANCE, as_ours, by_factor, compare
from mtlcore.data.batches import collate, plan_rows
from mtlcore.data.example import Example
from mtlcore.demo.model import fetch_model
from mtlcore.demo.run import RECIPE
from mtlcore.demo.tiny import make_tiny_model
from mtlcore.recipe import Recipe
from mtlcore.recipe_file import read_recipe
from mtlcore.run import Run
from mtlcore.trainer import Trainer

Step = list[Example]

CASES = {"demo": "demo, 16 rows a step", "long": "demo and BoolQ, 16 rows a step"}
LONG = large_set.NAMES[:6]  # the demo's five, with more rows, and BoolQ
STEPS, ROUNDS, ROWS = 4, 10, 16  # steps of each variant in a round, rounds, rows of a step
OURS = {
    "single": ("sharing=null", "weighting=equal"),
    "everything": ("sharing={shared: 16, own: 8}", "weighting=pcgrad"),
}
TARGETS = {
    ("single", "hf_default"): 3.0,
    ("single", "hf_grouped"): 1.6,
    ("everything", "hf_default"): 2.5,
    ("everything", "hf_grouped"): None,
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SYNCHRONIZE = torch.cuda.synchronize if DEVICE == "cuda" else None


def quiet_run(recipe: Recipe, folder: Path) -> Run:
    """A run whose notes go to stderr: stdout is for the JSON line."""
    with contextlib.redirect_stdout(sys.stderr):
        return Run(recipe, folder)


class Rivals:
    """Our two trainers, and Hugging Face's on a PEFT model that starts as `single` does."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.steps, self.rounds, self.folder = options.steps, options.rounds, folder
        model = make_tiny_model(folder / "tiny") if options.tiny else fetch_model()
        total = 1 + self.steps * self.rounds  # the first step warms up
        self.case = CASES["long" if options.long else "demo"]
        common = (
            *([f"tasks={json.dumps(large_set.tasks(LONG))}"] if options.long else ()),
            f"model.name_or_path={model}",
            "model.dtype=float32",
            f"training.per_device_train_batch_size={ROWS}",
            f"training.max_steps={total}",
            f"training.output_dir={folder / 'run'}",
        )
        self.trainers = {
            name: Trainer(quiet_run(read_recipe(RECIPE, [*common, *changes]).recipe, folder / name))
            for name, changes in OURS.items()
        }
        single = self.trainers["single"].run
        randomize_b(single)
        adapter = single.export(folder / "adapter", shared=True)
        backbone = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self.peft = PeftModel.from_pretrained(backbone, adapter, is_trainable=True)
        self.peft.to(single.device)
        self.collator = DataCollatorForSeq2Seq(single.tokenizer)
        self.warmup, *self.planned = planned(single, total)
        self.rows = {
            "hf_default": [
                self.planned[start : start + self.steps]
                for start in range(0, total - 1, self.steps)
            ],
            "hf_grouped": dealt(grouped_by_length(self.planned), self.rounds),
        }

    def check(self) -> None:
        """Same rows, same number of weights, same loss and gradient over all labelled tokens."""
        single, everything = (self.trainers[name].run for name in OURS)
        assert planned(single, 1) == planned(everything, 1), "the runs draw different rows"
        ids = sorted(rows_of(self.planned))
        for name, rounds in self.rows.items():
            assert sorted(rows_of(step for steps in rounds for step in steps)) == ids, name
        ours = sum(p.numel() for _, p in single.model.trainable_parameters())
        theirs = sum(p.numel() for p in self.peft.parameters() if p.requires_grad)
        assert ours == theirs, f"{ours} trainable weights, PEFT has {theirs}"
        self.compare(self.warmup)
        self.compare(self.rows["hf_grouped"][0][0])

    def compare(self, step: Step) -> None:
        """The mean loss of all labelled tokens and its gradient, as `single` and PEFT have them."""
        run, gradients = self.trainers["single"].run, self.trainers["single"].gradients
        tasks = [run.task(example.task).index for example in step]
        batch = collate(step, tasks, len(run.tasks), flat=run.model.flat, device=run.device)
        gradients.start(batch.counts)
        outputs = run.model(batch)
        gradients.backward(outputs.loss_sums)
        gradients.finish()
        share = torch.tensor(batch.counts, device=run.device) / sum(batch.counts)  # [T]
        update = share[gradients.present] @ gradients.rows()  # of all tasks counted as one: [P]
        found = by_factor(update, [slot.parameter for slot in gradients.arena.slots])

        loss = self.peft(**self.collator(features(step)).to(run.device)).loss
        parameters = dict(self.peft.named_parameters())
        factors = [
            parameters[f"base_model.model.{layer}.{factor}.default.weight"]
            for layer in run.model.layers
            for factor in ("lora_A", "lora_B")
        ]
        expected = as_ours(torch.autograd.grad(loss, factors))
        for up in expected[1::2]:
            up *= run.model.layout.adapters[0].scale  # an exported B has the scale in it
        ours, theirs = outputs.loss_sums.sum().item() / sum(batch.counts), loss.item()
        error = abs(ours / theirs - 1)
        assert error <= TOLERANCE, f"loss {ours} of ours, {theirs} of Hugging Face"
        compare("the gradient of the loss", found, expected)

    def measure(self) -> list[Result]:
        for trainer in self.trainers.values():
            trainer.train_step()
        self.train_hugging_face([self.warmup])
        times: dict[str, list[float]] = {name: [] for name in (*OURS, *self.rows)}
        variants = {
            **{name: functools.partial(self.time_ours, name, times[name]) for name in OURS},
            **{name: functools.partial(self.time_hf, name, times[name]) for name in self.rows},
        }
        # Its own times are left: they hold the set-up of each Trainer of Hugging Face.
        interleave(variants, self.rounds, warmup=0)
        return self.results(times)

    def time_ours(self, name: str, times: list[float]) -> None:
        def train() -> None:
            for _ in range(self.steps):
                self.trainers[name].train_step()

        times.append(seconds(train, SYNCHRONIZE))

    def time_hf(self, name: str, times: list[float]) -> None:
        times.append(self.train_hugging_face(self.rows[name][len(times)]))

    def train_hugging_face(self, steps: Sequence[Step]) -> float:
        """Train so many steps of given rows -> seconds from the first one's begin to the end."""
        ours = self.trainers["single"].recipe
        arguments = TrainingArguments(
            output_dir=str(self.folder / "hugging_face"),
            per_device_train_batch_size=ROWS,
            max_steps=len(steps),
            learning_rate=ours.learning_rate,
            weight_decay=ours.weight_decay,
            max_grad_norm=ours.max_grad_norm,
            train_sampling_strategy="sequential",  # the rows come in the order that is wanted
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=DEVICE == "cuda",
        )
        stopwatch = Stopwatch()
        trainer = HFTrainer(
            model=self.peft,
            args=arguments,
            data_collator=self.collator,
            train_dataset=[row for step in steps for row in features(step)],
            callbacks=[stopwatch],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        assert stopwatch.steps == len(steps)
        return stopwatch.elapsed

    def results(self, times: dict[str, list[float]]) -> list[Result]:
        case = self.case
        rounds = dict.fromkeys(OURS, self.rows["hf_default"]) | self.rows
        results = []
        for name, values in times.items():
            rows = [self.steps * ROWS / value for value in values]
            tokens = [
                sum(map(tokens_of, steps)) / value
                for steps, value in zip(rounds[name], values, strict=True)
            ]
            results += [
                result(case, f"{name} rows", rows, "rows/s"),
                result(case, f"{name} tokens", tokens, "tokens/s"),
            ]
        for name in self.rows:
            padded = [
                sum(map(padded_tokens_of, steps)) / sum(map(tokens_of, steps))
                for steps in rounds[name]
            ]
            results.append(result(case, f"{name} tokens with padding / without", padded, "x"))
        for (ours, theirs), target in TARGETS.items():
            speedups = ratios(times, theirs, ours)
            results.append(
                result(
                    case, f"{ours} / {theirs}", speedups, "x", target=target, higher_is_better=True
                )
            )
        return results


class Stopwatch(TrainerCallback):
    """Seconds from the begin of the first step to the end of the last one."""

    def __init__(self) -> None:
        self.steps = 0
        self.start: float | None = None
        self.elapsed = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if self.start is None:
            self.start = self.now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        assert self.start is not None
        self.steps += 1
        self.elapsed = self.now() - self.start

    def now(self) -> float:
        if SYNCHRONIZE:
            SYNCHRONIZE()
        return time.perf_counter()


def randomize_b(run: Run) -> None:
    """Make B non-zero: with zeros A would have no gradient."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in run.model.layers.values():
            for up in layer.lora_B.values():
                up.copy_(0.01 * torch.randn(up.shape, generator=draw))


def planned(run: Run, steps: int) -> list[Step]:
    """The rows of the next steps; the run is left as it was."""
    drawn = list(run.rows_drawn)
    found = [plan_rows(run, run.step + step) for step in range(steps)]
    run.rows_drawn[:] = drawn
    return found


def grouped_by_length(steps: Sequence[Step]) -> list[Step]:
    """The same rows in the order of transformers' `group_by_length`: long steps first."""
    rows = [example for step in steps for example in step]
    order = get_length_grouped_indices(
        [len(example.input_ids) for example in rows],
        ROWS,
        mega_batch_mult=len(steps),
        generator=torch.Generator().manual_seed(0),
    )
    return [[rows[i] for i in order[start : start + ROWS]] for start in range(0, len(rows), ROWS)]


def dealt(steps: Sequence[Step], rounds: int) -> list[list[Step]]:
    """Deal steps to rounds there and back: 0 1 2 2 1 0 0 ..."""
    hands: list[list[Step]] = [[] for _ in range(rounds)]
    for turn, start in enumerate(range(0, len(steps), rounds)):
        receivers = hands[::-1] if turn % 2 else hands
        for hand, step in zip(receivers, steps[start : start + rounds], strict=True):
            hand.append(step)
    return hands


def rows_of(steps: Any) -> list[tuple[str, int]]:
    return [(example.task, example.row) for step in steps for example in step]


def features(step: Step) -> list[dict[str, list[int]]]:
    return [{"input_ids": list(e.input_ids), "labels": list(e.labels)} for e in step]


def tokens_of(step: Step) -> int:
    return sum(len(example.input_ids) for example in step)


def padded_tokens_of(step: Step) -> int:
    return len(step) * max(len(example.input_ids) for example in step)


def run(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput",
        epilog="--json and --record: see benchmarks/harness.py",
    )
    parser.add_argument("--steps", type=int, default=STEPS, help="of each variant in a round")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--long",
        action="store_true",
        help="the larger set, with BoolQ (made by python -m mtlcore.demo.build_data --large)",
    )
    parser.add_argument("--tiny", action="store_true", help="a very small model: a smoke test")
    options, rest = parser.parse_known_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        rivals = functools.cache(lambda: Rivals(options, Path(folder)))
        main(
            "throughput",
            lambda: rivals().check(),
            lambda: rivals().measure(),
            device=DEVICE,
            argv=rest,
        )


if __name__ == "__main__":
    run()
