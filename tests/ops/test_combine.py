"""`combine`, by slice and of a weighting: every backend against the float64 reference, and the
properties that callers rely on.

Run as a script, it checks the backend that MTLCORE_BACKEND names (see the Triton test).
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from mtlcore.ops import combine, combine_by_slice, project_task_gradients, use_backend
from mtlcore.ops.combine import raw_combine
from mtlcore.ops.reference.combine import combine as reference
from mtlcore.ops.reference.gramian import gramian as reference_gramian

TASKS = (1, 2, 3, 8, 17, 32)
COLUMNS = (0, 1, 63, 1000, 100_003)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def problem(tasks, columns, dtype=torch.float32, scale=1.0, device="cpu"):
    """J [T, P] and w [T]; some weights negative, as CAGrad and its kin may give."""
    generator = torch.Generator().manual_seed(tasks * 1_000_003 + columns)
    J = torch.randn(tasks, columns, generator=generator, dtype=torch.float64) * scale
    w = torch.rand(tasks, generator=generator, dtype=torch.float64) - 0.2
    return J.to(device=device, dtype=dtype), w.to(device=device, dtype=dtype)


def assert_matches_reference(g, J, w):
    """Relative to Σ_t |w[t] J[t, p]|, the size of the terms that a column adds up; and in float32
    at most twice the largest error of torch's own product, or a rounding of the largest term."""
    terms = w.abs().double() @ J.abs().double()
    expected = reference(J.double(), w)
    error = (g.double() - expected).abs()
    assert g.dtype == J.dtype
    assert g.shape == J.shape[1:]
    assert torch.all(error <= TOLERANCE[J.dtype] * terms)
    if J.dtype == torch.float32 and J.numel():
        own = (w @ J).double()
        assert error.max() <= max(2 * (own - expected).abs().max(), 2**-23 * terms.max())


def slices_of(columns):
    """Borders: empty slices at both ends, one column, a few, the rest."""
    return [0, 0, *(min(at, columns) for at in (1, 40, 9000)), columns, columns]


def weights_by_slice(J, slices):
    generator = torch.Generator().manual_seed(slices)
    return (torch.rand(slices, len(J), generator=generator, dtype=torch.float64) - 0.2).to(J)


def assert_slices_match(g, J, W, starts):
    assert g.shape == J.shape[1:]
    for w, start, stop in zip(W, starts, starts[1:], strict=False):
        assert_matches_reference(g[start:stop], J[:, start:stop], w)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("tasks", TASKS)
@pytest.mark.parametrize("columns", COLUMNS)
def test_weights_by_slice_match_the_reference(backend, dtype, tasks, columns):
    J, _ = problem(tasks, columns, dtype)
    starts = slices_of(columns)
    W = weights_by_slice(J, len(starts) - 1)
    with use_backend(backend):
        assert_slices_match(combine_by_slice(J, W, starts), J, W, starts)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("tasks", TASKS)
@pytest.mark.parametrize("columns", COLUMNS)
def test_combine_matches_the_reference(backend, dtype, tasks, columns):
    J, w = problem(tasks, columns, dtype)
    with use_backend(backend):
        assert_matches_reference(combine(J, w), J, w)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("tasks", TASKS)
@pytest.mark.parametrize("columns", COLUMNS)
def test_combine_on_a_gpu_matches_the_reference_and_repeats(backend, dtype, tasks, columns):
    J, w = problem(tasks, columns + 5, dtype, device="cuda")
    J = J[:, 3 : 3 + columns]
    with use_backend(backend):
        g = combine(J, w)
        assert_matches_reference(g, J, w)
        assert torch.equal(g, combine(J, w))
        starts = slices_of(columns)
        W = weights_by_slice(J, len(starts) - 1)
        g = combine_by_slice(J, W, starts)
        assert_slices_match(g, J, W, starts)
        assert torch.equal(g, combine_by_slice(J, W, starts))


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_a_captured_graph_reads_the_gradients_and_weights_of_the_moment(backend):
    J, w = problem(3, 10_007, device="cuda")
    other, weights = J.flip(1) * 2, torch.tensor([0.5, 0.0, 1.5], device="cuda")
    with use_backend(backend):
        expected = combine(other, weights)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            g = combine(J, w)
    J.copy_(other)
    w.copy_(weights)
    graph.replay()
    assert torch.equal(g, expected)


