"""Speed of `combine` against plain torch: `pytest benchmarks/bench_combine.py`.

Each case is checked against the float64 reference before it is timed.
"""

from __future__ import annotations

import pytest
import torch

from mtlcore.ops import combine, table, use_backend
from mtlcore.ops.reference.combine import combine as reference

SHAPES = ((2, 5_000_000), (8, 5_000_000), (17, 1_000_000))
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
BACKENDS = {"cpu": ("cpp",), "cuda": ("cuda", "triton")}


def torch_mv(J, w, *, out):
    return torch.mv(J.T, w, out=out)


def cases():
    """("cpp" and the like, device, function) of what can run here, with torch as the rival."""
    available = {row.backend for row in table() if row.op == "combine" and row.available}
    for device in DEVICES:
        for name in BACKENDS[device]:
            if name in available:
                yield pytest.param(name, device, combine, id=f"{device}-{name}")
        yield pytest.param(None, device, torch_mv, id=f"{device}-torch")


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"T{shape[0]}-P{shape[1]}")
@pytest.mark.parametrize(("backend", "device", "function"), list(cases()))
def test_combine(benchmark, shape, backend, device, function):
    benchmark.group = f"combine T={shape[0]} P={shape[1]} fp32 {device}"
    generator = torch.Generator().manual_seed(0)
    J = torch.randn(shape, generator=generator).to(device)
    w = torch.rand(shape[0], generator=generator).to(device)
    out = torch.empty(shape[1], device=device)  # all write into a given buffer, as a trainer does

    def run():
        function(J, w, out=out)
        if device == "cuda":
            torch.cuda.synchronize()

    with use_backend(backend or "reference"):
        run()
        assert torch.all((out - reference(J, w)).abs() <= 1e-5 * (w @ J.abs()))
        benchmark.pedantic(run, warmup_rounds=2, rounds=15)
