"""What the Fisher diagonal costs beside a plain pass: `python -m benchmarks.fisher`.

A random Llama with LoRA of rank 8 on every linear layer, rows of four tasks, the second half of
each row labelled. All variants read the same batches, without dropout:

    plain_autograd   forward, backward of the mean loss by ordinary autograd
    plain_folded     the same by segments of tasks, as a training step whose weights are known
    fisher           forward and backward with every row as a segment, squared and added as it comes
    per_row          the same numbers by a forward and a backward for each row

`plain` is the faster of the first two. With `--demo-model` the model is that of the demo.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from benchmarks.harness import Result, interleave, main, ratios, result
from benchmarks.step import TINY, Size, compare
from mtlcore.data.batches import Batch, collate
from mtlcore.data.example import IGNORED, Example
from mtlcore.fisher import Mode, squared_gradients
from mtlcore.gradients import Gradients
from mtlcore.model.backbone import MultiTaskModel
from mtlcore.model.layout import Layout
from mtlcore.recipe import LoraRecipe

TASKS = 4
CASES = {"32 rows of 64": (32, 64, 64), "32 rows of 8-64": (32, 8, 64), "64 rows of 8": (64, 8, 8)}
ROUNDS = 5
TARGET = 1.4  # fisher / plain
MODES: tuple[Mode, Mode] = ("one_pass", "per_row")


class Case:
    """One batch of rows, and the variants on it."""

    def __init__(self, name: str, size: Size, *, demo: bool = False) -> None:
        self.name = name
        count, shortest, longest = CASES[name]
        torch.manual_seed(0)
        backbone = _demo_model() if demo else LlamaForCausalLM(size.config())
        lora = LoraRecipe.model_validate({"r": size.r, "lora_alpha": 2 * size.r})
        layout = Layout.build([f"task{task}" for task in range(TASKS)], lora, None)
        self.model = MultiTaskModel(backbone, layout, lora).eval()
        assert self.model.try_flat(), self.model.flat_problem
        with torch.no_grad():
            for key, weight in self.model.trainable_parameters():
                if ".lora_B." in key:
                    weight.normal_(std=0.1)
        limit = size.length
        lengths = torch.randint(min(shortest, limit), min(longest, limit) + 1, (count,)).tolist()
        vocabulary = backbone.config.vocab_size
        rows = [_row(row, length, vocabulary) for row, length in enumerate(lengths)]
        self.batch: Batch = collate(rows, [row % TASKS for row in range(count)], TASKS)
        self.gradients = Gradients(self.model, [1.0] * TASKS, mode="one_pass")
        self.variants: dict[str, Callable[[], object]] = {
            "plain_autograd": self.plain_autograd,
            "plain_folded": self.plain_folded,
            "fisher": functools.partial(self.fisher, MODES[0]),
            "per_row": functools.partial(self.fisher, MODES[1]),
        }

    def plain_autograd(self) -> None:
        for _, weight in self.model.trainable_parameters():
            weight.grad = None
        (self.model(self.batch).loss_sums.sum() / sum(self.batch.counts)).backward()
        self.model.routing.leave()

    def plain_folded(self) -> None:
        self.gradients.start(self.batch.counts)
        equal = torch.full((TASKS,), 1 / TASKS, dtype=torch.float64)
        self.gradients.backward(self.model(self.batch).loss_sums, equal)
        self.gradients.finish()
        self.gradients.apply(None)

    def fisher(self, mode: Mode) -> dict[str, Tensor]:
        return squared_gradients(self.model, [self.batch], mode=mode)

    def check(self) -> None:
        """One pass gives what the rows one by one give."""
        found, expected = (list(self.fisher(mode).values()) for mode in MODES)
        compare(f"{self.name}: fisher", found, expected)
        assert all(bool(value.any()) for value in expected), f"{self.name}: nothing was measured"


def _row(row: int, length: int, vocabulary: int) -> Example:
    ids = tuple(torch.randint(vocabulary, (length,)).tolist())
    prompt = length // 2
    return Example(
        task=f"task{row % TASKS}",
        row=row,
        prompt="",
        target="",
        input_ids=ids,
        labels=(IGNORED,) * prompt + ids[prompt:],
        prompt_length=prompt,
    )


def _demo_model() -> LlamaForCausalLM:
    from mtlcore.demo.model import fetch_model

    model: LlamaForCausalLM = AutoModelForCausalLM.from_pretrained(
        fetch_model(), dtype=torch.float32
    )
    return model


def cases(options: argparse.Namespace) -> Iterator[Case]:
    for name in CASES:
        yield Case(name, TINY if options.tiny else Size(), demo=options.demo_model)


def check(options: argparse.Namespace) -> None:
    for case in cases(options):
        case.check()


def measure(options: argparse.Namespace) -> list[Result]:
    return [one for case in cases(options) for one in time_case(case, options.rounds)]


def time_case(case: Case, rounds: int) -> list[Result]:
    """Milliseconds of each variant, and its time over that of `plain` in the same round."""
    times = interleave(case.variants, rounds)
    plain = min(
        ("plain_autograd", "plain_folded"), key=lambda name: result("", "", times[name], "").value
    )
    results = [result(case.name, f"plain is {plain}", [1], "")]
    for name, seconds in times.items():
        target = TARGET if name == "fisher" else None
        results += [
            result(case.name, name, [1000 * value for value in seconds], "ms"),
            result(case.name, f"{name} / plain", ratios(times, name, plain), "x", target=target),
        ]
    return results


def run(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fisher", epilog="--json and --record: see benchmarks/harness.py"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--tiny", action="store_true", help="a very small model: a smoke test")
    parser.add_argument("--demo-model", action="store_true", help="the model of the demo")
    options, rest = parser.parse_known_args(argv)
    main(
        "fisher",
        functools.partial(check, options),
        functools.partial(measure, options),
        argv=rest,
    )


if __name__ == "__main__":
    run()
