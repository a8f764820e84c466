"""`gramian`, by slice and with other vectors: every backend against the float64 reference, and the
properties that callers rely on.

Run as a script, it checks the backend that MTLCORE_BACKEND names (see the Triton test).
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest
import torch

from mtlcore.ops import cross_gramian, gramian, gramian_by_slice, use_backend
from mtlcore.ops.gramian import raw_cross_gramian, raw_gramian
from mtlcore.ops.reference.gramian import gramian as reference
from mtlcore.ops.slices import cut

TASKS = (1, 2, 3, 8, 17, 32)
COLUMNS = (0, 1, 63, 1000, 100_003)
OTHERS = (1, 3, 16, 33)  # vectors beside J
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def task_gradients(tasks, columns, dtype=torch.float32, scale=1.0, device="cpu"):
    """J [T, P], each entry normal around a common direction, so that tasks agree a little."""
    generator = torch.Generator().manual_seed(tasks * 1_000_003 + columns)
    J = torch.randn(tasks, columns, generator=generator, dtype=torch.float64)
    common = torch.randn(columns, generator=generator, dtype=torch.float64)
    return ((J + 0.5 * common) * scale).to(device=device, dtype=dtype)


def assert_matches_reference(G, J):
    """Of all columns as one slice."""
    assert_slices_match(G[None], J, [0, J.shape[1]])


def slices_of(columns):
    """Borders: an empty slice, one column, a few, some thousands, the rest."""
    return [0, 0, *(min(at, columns) for at in (1, 40, 9000)), columns]


def assert_slices_match(G, J, starts):
    """Relative to |g_s| |g_t|, the size that the Cauchy-Schwarz inequality allows an entry; and in
    float32 at most twice the largest error of torch's own product, or a rounding of the largest
    entry."""
    slices = list(itertools.pairwise(starts))
    expected = torch.zeros(len(slices), len(J), len(J), dtype=torch.float64, device=J.device)
    own = expected.clone()
    for index, (start, stop) in enumerate(slices):
        part = J[:, start:stop]
        expected[index], own[index] = reference(part), part @ part.T
    norms = expected.diagonal(dim1=1, dim2=2).sqrt()
    error = (G - expected).abs()
    assert G.dtype == torch.float64
    assert G.shape == expected.shape
    assert torch.all(error <= TOLERANCE[J.dtype] * norms[:, :, None] * norms[:, None, :])
    assert torch.equal(G, G.mT)
    if J.dtype == torch.float32:
        allowed = max(2 * (own - expected).abs().max(), 2**-23 * expected.abs().max())
        assert torch.all(error <= allowed)


def assert_cross_matches(C, J, V):
    """Relative to |J_t| |V_m|; the expectation is summed by torch alone, in float64. In float32 at
    most twice the largest error of torch's own product, or a rounding of the largest norms."""
    expected = torch.einsum("tp,mp->tm", J.double(), V.double())
    norms = J.double().norm(dim=1)[:, None] * V.double().norm(dim=1)
    error = (C - expected).abs()
    assert C.dtype == torch.float64
    assert C.shape == expected.shape
    assert torch.all(error <= TOLERANCE[J.dtype] * norms)
    if J.dtype == torch.float32:
        own = (J @ V.T).double()
        assert error.max() <= max(2 * (own - expected).abs().max(), 2**-23 * norms.max())


def vectors_beside(J, others, scale=1.0):
    """V [M, P], with a part of every row of J."""
    generator = torch.Generator().manual_seed(others)
    V = torch.randn(others, J.shape[1], generator=generator, dtype=torch.float64) * scale
    return V.to(J) + J.mean(0)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("tasks", TASKS)
@pytest.mark.parametrize("columns", COLUMNS)
def test_slices_match_the_reference(backend, dtype, tasks, columns):
    J, starts = task_gradients(tasks, columns, dtype), slices_of(columns)
    with use_backend(backend):
        assert_slices_match(gramian_by_slice(J, starts), J, starts)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("others", OTHERS)
