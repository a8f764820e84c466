"""`gramian`: every backend against the float64 reference, and the properties that callers rely on.

Run as a script, it checks the backend that MTLCORE_BACKEND names (see the Triton test).
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from mtlcore.ops import gramian, use_backend
from mtlcore.ops.gramian import raw_gramian
from mtlcore.ops.reference.gramian import gramian as reference

TASKS = (1, 2, 3, 8, 17)
COLUMNS = (0, 1, 63, 1000, 100_003)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def task_gradients(tasks, columns, dtype=torch.float32, scale=1.0, device="cpu"):
    """J [T, P], each entry normal around a common direction, so that tasks agree a little."""
    generator = torch.Generator().manual_seed(tasks * 1_000_003 + columns)
    J = torch.randn(tasks, columns, generator=generator, dtype=torch.float64)
    common = torch.randn(columns, generator=generator, dtype=torch.float64)
    return ((J + 0.5 * common) * scale).to(device=device, dtype=dtype)


def assert_matches_reference(G, J):
    """Relative to |g_s| |g_t|, the size that the Cauchy-Schwarz inequality allows an entry; and in
    float32 at most twice the largest error of torch's own product, or a rounding of the largest
    entry."""
    expected = reference(J)
    norms = expected.diagonal().sqrt()
    bound = TOLERANCE[J.dtype] * norms[:, None] * norms[None, :]
    assert G.dtype == torch.float64
    assert G.shape == expected.shape
    assert torch.all((G - expected).abs() <= bound)
    assert torch.equal(G, G.T)
    if J.dtype == torch.float32:
        own = (J @ J.T).double()
        allowed = 2 * (own - expected).abs().max() + 2**-23 * expected.abs().max()
        assert torch.all((G - expected).abs() <= allowed)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("tasks", TASKS)
@pytest.mark.parametrize("columns", COLUMNS)
def test_gramian_matches_the_reference(backend, dtype, tasks, columns):
    J = task_gradients(tasks, columns, dtype)
    with use_backend(backend):
        assert_matches_reference(gramian(J), J)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("tasks", TASKS)
@pytest.mark.parametrize("columns", COLUMNS)
def test_gramian_on_a_gpu_matches_the_reference_and_repeats(backend, dtype, tasks, columns):
    J = task_gradients(tasks, columns + 5, dtype, device="cuda")[:, 3 : 3 + columns]
    with use_backend(backend):
        G = gramian(J)
        assert_matches_reference(G, J)
        assert torch.equal(G, gramian(J))


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_a_captured_graph_reads_the_gradients_of_the_moment(backend):
    J = task_gradients(3, 10_007, device="cuda")
    other = J.flip(1) * torch.tensor([[2.0], [0.0], [-1.0]], device="cuda")  # one task is absent
    with use_backend(backend):
        expected = gramian(other)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            G = gramian(J)
    J.copy_(other)
    graph.replay()
    assert torch.equal(G, expected)


@pytest.mark.parametrize("scale", [1e-10, 1e10])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_tiny_and_huge_gradients_keep_their_digits(dtype, scale):
    J = task_gradients(8, 10_007, dtype, scale)
    assert_matches_reference(gramian(J), J)


def test_a_column_slice_is_read_in_place():
    whole = torch.full((3, 2000), torch.nan)
    whole[:, 7:1507] = task_gradients(3, 1500)
    part = whole[:, 7:1507]
    assert not part.is_contiguous()
    assert_matches_reference(gramian(part), part)


def test_slices_of_columns_add_up_to_the_whole():
    J = task_gradients(5, 30_011, torch.float64)
    parts = [gramian(J[:, a:b]) for a, b in ((0, 9), (9, 20_000), (20_000, 30_011))]
    torch.testing.assert_close(sum(parts), gramian(J), rtol=1e-12, atol=0)


def test_zero_gradients_give_zeros():
    assert torch.equal(gramian(torch.zeros(3, 5000)), torch.zeros(3, 3, dtype=torch.float64))


def test_a_task_without_a_finite_gradient_spoils_only_its_own_row_and_column():
    J = task_gradients(3, 5000)
    J[1, 4321] = torch.nan
    finite = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 0, 1]], dtype=torch.bool)
    assert torch.equal(gramian(J).isfinite(), finite)


@pytest.mark.parametrize("tasks", TASKS)
@pytest.mark.parametrize("columns", COLUMNS)
def test_every_element_of_the_output_is_written(tasks, columns):
    J = task_gradients(tasks, columns)
    out = torch.full((tasks, tasks), torch.nan, dtype=torch.float64)
    raw_gramian(J, out)
    assert_matches_reference(out, J)


def test_no_tasks_give_an_empty_gramian():
    assert gramian(torch.empty(0, 10)).shape == (0, 0)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_bits_repeat_from_run_to_run_and_for_any_number_of_threads(dtype):
    J = task_gradients(8, 100_003, dtype)
    first = gramian(J)
    assert all(torch.equal(first, gramian(J)) for _ in range(5))
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(first, gramian(J))
    finally:
        torch.set_num_threads(threads)


def test_triton_kernels_match_the_reference_in_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "MTLCORE_BACKEND": "triton"}
    subprocess.run([sys.executable, "-W", "error", __file__], env=environment, check=True)


def test_raw_op_is_a_valid_custom_op():
    J = task_gradients(3, 70)
    torch.library.opcheck(raw_gramian, (J, torch.empty(3, 3, dtype=torch.float64)))


def test_public_op_works_under_fake_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        G = gramian(torch.empty(4, 100))
    assert G.shape == (4, 4)
    assert G.dtype == torch.float64


@pytest.mark.parametrize(
    ("J", "error", "message"),
    [
        ([[1.0]], TypeError, "J must be a torch.Tensor, found list"),
        (torch.ones(2, 3, dtype=torch.bfloat16), TypeError, "J must be float32 or float64"),
        (torch.ones(2, 3, dtype=torch.int64), TypeError, "found int64"),
        (torch.ones(3), ValueError, r"J must have 2 dimensions, found shape \[3\]"),
        (torch.ones(2, 3, requires_grad=True), ValueError, "J must not require grad"),
        (torch.ones(3, 2).T, ValueError, "J must be contiguous along its last dimension"),
    ],
)
def test_a_wrong_argument_is_named(J, error, message):
    with pytest.raises(error, match=message):
        gramian(J)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"J": torch.ones(2, 3, dtype=torch.float16)}, TypeError, "J must be float32 or float64"),
        ({"J": torch.ones(2, 3, requires_grad=True)}, ValueError, "J must not require grad"),
        ({"J": torch.ones(2, 3, device="meta")}, ValueError, "J has no memory to read"),
        ({"J": [1.0]}, TypeError, "torch.Tensor"),
        ({"out": torch.ones(2, 2)}, TypeError, "out must be float64, found float32"),
        ({"out": torch.ones(2, 3).double()}, ValueError, "out must have size 2 along dimension 1"),
        ({"out": torch.ones(2, 4).double()[:, ::2]}, ValueError, "out must be contiguous"),
        ({"partials": torch.ones(9, 2, 2).double()}, ValueError, "partials must have size 1"),
    ],
)
def test_the_compiled_core_refuses_what_it_cannot_read(change, error, message):
    from mtlcore import _core

    good = {
        "J": torch.ones(2, 3),
        "partials": torch.empty(1, 2, 2, dtype=torch.float64),
        "out": torch.empty(2, 2, dtype=torch.float64),
    }
    _core.gramian(**good, threads=1)
    with pytest.raises(error, match=message):
        _core.gramian(**{**good, **change}, threads=1)


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)  # empty memory is full of NaN
    for extent in (1e-10, 1e10):
        J = task_gradients(3, 1000, scale=extent)
        assert_matches_reference(gramian(J), J)
    for dtype in TOLERANCE:
        for tasks in (1, 3, 17):  # one tile, and a grid of tiles with an edge
            for columns in (0, 63, 10_007):  # no chunk, one, two
                J = task_gradients(tasks, columns + 5, dtype)[:, 3 : 3 + columns]
                G = gramian(J)
                assert_matches_reference(G, J)
                assert torch.equal(G, gramian(J))
