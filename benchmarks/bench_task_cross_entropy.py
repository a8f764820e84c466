"""Speed of `task_cross_entropy` by its form: `pytest benchmarks/bench_task_cross_entropy.py`.

Forward and backward, against whole logits; each case is checked against the float64 reference
before it is timed. Peak memory: `python -m benchmarks.cross_entropy`.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mtlcore.ops import task_cross_entropy
from mtlcore.ops.reference.task_cross_entropy import task_cross_entropy as reference

LABELS, WIDTH, TASKS = 512, 576, 8
VOCABULARIES = (8192, 49152)
FORMS = {"plain": (None, 1.0), "capped": (30.0, 1.0), "scaled": (None, 0.0625)}
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def ours(hidden, weight, labels, tasks, softcap, scale):
    sums = task_cross_entropy(hidden, weight, labels, tasks, TASKS, softcap=softcap, scale=scale)[1]
    return sums.sum()


def whole(hidden, weight, labels, tasks, softcap, scale):
    logits = F.linear(hidden, weight)
    logits = logits if scale == 1 else logits * scale
    logits = logits if softcap is None else torch.tanh(logits / softcap) * softcap
    return F.cross_entropy(logits, labels, reduction="sum")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("vocabulary", VOCABULARIES, ids=lambda count: f"V{count}")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("function", [ours, whole])
def test_task_cross_entropy(benchmark, function, form, vocabulary, device):
    benchmark.group = f"cross entropy {form} L={LABELS} V={vocabulary} fp32 {device}"
    softcap, scale = FORMS[form]
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(LABELS, WIDTH, generator=draw).to(device).requires_grad_()
    weight = (torch.randn(vocabulary, WIDTH, generator=draw) / WIDTH**0.5).to(device)
    labels, tasks = (
        torch.randint(count, (LABELS,), generator=draw).to(device) for count in (vocabulary, TASKS)
    )

    def run():
        (grad,) = torch.autograd.grad(
            function(hidden, weight, labels, tasks, softcap, scale), hidden
        )
        if device == "cuda":
            torch.cuda.synchronize()
        return grad

    *_, exact = reference(hidden.detach(), weight, None, labels, tasks, TASKS, None, softcap, scale)
    assert (run() - exact).norm() <= 1e-5 * exact.norm()
    benchmark.pedantic(run, warmup_rounds=1, rounds=5)
