"""What per-task gradients cost beside a plain LoRA step: `python -m benchmarks.step`.

A step = zero the gradients, forward, task losses, gradient into `.grad`; no optimizer. Every token
is labelled and all rows are equally long, so nobody gains from padding or from unlabelled tokens:

    plain             mean of the task losses, one backward: the faster of PEFT's LoRA and ours
    one_pass_pcgrad   ours: J and G out of one backward, PCGrad
    separate_passes   PEFT: T forwards and backwards, each on one task's rows, PCGrad on J
    multi_pass        ours: one forward, T backwards through the graph, PCGrad
    torchjd_autojac   PEFT and TorchJD as its documentation says: autojac.backward, jac_to_grad
"""

from __future__ import annotations

import argparse
import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from torchjd import autojac
from torchjd.aggregation import PCGrad as TorchJDPCGrad
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.harness import Result, interleave, main, ratios, result
from mtlcore import ops
from mtlcore.data.batches import Batch
from mtlcore.gradients import Gradients, Mode
from mtlcore.model.backbone import MultiTaskModel
from mtlcore.model.layout import Layout, row_segments
from mtlcore.recipe import LoraRecipe
from mtlcore.testing import stand_in_run
from mtlcore_plugins.weighting.pcgrad import PCGrad

TASKS = (2, 4, 8)
ROWS = (8, 1)  # per task
ROUNDS = 15
SLOW = ("multi_pass", "torchjd_autojac")
SLOW_ROUNDS = 5  # of SLOW at T = 8 with 8 rows per task, where one step takes 10 to 20 s
TARGET = 1.08  # one_pass_pcgrad / plain
MODES: tuple[Mode, Mode] = ("one_pass", "multi_pass")
TOLERANCE = 1e-4  # fp32, relative per factor; measured: at most 1.2e-5


@dataclass(frozen=True)
class Size:
    """A random Llama, and the tokens of a row."""

    vocabulary: int = 8192
    hidden: int = 256
    mlp: int = 688
    layers: int = 6
    length: int = 64
    r: int = 8

    def config(self) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.mlp,
            num_hidden_layers=self.layers,
            num_attention_heads=4,
            max_position_embeddings=self.length,
        )


TINY = Size(vocabulary=97, hidden=32, mlp=48, layers=2, length=16, r=4)