@pytest.mark.parametrize("tasks", TASKS)
@pytest.mark.parametrize("columns", COLUMNS)
def test_products_with_other_vectors_match(backend, dtype, tasks, others, columns):
    J = task_gradients(tasks, columns, dtype)
    V = vectors_beside(J, others)
    with use_backend(backend):
        assert_cross_matches(cross_gramian(J, V), J, V)
        assert_cross_matches(cross_gramian(J, V[0])[:, None], J, V[:1])


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("tasks", TASKS)
@pytest.mark.parametrize("columns", COLUMNS)
def test_slices_and_other_vectors_on_a_gpu_match_and_repeat(backend, dtype, tasks, columns):
    J = task_gradients(tasks, columns + 5, dtype, device="cuda")[:, 3 : 3 + columns]
    starts = slices_of(columns)
    with use_backend(backend):
        G = gramian_by_slice(J, starts)
        assert_slices_match(G, J, starts)
        assert torch.equal(G, gramian_by_slice(J, starts))
        for others in OTHERS:
            V = vectors_beside(J, others)
            C = cross_gramian(J, V)
            assert_cross_matches(C, J, V)
            assert torch.equal(C, cross_gramian(J, V))


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
    V = vectors_beside(J, 3, scale)
    assert_matches_reference(gramian(J), J)
    assert_slices_match(gramian_by_slice(J, [5, 70, 9000]), J, [5, 70, 9000])
    assert_cross_matches(cross_gramian(J, V), J, V)


def test_a_column_slice_is_read_in_place():
    whole = torch.full((6, 2000), torch.nan)
    whole[:3, 7:1507] = task_gradients(3, 1500)
    whole[4:, 7:1507] = task_gradients(2, 1500)
    part, others = whole[:3, 7:1507], whole[4:, 7:1507]
    assert not part.is_contiguous()
    assert_matches_reference(gramian(part), part)
    assert_slices_match(gramian_by_slice(part, [0, 800, 1500]), part, [0, 800, 1500])
    assert_cross_matches(cross_gramian(part, others), part, others)


def test_slices_of_columns_add_up_to_the_whole():
    J = task_gradients(5, 30_011, torch.float64)
    parts = gramian_by_slice(J, [0, 9, 20_000, 30_011])
    torch.testing.assert_close(parts.sum(0), gramian(J), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_a_slice_has_the_bits_of_the_gramian_of_its_columns(dtype):
    J = task_gradients(8, 100_003, dtype)
    starts = slices_of(100_003)
    parts = [gramian(J[:, a:b]) for a, b in itertools.pairwise(starts)]
    assert torch.equal(gramian_by_slice(J, starts), torch.stack(parts))


def test_starts_may_be_a_tensor_and_leave_columns_out():
    J = task_gradients(3, 1000)
    starts = [100, 100, 350, 900]
    G = gramian_by_slice(J, torch.tensor(starts))
    assert_slices_match(G, J, starts)
    assert torch.equal(G, gramian_by_slice(J, starts))
    J[:, :100] = J[:, 900:] = torch.nan
    assert torch.equal(G, gramian_by_slice(J, starts))


@pytest.mark.parametrize(
    ("columns", "chunks", "size"),
    [
        (1, 1, 1),
        (8192, 1, 8192),
        (8193, 2, 8192),
        (42_000_000, 1001, 41_984),
        (3 * 10**8, 2289, 2**17),
    ],
)
def test_chunks_cover_their_slice_in_order(columns, chunks, size):
    table, firsts = cut(torch.tensor([0, 7, 7, columns + 7]), torch.device("cpu"))
    assert firsts.tolist() == [0, 1, 1, 1 + chunks]
    assert table[0].tolist() == [0, 0, 7]
    slices, begins, ends = table[1:].T
    assert torch.all(slices == 2)
    assert (begins[0], ends[-1]) == (7, columns + 7)
    assert torch.equal(begins[1:], ends[:-1])
    # fp32 sums of the CUDA kernel run over 1/256 of a chunk: 512 columns of the largest
    assert (ends - begins).max() == size <= 2**17


def test_one_border_makes_no_slice():
    assert gramian_by_slice(task_gradients(3, 10), [4]).shape == (0, 3, 3)


def test_400_small_slices():
    columns = 400 * 500
    J, starts = task_gradients(2, columns), range(0, columns + 1, 500)
    assert_slices_match(gramian_by_slice(J, starts), J, list(starts))


def test_products_with_the_task_gradients_themselves_are_the_gramian():
    J = task_gradients(5, 30_011, torch.float64)
    torch.testing.assert_close(cross_gramian(J, J), gramian(J), rtol=1e-12, atol=0)


def test_no_vectors_give_no_products():
    assert cross_gramian(task_gradients(3, 10), torch.empty(0, 10)).shape == (3, 0)


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
    starts = slices_of(columns)
    out = torch.full((len(starts) - 1, tasks, tasks), torch.nan, dtype=torch.float64)
    raw_gramian(J, torch.tensor(starts), out)
    assert_slices_match(out, J, starts)
    V = vectors_beside(J, 3)
    out = torch.full((1, tasks, 3), torch.nan, dtype=torch.float64)
    raw_cross_gramian(J, V, out)
    assert_cross_matches(out[0], J, V)


def test_no_tasks_give_an_empty_gramian():
    assert gramian(torch.empty(0, 10)).shape == (0, 0)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_bits_repeat_from_run_to_run_and_for_any_number_of_threads(dtype):
    J = task_gradients(8, 100_003, dtype)
    V, starts = vectors_beside(J, 3), slices_of(100_003)

    def all_bits():
        parts = gramian(J), gramian_by_slice(J, starts), cross_gramian(J, V)
        return torch.cat([part.flatten() for part in parts])

    first = all_bits()
    assert all(torch.equal(first, all_bits()) for _ in range(5))
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(first, all_bits())
    finally:
        torch.set_num_threads(threads)


def test_triton_kernels_match_the_reference_in_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "MTLCORE_BACKEND": "triton"}
    subprocess.run([sys.executable, "-W", "error", __file__], env=environment, check=True)