@pytest.mark.parametrize("scale", [1e-10, 1e10])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_tiny_and_huge_gradients_keep_their_digits(dtype, scale):
    J, w = problem(8, 10_007, dtype, scale)
    assert_matches_reference(combine(J, w), J, w)
    W = torch.stack([w, -w])
    assert_slices_match(combine_by_slice(J, W, [0, 70, 10_007]), J, W, [0, 70, 10_007])


def test_a_column_slice_is_read_in_place():
    J, w = problem(3, 1500)
    whole = torch.full((3, 2000), torch.nan)
    whole[:, 7:1507] = J
    part, W = whole[:, 7:1507], torch.stack([w, -w])
    assert_matches_reference(combine(part, w), J, w)
    assert_slices_match(combine_by_slice(part, W, [0, 800, 1500]), J, W, [0, 800, 1500])


@pytest.mark.parametrize("task", [0, 1, 2])
def test_one_weight_of_one_gives_that_task_gradient_exactly(task):
    J, _ = problem(3, 1000)
    assert torch.equal(combine(J, torch.eye(3)[task]), J[task])


def test_weights_in_float64_are_rounded_to_the_dtype_of_the_gradients():
    J, w = problem(3, 1000)
    assert torch.equal(combine(J, w.double()), combine(J, w))


@pytest.mark.parametrize("tasks", [0, *TASKS])
@pytest.mark.parametrize("columns", COLUMNS)
def test_every_element_of_the_output_is_written(tasks, columns):
    J, w = problem(tasks, columns)
    out = torch.full((columns,), torch.nan)
    assert combine(J, w, out=out) is out
    assert_matches_reference(out, J, w)
    out.fill_(torch.nan)
    starts = slices_of(columns)
    W = weights_by_slice(J, len(starts) - 1)
    assert combine_by_slice(J, W, starts, out=out) is out
    assert_slices_match(out, J, W, starts)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_a_slice_has_the_bits_of_the_combination_of_its_columns(dtype):
    J, _ = problem(8, 100_003, dtype)
    starts = slices_of(100_003)
    W = weights_by_slice(J, len(starts) - 1)
    slices = zip(W, starts, starts[1:], strict=False)
    parts = [combine(J[:, a:b], w) for w, a, b in slices]
    assert torch.equal(combine_by_slice(J, W, torch.tensor(starts)), torch.cat(parts))


def test_a_weight_of_zero_in_a_slice_leaves_the_task_out_of_it_alone():
    J, _ = problem(2, 300)
    g = combine_by_slice(J, torch.eye(2)[[0, 1, 0]], [0, 100, 200, 300])
    assert torch.equal(g, torch.cat([J[0, :100], J[1, 100:200], J[0, 200:]]))


def test_no_slice_is_legal_without_columns():
    assert combine_by_slice(torch.empty(3, 0), torch.empty(0, 3), [0]).shape == (0,)


def test_400_small_slices():
    J, _ = problem(2, 400 * 500)
    starts, W = range(0, 400 * 500 + 1, 500), weights_by_slice(J, 400)
    assert_slices_match(combine_by_slice(J, W, starts), J, W, list(starts))


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_a_weighting_sees_the_gramian_and_its_weights_are_applied(dtype):
    def weights_of(gramian):
        seen.append(gramian)
        return 1 / gramian.diagonal().sqrt()

    seen: list[torch.Tensor] = []
    J, _ = problem(3, 10_007, dtype)
    out = torch.full((10_007,), torch.nan, dtype=dtype)
    assert project_task_gradients(J, weights_of, out=out) is out
    G = reference_gramian(J)
    torch.testing.assert_close(seen[0], G, rtol=TOLERANCE[dtype], atol=float(G.max()) * 1e-6)
    assert_matches_reference(out, J, weights_of(G).to(dtype))