class Case:
    """T tasks with so many rows each, and the same LoRA twice: in PEFT and in mtlcore."""

    def __init__(self, tasks: int, rows: int, size: Size) -> None:
        self.tasks, self.rows = tasks, rows
        self.name = f"T={tasks} {rows}x{size.length}"
        torch.manual_seed(0)
        backbone = LlamaForCausalLM(size.config())
        lora: dict[str, Any] = {
            "r": size.r,
            "lora_alpha": 2 * size.r,
            "target_modules": "all-linear",
        }
        self.peft: Any = get_peft_model(
            copy.deepcopy(backbone), LoraConfig(task_type="CAUSAL_LM", **lora)
        )
        recipe = LoraRecipe.model_validate(lora)
        layout = Layout.build([f"task{task}" for task in range(tasks)], recipe, None)
        self.ours = MultiTaskModel(backbone, layout, recipe)
        assert self.ours.try_flat(), self.ours.flat_problem
        self.peft_factors, self.our_factors = self._same_factors()
        self.inputs = torch.randint(size.vocabulary, (tasks * rows, size.length))
        # Each task has its own part of the vocabulary as labels, so that tasks conflict.
        part = size.vocabulary // tasks
        own = torch.arange(tasks).repeat_interleave(rows)[:, None]
        self.labels = torch.randint(part, self.inputs.shape) + part * own  # [T rows, length]
        self.batch = self._flat_batch()
        self.one_pass, self.multi_pass = (
            Gradients(self.ours, [1.0] * tasks, mode=mode) for mode in MODES
        )
        self.weighting = PCGrad()
        self.run = stand_in_run(dict.fromkeys(layout.task_names, 1))
        self.variants: dict[str, Callable[[], None]] = {
            "plain_peft": self.step_plain_peft,
            "plain_ours": self.step_plain_ours,
            "one_pass_pcgrad": functools.partial(self.step_gradients, self.one_pass),
            "separate_passes": self.step_separate_passes,
            "multi_pass": functools.partial(self.step_gradients, self.multi_pass),
            "torchjd_autojac": self.step_torchjd,
        }

    @torch.no_grad()
    def _same_factors(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """A0, B0, A1, B1, ... of PEFT (B [out, r]) and ours (B [r, out]), B made non-zero."""
        theirs: list[nn.Parameter] = []
        ours: list[nn.Parameter] = []
        for name, layer in self.ours.layers.items():
            other = self.peft.base_model.model.get_submodule(name)
            theirs += [other.lora_A["default"].weight, other.lora_B["default"].weight]
            ours += [layer.lora_A["shared"], layer.lora_B["shared"]]
            theirs[-1].normal_(std=0.1)
            ours[-2].copy_(theirs[-2])
            ours[-1].copy_(theirs[-1].t())
        return theirs, ours

    def _flat_batch(self) -> Batch:
        """The rows for our model: flat, every position labelled, the last one of a row too."""
        rows, length = self.inputs.shape
        tasks = torch.arange(self.tasks).repeat_interleave(self.rows)
        return Batch(
            examples=(),
            rows=row_segments(tasks.tolist()),
            input_ids=self.inputs.reshape(1, -1),
            position_ids=torch.arange(length).repeat(rows)[None],
            attention_mask=None,
            row_lengths=(length,) * rows,
            label_index=torch.arange(rows * length),
            labels=self.labels.flatten(),
            label_rows=torch.arange(rows).repeat_interleave(length),
            label_tasks=tasks.repeat_interleave(length),
            counts=(self.rows * length,) * self.tasks,
            tokens=(self.rows * length,) * self.tasks,
        )

    # -- the variants ---------------------------------------------------------------------------

    def step_plain_peft(self) -> None:
        zero(self.peft_factors)
        self.peft_losses(self.inputs, self.labels, self.tasks).mean().backward()

    def step_plain_ours(self) -> None:
        zero(self.our_factors)
        outputs = self.ours(self.batch)  # routing.sink is None: ordinary autograd
        (outputs.loss_sums / torch.tensor(outputs.counts)).mean().backward()
        self.ours.routing.leave()

    def step_gradients(self, gradients: Gradients) -> None:
        zero(self.our_factors)
        gradients.start(self.batch.counts)
        gradients.backward(self.ours(self.batch).loss_sums)
        gradients.finish()
        gradients.apply(self.weighting.mtlcore_weigh_tasks(self.run, gradients))

    def step_separate_passes(self) -> None:
        zero(self.peft_factors)
        jacobian = self.separate_jacobian()  # [T, P]
        gramian = ops.gramian(jacobian).double()
        gradients: Any = SimpleNamespace(gramian=lambda scope: gramian)
        weights = self.weighting.mtlcore_weigh_tasks(self.run, gradients)
        update = weights.to(jacobian) @ jacobian
        sizes = [factor.numel() for factor in self.peft_factors]
        for factor, part in zip(self.peft_factors, update.split(sizes), strict=True):
            factor.grad = part.view_as(factor)

    def step_torchjd(self, *, retain_jac: bool = False) -> None:
        zero(self.peft_factors)
        autojac.backward(self.peft_losses(self.inputs, self.labels, self.tasks))
        autojac.jac_to_grad(self.peft_factors, TorchJDPCGrad(), retain_jac=retain_jac)

    def peft_losses(self, inputs: Tensor, labels: Tensor, tasks: int) -> Tensor:
        """[tasks] mean loss of equally many rows of each task."""
        logits = self.peft(input_ids=inputs, use_cache=False).logits  # [rows, length, V]
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        return losses.view(tasks, -1).mean(1)

    def separate_jacobian(self) -> Tensor:
        """J [T, P]: a forward and a backward for each task, on its rows alone."""
        rows = []
        for inputs, labels in zip(
            self.inputs.split(self.rows), self.labels.split(self.rows), strict=True
        ):
            loss = self.peft_losses(inputs, labels, 1)[0]
            grads = torch.autograd.grad(loss, self.peft_factors)
            rows.append(torch.cat([grad.flatten() for grad in grads]))
        return torch.stack(rows)

    # -- the check ------------------------------------------------------------------------------

    def check(self) -> None:
        """All variants give the same gradient, and TorchJD's J is ours."""
        self.step_plain_peft()
        plain = self.peft_gradient()
        self.step_plain_ours()
        compare(f"{self.name}: plain_ours", self.our_gradient(), plain)

        self.variants["one_pass_pcgrad"]()
        found, J, G = self.our_gradient(), self.one_pass.rows(), self.one_pass.gramian()
        ours = by_factor(J, self.our_factors)
        compare(f"{self.name}: the mean of J", [factor.mean(0) for factor in ours], plain)
        assert (G < 0).any(), f"{self.name}: no task conflicts with another, PCGrad has no work"
        for name in ("separate_passes", "multi_pass"):
            self.variants[name]()
            other = self.peft_gradient() if name == "separate_passes" else self.our_gradient()
            compare(f"{self.name}: {name}", other, found)

        torch.manual_seed(0)  # TorchJD draws its order from the global generator
        self.step_torchjd(retain_jac=True)
        jacobians = [vars(factor).pop("jac") for factor in self.peft_factors]
        compare(f"{self.name}: TorchJD's J", as_ours(jacobians), ours)
        torch.manual_seed(0)
        drawn = [torch.randperm(self.tasks).tolist() for _ in range(self.tasks)]
        order = [[j for j in others if j != i] for i, others in enumerate(drawn)]
        keys = torch.tensor(order).argsort(dim=1).double()
        update = ops.pcgrad(G, keys).to(J) @ J
        expected = by_factor(update, self.our_factors)
        compare(f"{self.name}: torchjd_autojac", self.peft_gradient(), expected)

    def our_gradient(self) -> list[Tensor]:
        return [gradient_of(factor).clone() for factor in self.our_factors]

    def peft_gradient(self) -> list[Tensor]:
        return as_ours([gradient_of(factor) for factor in self.peft_factors])


def zero(factors: Sequence[nn.Parameter]) -> None:
    for factor in factors:
        factor.grad = None


def gradient_of(factor: nn.Parameter) -> Tensor:
    assert factor.grad is not None
    return factor.grad


def by_factor(flat: Tensor, factors: Sequence[Tensor]) -> list[Tensor]:
    """[..., P] -> [..., r, in or out] of each factor."""
    parts = flat.split([factor.numel() for factor in factors], dim=-1)
    return [part.unflatten(-1, f.shape) for part, f in zip(parts, factors, strict=True)]


def as_ours(factors: Sequence[Tensor]) -> list[Tensor]:
    """PEFT's A0, B0, A1, B1, ... with B [..., out, r] turned to our [..., r, out], copied."""
    return [f.mT.clone() if index % 2 else f.clone() for index, f in enumerate(factors)]


def compare(what: str, found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Each factor by itself, relative to its norm."""
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        error = float((one - other).norm() / other.norm())
        assert error <= TOLERANCE, f"{what}: factor {index} is {error:.1e} off"


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """One at a time: at T = 8 TorchJD takes 5 GB."""
    for tasks in options.tasks:
        for rows in ROWS:
            yield Case(tasks, rows, TINY if options.tiny else Size())


def check(options: argparse.Namespace) -> None:
    for case in cases(options):
        case.check()


def measure(options: argparse.Namespace) -> list[Result]:
    return [one for case in cases(options) for one in time_case(case, options.rounds)]


def time_case(case: Case, rounds: int) -> list[Result]:
    """Milliseconds of each variant, and its time over that of `plain` in the same round."""
    variants = case.variants
    slow_rounds = min(rounds, SLOW_ROUNDS) if case.tasks * case.rows >= 64 else rounds
    times = interleave(variants, slow_rounds)
    if rounds > slow_rounds:
        fast = {name: step for name, step in variants.items() if name not in SLOW}
        for name, more in interleave(fast, rounds - slow_rounds, warmup=0).items():
            times[name] += more
    plain = min(
        ("plain_peft", "plain_ours"), key=lambda name: result("", "", times[name], "").value
    )
    results = [
        result(case.name, "plain", [1000 * value for value in times[plain]], "ms"),
        result(case.name, f"plain is {plain}", [1], ""),
    ]
    for name, seconds in times.items():
        beside = {name: seconds, plain: times[plain][: len(seconds)]}
        target = TARGET if name == "one_pass_pcgrad" else None
        milliseconds = [1000 * value for value in seconds]
        results += [
            result(case.name, name, milliseconds, "ms"),
            result(case.name, f"{name} / plain", ratios(beside, name, plain), "x", target=target),
        ]
        if len(seconds) < rounds:
            results.append(result(case.name, f"{name} rounds", [len(seconds)], ""))
    return results


def run(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step", epilog="--json and --record: see benchmarks/harness.py"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--tasks", type=int, nargs="+", default=TASKS)
    parser.add_argument("--tiny", action="store_true", help="a very small model: a smoke test")
    options, rest = parser.parse_known_args(argv)
    main(
        "step",
        functools.partial(check, options),
        functools.partial(measure, options),
        argv=rest,
    )


if __name__ == "__main__":
    run()