def test_raw_op_is_a_valid_custom_op():
    J = task_gradients(3, 70)
    out = torch.empty(2, 3, 3, dtype=torch.float64)
    torch.library.opcheck(raw_gramian, (J, torch.tensor([0, 30, 70]), out))
    torch.library.opcheck(raw_cross_gramian, (J, vectors_beside(J, 3), out[:1]))


def test_public_op_works_under_fake_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        J = torch.empty(4, 100)
        G, by_slice = gramian(J), gramian_by_slice(J, [0, 40, 90])
        C, c = cross_gramian(J, torch.empty(2, 100)), cross_gramian(J, torch.empty(100))
    found = G, by_slice, C, c
    assert [tuple(one.shape) for one in found] == [(4, 4), (2, 4, 4), (4, 2), (4,)]
    assert all(one.dtype == torch.float64 for one in found)


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
    ("starts", "error", "message"),
    [
        (7, TypeError, "starts must hold whole numbers: 'int' object is not iterable"),
        ([0, 1.5], TypeError, "starts must hold whole numbers: 'float' object"),
        (torch.tensor([0.0, 1.0]), TypeError, "starts must be int64, found float32"),
        (torch.tensor([0, 1], dtype=torch.int32), TypeError, "must be int64, found int32"),
        (torch.tensor([[0, 1]]), ValueError, r"must have 1 dimension, found shape \[1, 2\]"),
        (torch.ones(2, dtype=torch.int64, device="meta"), ValueError, "on cpu, found meta"),
        ([], ValueError, "starts must have a border or more"),
        ([0, 4], ValueError, r"must lie within \[0, P\] = \[0, 3\], found 0 .. 4"),
        ([-1, 2], ValueError, r"found -1 .. 2"),
        ([0, 2, 1, 3], ValueError, r"must ascend, found 2 before 1 at starts\[2\]"),
        ([3, 0], ValueError, r"found 3 before 0 at starts\[1\]"),
    ],
)
def test_wrong_borders_are_told(starts, error, message):
    with pytest.raises(error, match=message):
        gramian_by_slice(torch.ones(2, 3), starts)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"J": torch.ones(2, 3).half()}, TypeError, "J must be float32 or float64, found float16"),
        ({"J": torch.ones(3, 2).T}, ValueError, "J must be contiguous along its last dimension"),
        ({"v": [1.0] * 3}, TypeError, "v must be a torch.Tensor, found list"),
        ({"v": torch.ones(3).double()}, TypeError, "v must be float32, found float64"),
        ({"v": torch.ones(2)}, ValueError, r"v must have P = 3 columns, found shape \[2\]"),
        ({"v": torch.ones(2, 4)}, ValueError, r"v must have P = 3 columns, found shape \[2, 4\]"),
        ({"v": torch.ones(1, 2, 3)}, ValueError, "v must have 2 dimensions"),
        ({"v": torch.ones(3, requires_grad=True)}, ValueError, "v must not require grad"),
        ({"v": torch.ones(3, device="meta")}, ValueError, "v must be on cpu, found meta"),
        ({"v": torch.ones(6)[::2]}, ValueError, "v must be contiguous along its last dimension"),
    ],
)
def test_a_wrong_argument_of_the_products_is_named(change, error, message):
    with pytest.raises(error, match=message):
        cross_gramian(**{"J": torch.ones(2, 3), "v": torch.ones(3), **change})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"J": torch.ones(2, 3, dtype=torch.float16)}, TypeError, "J must be float32 or float64"),
        ({"J": torch.ones(2, 3, requires_grad=True)}, ValueError, "J must not require grad"),
        ({"J": torch.ones(2, 3, device="meta")}, ValueError, "J has no memory to read"),
        ({"J": [1.0]}, TypeError, "torch.Tensor"),
        ({"out": torch.ones(1, 2, 2)}, TypeError, "out must be float64, found float32"),
        ({"out": torch.ones(1, 3, 2).double()}, ValueError, "out must have size 2 along"),
        ({"out": torch.ones(2, 2).double()}, ValueError, "out must have 3 dimensions"),
        ({"out": torch.ones(1, 2, 4).double()[..., ::2]}, ValueError, "out must be contiguous"),
        ({"partials": torch.ones(9, 2, 2).double()}, ValueError, "partials must have size 1"),
        ({"chunks": torch.tensor([[0, 0, 4]])}, ValueError, r"chunks\[0\] = \(0, 0, 4\) does not"),
        ({"chunks": torch.tensor([[0, 2, 1]])}, ValueError, "does not fit 1 slices of 3 columns"),
        ({"chunks": torch.tensor([[1, 0, 3]])}, ValueError, r"\(1, 0, 3\) does not fit 1 slices"),
        ({"chunks": torch.tensor([[0, 0]])}, ValueError, "chunks must have size 3 along"),
        ({"chunks": torch.ones(1, 3)}, TypeError, "chunks must be int64, found float32"),
        ({"firsts": torch.tensor([0, 2])}, ValueError, r"firsts\[1\] = 2 does not fit 1 chunks"),
        ({"firsts": torch.tensor([1, 0])}, ValueError, r"firsts\[1\] = 0 does not fit 1 chunks"),
        ({"firsts": torch.ones(0).long()}, ValueError, "firsts must have one element or more"),
    ],
)
def test_the_compiled_core_refuses_what_it_cannot_read(change, error, message):
    from mtlcore import _core

    good = {
        "J": torch.ones(2, 3),
        "chunks": torch.tensor([[0, 0, 3]]),
        "firsts": torch.tensor([0, 1]),
        "partials": torch.empty(1, 2, 2, dtype=torch.float64),
        "out": torch.empty(1, 2, 2, dtype=torch.float64),
    }
    _core.gramian(**good, threads=1)
    with pytest.raises(error, match=message):
        _core.gramian(**{**good, **change}, threads=1)
    V = torch.ones(2, 3)
    _core.cross_gramian(V=V, **good, threads=1)
    with pytest.raises(error, match=message):
        _core.cross_gramian(V=V, **{**good, **change}, threads=1)