def test_an_output_within_J_is_refused_and_one_beside_it_is_not():
    memory = torch.ones(4 * 7)
    J, w = memory[7:21].view(2, 7), torch.ones(2)
    for start in (1, 7, 14, 20):
        with pytest.raises(ValueError, match="out must not overlap J"):
            combine(J, w, out=memory[start : start + 7])
    for start in (0, 21):
        assert torch.equal(combine(J, w, out=memory[start : start + 7]), torch.full((7,), 2.0))


def test_weights_that_are_no_tensor_are_refused():
    with pytest.raises(TypeError, match=r"w must be a torch.Tensor, found list"):
        project_task_gradients(torch.ones(2, 3), lambda gramian: gramian.sum(0).tolist())


def test_nothing_beside_the_output_is_written():
    J, w = problem(8, 999)
    buffer = torch.full((1100,), torch.nan)
    combine(J, w, out=buffer[50:1049])
    assert buffer.isnan().sum() == 101


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_bits_repeat_from_run_to_run_and_for_any_number_of_threads(dtype):
    J, w = problem(8, 100_003, dtype)
    starts = slices_of(100_003)
    W = weights_by_slice(J, len(starts) - 1)

    def all_bits():
        return torch.cat([combine(J, w), combine_by_slice(J, W, starts)])

    first = all_bits()
    assert all(torch.equal(first, all_bits()) for _ in range(5))
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(first, all_bits())
    finally:
        torch.set_num_threads(threads)


def test_triton_kernel_matches_the_reference_in_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "MTLCORE_BACKEND": "triton"}
    environment["MKL_CBWR"] = "AVX2"  # torch's own product, a yardstick, is as exact on every CPU
    subprocess.run([sys.executable, "-W", "error", __file__], env=environment, check=True)


def test_raw_op_is_a_valid_custom_op():
    J, w = problem(3, 70)
    W = torch.stack([w, -w])
    torch.library.opcheck(raw_combine, (J, W, torch.tensor([0, 30, 70]), torch.empty(70)))


