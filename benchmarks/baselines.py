"""Five single-task models in one run, beside five runs: `python -m benchmarks.baselines`.

A step = forward, task losses, backward, clipping, AdamW; the base model is loaded in all. Every
token is labelled and all rows are equally long, so nobody gains from padding.

    together   ours: T adapters side by side, one batch with the rows of all tasks
    separate   ours: T models of one adapter each, a step of each, one after the other
"""

from __future__ import annotations

import argparse
import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.harness import Result, interleave, main, ratios, result
from benchmarks.step import TINY, Size
from mtlcore.data.batches import Batch
from mtlcore.gradients import Gradients
from mtlcore.model.backbone import MultiTaskModel
from mtlcore.model.layout import Layout, row_segments
from mtlcore.recipe import LoraRecipe, SharingRecipe

TASKS = 5
ROWS = (1, 8)  # per task
TARGETS = {1: 0.7, 8: 1.05}  # together / separate
ROUNDS = 15
MAX_NORM = 0.1  # below the norms of all tasks, so that clipping has work
STEPS = 3  # of the check
TOLERANCE = 1e-9  # float64, absolute; measured: at most 1e-15


class Trained:
    """Some tasks' own adapters on one model, with what a training step needs."""

    def __init__(
        self, backbone: PreTrainedModel, names: Sequence[str], size: Size, batch: Batch
    ) -> None:
        lora = LoraRecipe.model_validate({"r": size.r, "lora_alpha": 2 * size.r})
        layout = Layout.build(names, lora, SharingRecipe(shared=0, own=size.r))
        self.model = MultiTaskModel(backbone, layout, lora)
        assert self.model.try_flat(), self.model.flat_problem
        self.batch = batch
        self.gradients = Gradients(self.model, [1.0] * len(names))
        parameters = [parameter for _, parameter in self.model.trainable_parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)

    def step(self) -> None:
        """As the trainer's, where no task shares a weight with another."""
        gradients = self.gradients
        gradients.start(self.batch.counts)
        gradients.backward(self.model(self.batch).loss_sums)
        gradients.finish()
        gradients.apply(None)
        gradients.clip(MAX_NORM)
        self.optimizer.step()

    def weights(self) -> dict[str, Tensor]:
        return self.model.adapter_state()


class Case:
    """T tasks with so many rows each: one model for all, and one for each."""

    def __init__(self, rows: int, size: Size, dtype: torch.dtype = torch.float32) -> None:
        self.rows, self.name = rows, f"T={TASKS} {rows}x{size.length}"
        torch.manual_seed(0)
        backbone = LlamaForCausalLM(_config(size)).to(dtype)
        if dtype == torch.float64:
            _exact_norms(backbone)
        names = [f"task{task}" for task in range(TASKS)]
        inputs = torch.randint(size.vocabulary, (TASKS, rows, size.length))
        labels = torch.randint(size.vocabulary, inputs.shape)
        self.separate = [
            Trained(copy.deepcopy(backbone), [name], size, _batch(inputs[[t]], labels[[t]]))
            for t, name in enumerate(names)
        ]
        self.together = Trained(backbone, names, size, _batch(inputs, labels))
        self.variants: dict[str, Callable[[], None]] = {
            "together": self.together.step,
            "separate": self.step_separate,
        }

    def step_separate(self) -> None:
        for trained in self.separate:
            trained.step()

    def check(self) -> None:
        """After some steps the adapters of each task are those of its own run."""
        before = {name: value.clone() for name, value in self.together.weights().items()}
        for _ in range(STEPS):
            for step in self.variants.values():
                step()
        found = self.together.weights()
        seen = 0
        for trained in self.separate:
            for name, expected in trained.weights().items():
                error = float((found[name] - expected).abs().max())
                assert error <= TOLERANCE, f"{self.name}: {name} is {error:.1e} off"
                assert not torch.equal(before[name], expected), f"{self.name}: {name} did not move"
                seen += 1
        assert seen == len(found), f"{self.name}: {len(found) - seen} weights belong to nobody"


def _config(size: Size) -> LlamaConfig:
    config = size.config()
    config.initializer_range = 0.05  # large enough that gradients exceed MAX_NORM
    return config


def _exact_norms(backbone: PreTrainedModel) -> None:
    """Norms without the library's casts to fp32, which hide errors below 1e-7."""

    def forward(module: torch.nn.Module, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)
        return module.weight * x * scale  # type: ignore[operator]

    for module in backbone.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = functools.partial(forward, module)  # type: ignore[method-assign]


def _batch(inputs: Tensor, labels: Tensor) -> Batch:
    """[tasks, rows, length] as a flat batch with every position labelled."""
    tasks, rows, length = inputs.shape
    of_row = torch.arange(tasks).repeat_interleave(rows)
    return Batch(
        examples=(),
        rows=row_segments(of_row.tolist()),
        input_ids=inputs.reshape(1, -1),
        position_ids=torch.arange(length).repeat(tasks * rows)[None],
        attention_mask=None,
        row_lengths=(length,) * (tasks * rows),
        label_index=torch.arange(inputs.numel()),
        labels=labels.flatten(),
        label_rows=torch.arange(tasks * rows).repeat_interleave(length),
        label_tasks=of_row.repeat_interleave(length),
        counts=(rows * length,) * tasks,
        tokens=(rows * length,) * tasks,
    )


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """One at a time."""
    for rows in ROWS:
        yield Case(rows, TINY if options.tiny else Size())


def check() -> None:
    for rows in ROWS:
        Case(rows, replace(TINY, length=8), torch.float64).check()


def measure(options: argparse.Namespace) -> list[Result]:
    return [one for case in cases(options) for one in time_case(case, options.rounds)]


def time_case(case: Case, rounds: int) -> list[Result]:
    """Milliseconds of a step of all tasks, and one run's time over that of the separate ones."""
    times = interleave(case.variants, rounds)
    results = [
        result(case.name, name, [1000 * value for value in seconds], "ms")
        for name, seconds in times.items()
    ]
    share = ratios(times, "together", "separate")
    target = TARGETS[case.rows]
    return [*results, result(case.name, "together / separate", share, "x", target=target)]


def run(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.baselines",
        epilog="--json and --record: see benchmarks/harness.py",
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--tiny", action="store_true", help="a very small model: a smoke test")
    options, rest = parser.parse_known_args(argv)
    main("baselines", check, functools.partial(measure, options), argv=rest)


if __name__ == "__main__":
    run()