@pytest.mark.parametrize(
    ("V", "error", "message"),
    [
        (torch.ones(2, 3).double(), TypeError, "V must be float32, found float64"),
        (torch.ones(2, 4), ValueError, "V must have size 3 along dimension 1"),
        (torch.ones(3, 2).T, ValueError, "V must be contiguous along its last dimension"),
        (torch.ones(5, 3), ValueError, "partials must have size 5 along dimension 2"),
    ],
)
def test_the_compiled_core_refuses_other_vectors_that_do_not_fit(V, error, message):
    from mtlcore import _core

    with pytest.raises(error, match=message):
        _core.cross_gramian(
            torch.ones(2, 3),
            V,
            torch.tensor([[0, 0, 3]]),
            torch.tensor([0, 1]),
            torch.empty(1, 2, 2, dtype=torch.float64),
            torch.empty(1, 2, 2, dtype=torch.float64),
            threads=1,
        )


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)  # empty memory is full of NaN
    for extent in (1e-10, 1e10):
        J = task_gradients(3, 1000, scale=extent)
        assert_matches_reference(gramian(J), J)
    for dtype in TOLERANCE:
        for tasks in (1, 3, 17):  # one tile, and a grid of tiles with an edge
            for columns in (0, 63, 10_007):  # no chunk, one, two
                J = task_gradients(tasks, columns + 5, dtype)[:, 3 : 3 + columns]
                starts, V = slices_of(columns), vectors_beside(J, 33 if tasks == 3 else 1)
                G, C = gramian_by_slice(J, starts), cross_gramian(J, V)
                assert_matches_reference(gramian(J), J)
                assert_slices_match(G, J, starts)
                assert_cross_matches(C, J, V)
                assert torch.equal(G, gramian_by_slice(J, starts))
                assert torch.equal(C, cross_gramian(J, V))