def test_public_op_works_under_fake_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        g = combine(torch.empty(4, 100), torch.empty(4))
        by_slice = combine_by_slice(torch.empty(4, 100), torch.empty(2, 4), [0, 9, 100])
    assert g.shape == by_slice.shape == (100,)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"J": [[1.0]]}, TypeError, "J must be a torch.Tensor, found list"),
        ({"J": torch.ones(2, 3).half()}, TypeError, "J must be float32 or float64, found float16"),
        ({"J": torch.ones(3)}, ValueError, r"J must have 2 dimensions, found shape \[3\]"),
        ({"J": torch.ones(2, 3, requires_grad=True)}, ValueError, "J must not require grad"),
        ({"J": torch.ones(3, 2).T}, ValueError, "J must be contiguous along its last dimension"),
        ({"w": [1.0, 2.0]}, TypeError, "w must be a torch.Tensor, found list"),
        ({"w": torch.ones(2).long()}, TypeError, "w must be float32 or float64, found int64"),
        ({"w": torch.ones(3)}, ValueError, r"w must have shape \[T\] = \[2\], found \[3\]"),
        ({"w": torch.ones(2, requires_grad=True)}, ValueError, "w must not require grad"),
        ({"w": torch.ones(2, device="meta")}, ValueError, "w must be on cpu, found meta"),
        ({"out": torch.ones(3).double()}, TypeError, "out must be float32, found float64"),
        ({"out": torch.ones(4)}, ValueError, r"out must have shape \[P\] = \[3\], found \[4\]"),
        ({"out": torch.ones(6)[::2]}, ValueError, "out must be contiguous"),
    ],
)
def test_a_wrong_argument_is_named(change, error, message):
    good = {"J": torch.ones(2, 3), "w": torch.ones(2), "out": torch.ones(3)}
    with pytest.raises(error, match=message):
        combine(**{**good, **change})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"J": torch.ones(3)}, ValueError, r"J must have 2 dimensions, found shape \[3\]"),
        ({"W": [[1.0]]}, TypeError, "W must be a torch.Tensor, found list"),
        ({"W": torch.ones(2)}, ValueError, r"W must have 2 dimensions, found shape \[2\]"),
        ({"W": torch.ones(3, 2)}, ValueError, r"W must have shape \[S, T\] = \[2, 2\], found \[3,"),
        ({"W": torch.ones(2, 2).half()}, TypeError, "W must be float32 or float64, found float16"),
        ({"starts": [0, 1, 2]}, ValueError, "starts must run from 0 to P = 3, found 0 .. 2"),
        ({"starts": [1, 2, 3]}, ValueError, "starts must run from 0 to P = 3, found 1 .. 3"),
        ({"starts": [0, 4, 3]}, ValueError, r"found 4 before 3 at starts\[2\]"),
        ({"starts": [0, 1.0, 3]}, TypeError, "starts must hold whole numbers"),
        ({"out": torch.ones(4)}, ValueError, r"out must have shape \[P\] = \[3\], found \[4\]"),
    ],
)
def test_a_wrong_argument_by_slice_is_named(change, error, message):
    good = {"J": torch.ones(2, 3), "W": torch.ones(2, 2), "starts": [0, 1, 3]}
    with pytest.raises(error, match=message):
        combine_by_slice(**{**good, **change})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"J": torch.ones(2, 3).bfloat16()}, TypeError, "J must be float32 or float64"),
        ({"w": torch.ones(1, 2).double()}, TypeError, "w must be float32, found float64"),
        ({"w": torch.ones(1, 3)}, ValueError, "w must have size 2 along dimension 1"),
        ({"w": torch.ones(2)}, ValueError, r"w must have 2 dimensions, found shape \[2\]"),
        ({"chunks": torch.tensor([[0, 0, 4]])}, ValueError, r"chunks\[0\] = \(0, 0, 4\) does not"),
        ({"chunks": torch.tensor([[1, 0, 3]])}, ValueError, r"\(1, 0, 3\) does not fit 1 slices"),
        ({"out": torch.ones(3, requires_grad=True)}, ValueError, "out must not require grad"),
        ({"out": torch.ones(3, device="meta")}, ValueError, "out has no memory to read"),
        ({"out": None}, TypeError, "torch.Tensor"),
    ],
)
def test_the_compiled_core_refuses_what_it_cannot_read(change, error, message):
    from mtlcore import _core

    good = {
        "J": torch.ones(2, 3),
        "w": torch.ones(1, 2),
        "chunks": torch.tensor([[0, 0, 3]]),
        "firsts": torch.tensor([0, 1]),
        "out": torch.ones(3),
    }
    _core.combine(**good, threads=1)
    with pytest.raises(error, match=message):
        _core.combine(**{**good, **change}, threads=1)


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)  # empty memory is full of NaN
    for extent in (1e-10, 1e10):
        J, w = problem(3, 1000, scale=extent)
        assert_matches_reference(combine(J, w), J, w)
    for dtype in TOLERANCE:
        for tasks in TASKS:
            for columns in (0, 1, 63, 1000, 10_007):
                J, w = problem(tasks, columns + 5, dtype)
                J = J[:, 3 : 3 + columns]
                g = combine(J, w)
                assert_matches_reference(g, J, w)
                assert torch.equal(g, combine(J, w))
                starts = slices_of(columns)
                W = weights_by_slice(J, len(starts) - 1)
                g = combine_by_slice(J, W, starts)
                assert_slices_match(g, J, W, starts)
                assert torch.equal(g, combine_by_slice(J, W, starts))
