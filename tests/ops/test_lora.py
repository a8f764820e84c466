"""`lora_forward` and `lora_backward`: every backend against the float64 reference.

Run as a script, it checks the Triton kernels in the interpreter.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from mtlcore.ops import (
    Dropout,
    Places,
    Slots,
    lora_backward,
    lora_expand,
    lora_forward,
    lora_shrink,
    use_backend,
)
from mtlcore.ops.lora import FLOATS, RAW
from mtlcore.ops.reference.lora import keep_mask

SEGMENTS = {
    "one": [7],
    "one token": [1],
    "skewed": [1, 40],
    "three": [16, 3, 20],
    "empty": [0, 9, 0, 2],
    "identical": [6] * 8,
    "zipf": [max(1, 60 // (i + 1)) for i in range(17)],
}
SIZES = [(1, 1), (63, 100), (100, 63), (576, 130), (2000, 576)]
# Largest error of an element against the size of the terms that it sums: that of a float32 product,
# and for 16-bit outputs the rounding of what is written.
TOLERANCE = {
    torch.float64: 1e-13,
    torch.float32: 1e-5,
    torch.bfloat16: 2**-8,
    torch.float16: 2**-11,
}

# With narrower vectors than torch's own, sums are longer, and so are their errors.
AS_WIDE_AS_TORCH = "MTLCORE_VECTOR_BYTES" not in os.environ


@dataclasses.dataclass
class Problem:
    """Tensors of one call; task t uses r shared rank rows and r of its own, the last task none of
    the latter."""

    x: Tensor
    y: Tensor
    dy: Tensor
    dx: Tensor
    A: Tensor
    B: Tensor
    slots: Slots
    places: Places
    dropout: Dropout | None

    def run(self, backend: str) -> dict[str, Tensor]:
        """Forward and backward; the inputs stay as they are."""
        y, dx, memory = self.y.clone(), self.dx.clone(), self.places.memory.clone()
        places = dataclasses.replace(self.places, memory=memory)
        with use_backend(backend):
            z = lora_forward(self.x, self.A, self.B, self.slots, y, self.dropout)
            dz = lora_backward(
                self.dy, self.x, z, self.A, self.B, self.slots, places, dx, self.dropout
            )
        return {"y": y, "z": z, "dx": dx, "dz": dz, "memory": memory}

    def to(self, device: str) -> Problem:
        """The same on a device."""

        def moved(value: object) -> object:
            if isinstance(value, Tensor):
                return value.to(device)
            if isinstance(value, Slots):
                return Slots(*map(moved, value))
            if dataclasses.is_dataclass(value):
                parts = {f.name: moved(getattr(value, f.name)) for f in dataclasses.fields(value)}
                return type(value)(**parts)
            return value

        return moved(self)

    def torchs_own(self) -> dict[str, Tensor]:
        """The same maths by matrix products of torch in the dtype of x, task by task."""
        dtype, y, dx = self.x.dtype, self.y.clone(), self.dx.clone()
        A, B, scales = self.A.to(dtype), self.B.to(dtype), self.slots.scales.to(dtype)
        x, mask, memory = self.x, torch.ones_like(self.x), self.places.memory.clone()
        if self.dropout is not None:
            mask = keep_mask(self.x, self.slots, self.dropout).to(dtype)
            x = x * mask
        z = torch.zeros(len(x), self.slots.rows.shape[1], dtype=dtype, device=x.device)
        dz = z.clone()
        for task, start, stop in self.slots.segments.tolist():
            n, rows = slice(start, stop), self.slots.rows[task].long()
            rows = rows[rows >= 0]
            k, scale = slice(len(rows)), scales[task, : len(rows)]
            z[n, k] = x[n] @ A[rows].t()
            y[n] += (z[n, k] * scale) @ B[rows]
            dz[n, k] = (self.dy[n] @ B[rows].t()) * scale
            dx[n] += (dz[n, k] @ A[rows]) * mask[n]
            weights = self.places.weights[task, k, None]
            for grad, offsets in (
                (dz[n, k].t() @ x[n] * weights, self.places.a_offsets),
                ((z[n, k] * scale).t() @ self.dy[n] * weights, self.places.b_offsets),
            ):
                for row, offset in zip(grad, offsets[task, k].tolist(), strict=True):
                    if offset >= 0:
                        part = memory[offset : offset + len(row)]
                        part += row.square() if self.places.square else row
        return {"y": y, "z": z, "dx": dx, "dz": dz, "memory": memory}


def problem(
    lengths: Sequence[int],
    columns: tuple[int, int] = (63, 100),
    *,
    r: int = 4,
    dtype: torch.dtype = torch.float32,
    scale: float = 1.0,
    share: float = 0.0,
    square: bool = False,
    folded: bool = False,
    seed: int = 0,
) -> Problem:
    draw = torch.Generator().manual_seed(seed)
    wide = torch.promote_types(dtype, torch.float32)

    def normal(*shape: int, power: int = 1) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64) * scale**power

    tasks, tokens, (inner, outer) = len(lengths), sum(lengths), columns
    ranks, width = r * tasks, 2 * r if tasks > 1 else r
    ends = torch.tensor([0, *lengths]).cumsum(0)
    segments = torch.stack([torch.arange(tasks), ends[:-1], ends[1:]], dim=1)
    rows = torch.full((tasks, width), -1, dtype=torch.int32)
    rows[:, :r] = torch.arange(r).flip(0)  # in any order
    for task in range(tasks - 1):
        rows[task, r:] = r * (task + 1) + torch.arange(r)
    scales = torch.rand(tasks, width, generator=draw, dtype=torch.float64) + 0.5
    size = ranks * (inner + outer)
    apart = 0 if folded else size * torch.arange(tasks)[:, None]
    offsets = [
        torch.where(rows >= 0, rows.long() * columns + start + apart, -1)
        for columns, start in ((inner, 0), (outer, ranks * inner))
    ]
    offsets[1][0, 0] = -1  # not wanted
    memory = torch.rand(size * (1 if folded else tasks), generator=draw, dtype=torch.float64)
    memory *= scale**3  # as large as what is added
    weights = torch.rand(tasks, width, generator=draw, dtype=torch.float64)
    dropout = None
    if share:
        shares = torch.full((tasks,), share, dtype=torch.float64)
        shares[-1] = 0 if tasks > 1 else share
        positions = torch.arange(tokens, dtype=torch.int32)
        positions[::5] = -1
        dropout = Dropout(shares, torch.arange(tasks) * 2**40 + 7, positions, 2**62 + 11)
    return Problem(
        normal(tokens, inner).to(dtype), normal(tokens, outer, power=3).to(dtype),
        normal(tokens, outer).to(dtype), normal(tokens, inner, power=3).to(dtype),
        normal(ranks, inner).to(wide), normal(ranks, outer).to(wide),
        Slots(segments, rows, scales.to(wide)),
        Places(memory.to(wide), *offsets, weights.to(wide), square), dropout,
    )  # fmt: skip


@dataclasses.dataclass
class Pack:
    """Several layers that read the x of the first one."""

    layers: list[Problem]

    def __post_init__(self) -> None:
        first = self.layers[0]
        self.layers = [dataclasses.replace(one, x=first.x, dx=first.dx) for one in self.layers]
        self.x = first.x
        rows, scales, a_offsets, b_offsets, weights = ([] for _ in range(5))
        ranks = size = 0
        for one in self.layers:
            rows.append(torch.where(one.slots.rows >= 0, one.slots.rows + ranks, -1))
            scales.append(one.slots.scales)
            for offsets, table in (
                (one.places.a_offsets, a_offsets), (one.places.b_offsets, b_offsets)
            ):  # fmt: skip
                table.append(torch.where(offsets >= 0, offsets + size, -1))
            weights.append(one.places.weights)
            ranks, size = ranks + len(one.A), size + len(one.places.memory)
        # What a task lacks in one layer must not stand before its slots in the next.
        order = (torch.cat(rows, 1) < 0).int().sort(dim=1, stable=True).indices
        tables = [
            torch.cat(table, 1).gather(1, order)
            for table in (rows, scales, a_offsets, b_offsets, weights)
        ]
        self.slots = Slots(first.slots.segments, *tables[:2])
        self.tables = tables[2:]
        self.dropout = first.dropout

    def run(self, backend: str) -> dict[str, Tensor]:
        dx, memory = self.layers[0].dx.clone(), [one.places.memory for one in self.layers]
        places = Places(torch.cat(memory), *self.tables, self.layers[0].places.square)
        y = [one.y.clone() for one in self.layers]
        A, B = torch.cat([one.A for one in self.layers]), [one.B for one in self.layers]
        with use_backend(backend):
            z = lora_forward(self.x, A, B, self.slots, y, self.dropout)
            dy = [one.dy for one in self.layers]
            dz = lora_backward(dy, self.x, z, A, B, self.slots, places, dx, self.dropout)
        found = {"z": z, "dx": dx, "dz": dz, "memory": places.memory}
        return found | {f"y{i}": part for i, part in enumerate(y)}


def pack(lengths: Sequence[int], inner: int = 63, **options: Any) -> Pack:
    """Layers of unlike widths and ranks."""
    return Pack(
        [
            problem(lengths, (inner, outer), r=r, seed=seed, **options)
            for seed, (outer, r) in enumerate([(100, 4), (30, 4), (64, 3)])
        ]
    )


def assert_matches_reference(given: Problem | Pack, backend: str = "cpp") -> None:
    found, expected = given.run(backend), given.run("reference")
    for name, value in expected.items():
        dtype = value.dtype
        bound = TOLERANCE[dtype] * float(value.double().abs().max())
        if dtype in (torch.bfloat16, torch.float16):
            bound *= 2
        assert found[name].dtype == dtype
        error = (found[name].double() - value.double()).abs()
        assert torch.all(error <= bound), f"{name}: {float(error.max())} > {bound}"


def assert_as_good_as_torch(
    found: dict[str, Tensor], expected: dict[str, Tensor], own: dict[str, Tensor]
) -> None:
    """At most twice the largest error of torch's own products in the dtype of x; or, as torch's
    error may be nothing by luck, the spacing of numbers at the largest value."""
    assert found.keys() == expected.keys() == own.keys()
    for name, value in expected.items():
        error, allowed = (
            float((one.double() - value.double()).abs().max()) for one in (found[name], own[name])
        )
        rounding = torch.finfo(value.dtype).eps * float(value.double().abs().max())
        assert error <= max(2 * allowed, rounding), f"{name}: {error} > 2 * {allowed}"


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("columns", SIZES)
@pytest.mark.parametrize("lengths", SEGMENTS.values(), ids=SEGMENTS)
def test_every_cut_size_and_dtype(
    lengths: list[int], columns: tuple[int, int], dtype: torch.dtype
) -> None:
    given = problem(lengths, columns, dtype=dtype)
    assert_matches_reference(given)
    if dtype != torch.float64 and AS_WIDE_AS_TORCH:
        expected = given.run("reference")
        assert_as_good_as_torch(given.run("cpp"), expected, given.torchs_own())


@pytest.mark.gpu
@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("columns", SIZES)
@pytest.mark.parametrize("lengths", SEGMENTS.values(), ids=SEGMENTS)
def test_every_cut_size_and_dtype_on_a_gpu_and_repeats(
    lengths: list[int], columns: tuple[int, int], dtype: torch.dtype, share: float
) -> None:
    given = problem(lengths, columns, dtype=dtype, share=share).to("cuda")
    if dtype in (torch.float32, torch.float64):
        assert_matches_reference(given, "triton")
    first, second = given.run("triton"), given.run("triton")
    if dtype != torch.float64:
        assert_as_good_as_torch(first, given.run("reference"), given.torchs_own())
    assert_same_bits(first, second)


def test_triton_kernels_match_the_reference_in_the_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-W", "error", __file__], env=environment, check=True)


@pytest.mark.parametrize("r", [1, 2, 5, 16, 128])  # and twice as many slots
@pytest.mark.parametrize("dtype", FLOATS)
def test_every_rank(r: int, dtype: torch.dtype) -> None:
    assert_matches_reference(problem([16, 3, 20], (130, 70), r=r, dtype=dtype))


@pytest.mark.parametrize("r", [1, 256])
def test_every_rank_of_a_single_adapter(r: int) -> None:
    assert_matches_reference(problem([17], (130, 70), r=r))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("square", [False, True])
def test_masks_are_the_same_forward_and_backward(square: bool, dtype: torch.dtype) -> None:
    assert_matches_reference(problem([40, 1, 20], (200, 65), dtype=dtype, share=0.3, square=square))


@pytest.mark.parametrize("square", [False, True])
def test_tasks_may_add_to_one_place(square: bool) -> None:
    assert_matches_reference(problem([40, 1, 20], folded=True, square=square))


SCALES = (1e-10, 1e10)  # products of three such values; float16 holds neither


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_tiny_and_huge_values_keep_their_digits(dtype: torch.dtype, scale: float) -> None:
    assert_matches_reference(problem([16, 3, 20], dtype=dtype, scale=scale, share=0.3))


def test_gradients_of_the_tasks_add_up_to_that_of_the_batch() -> None:
    given = problem([16, 3, 20], share=0.3)
    given.places.memory.zero_()
    by_task = given.run("cpp")["memory"].view(3, -1)
    assert torch.all(by_task.abs().amax(1) > 0)
    places = dataclasses.asdict(given.places) | {"memory": torch.zeros(by_task.shape[1])}
    for name in ("a_offsets", "b_offsets"):
        places[name] = torch.where(places[name] < 0, -1, places[name] % by_task.shape[1])
    whole = dataclasses.replace(given, places=Places(**places)).run("cpp")["memory"]
    torch.testing.assert_close(whole, by_task.sum(0), rtol=1e-5, atol=1e-5 * float(whole.max()))


def in_dirty_memory(given: Problem, backend: str) -> dict[str, Tensor]:
    """What `Problem.run` returns, with rank space full of NaN before each op."""
    y, dx, memory = given.y.clone(), given.dx.clone(), given.places.memory.clone()
    z, dz, half = (given.A.new_full((len(y), given.slots.rows.shape[1]), torch.nan) for _ in "123")
    assert given.dropout is not None
    table = (*given.slots, *dataclasses.astuple(given.dropout))
    places = given.places
    with use_backend(backend):
        RAW["lora_forward"](given.x, given.A, [given.B], *table, [y], z)
        RAW["lora_backward"](
            [given.dy], given.x, z, given.A, [given.B], *table, places.a_offsets, places.b_offsets,
            places.weights, False, dx, dz, memory,
        )  # fmt: skip
        RAW["lora_shrink"](given.x, given.A, *table, half)
    assert torch.equal(half, z)
    return {"y": y, "z": z, "dx": dx, "dz": dz, "memory": memory}


def assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("lengths", SEGMENTS.values(), ids=SEGMENTS)
def test_every_element_of_rank_space_is_written(lengths: list[int], backend: str) -> None:
    given = problem(lengths, (70, 30), share=0.3)
    assert_same_bits(in_dirty_memory(given, backend), given.run(backend))


def with_room(given: Problem, segments: Tensor | None = None) -> Problem:
    """The same with 6 more rows in the table of segments, all empty; or with those segments."""
    last = segments if segments is not None else given.slots.segments
    empty = last.new_zeros(6 + len(given.slots.segments) - len(last), 3)
    empty[1::2] = torch.tensor([0, len(given.x), len(given.x)])
    slots = given.slots._replace(segments=torch.cat([last, empty]))
    return dataclasses.replace(given, slots=slots)


@pytest.mark.parametrize("lengths", SEGMENTS.values(), ids=SEGMENTS)
def test_empty_segments_behind_the_last_change_no_bit(lengths: list[int]) -> None:
    given = problem(lengths, (70, 30), share=0.3)
    assert_same_bits(with_room(given).run("cpp"), given.run("cpp"))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_graph_captured_with_one_segment_is_right_for_others(dtype: torch.dtype) -> None:
    given = problem([600, 0, 1, 20], dtype=dtype, share=0.3).to("cuda")
    whole = given.slots.segments.new_tensor([[0, 0, len(given.x)]])
    captured = with_room(given, whole)
    captured.run("triton")  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = captured.run("triton")
    for segments in (whole, given.slots.segments, given.slots.segments[2:], whole[:0]):
        other = with_room(given, segments)
        captured.slots.segments.copy_(other.slots.segments)
        graph.replay()
        slots = given.slots._replace(segments=segments.contiguous())
        expected = dataclasses.replace(given, slots=slots).run("triton")
        assert_same_bits(found, expected)


def test_gradients_are_those_of_autograd() -> None:
    given = problem([5, 1, 9], (30, 20), dtype=torch.float64, share=0.25)
    given.places.memory.zero_()
    leaves = [tensor.clone().requires_grad_() for tensor in (given.x, given.A, given.B)]
    x, A, B = leaves
    assert given.dropout is not None
    dropped = x * keep_mask(given.x, given.slots, given.dropout)
    parts, tokens = [], []
    for task, start, stop in given.slots.segments.tolist():
        rows = given.slots.rows[task][given.slots.rows[task] >= 0].long()
        mixed = (dropped[start:stop] @ A[rows].t()) * given.slots.scales[task, : len(rows)]
        parts.append(mixed @ B[rows])
        tokens.append((parts[-1] * given.dy[start:stop]).sum())
    y = torch.cat(parts)
    found = given.run("cpp")
    torch.testing.assert_close(found["y"] - given.y, y.detach())
    (dx,) = torch.autograd.grad(sum(tokens), [x], retain_graph=True)
    torch.testing.assert_close(found["dx"] - given.dx, dx)
    for task, loss in enumerate(tokens):
        grads = torch.autograd.grad(loss, [A, B], retain_graph=True)
        for grad, offsets in zip(
            grads, (given.places.a_offsets, given.places.b_offsets), strict=True
        ):
            for k, (row, offset) in enumerate(
                zip(given.slots.rows[task].tolist(), offsets[task].tolist(), strict=True)
            ):
                if offset >= 0:
                    expected = grad[row] * given.places.weights[task, k]
                    there = found["memory"][offset : offset + grad.shape[1]]
                    torch.testing.assert_close(there, expected)


@pytest.mark.parametrize("without", ["slots", "segment"])
def test_tokens_without_an_adapter_keep_their_bits(without: str) -> None:
    given = problem([6, 4])
    if without == "slots":
        given.slots.rows[1] = -1
    else:
        given.slots = given.slots._replace(segments=given.slots.segments[:1])
    found = given.run("cpp")
    assert torch.equal(found["y"][6:], given.y[6:])
    assert torch.equal(found["dx"][6:], given.dx[6:])
    assert not found["z"][6:].any()
    assert not found["dz"][6:].any()


def test_masks_keep_their_share_and_differ() -> None:
    given = problem([300, 300], (640, 10), share=0.3)
    assert given.dropout is not None
    given.dropout.shares[1] = 0.3
    mask = keep_mask(given.x, given.slots, given.dropout)
    drawn = mask[given.dropout.positions >= 0]
    assert drawn.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert float((drawn == 0).double().mean()) == pytest.approx(0.3, abs=0.005)
    assert torch.all(mask[given.dropout.positions < 0] == 1)
    agreement = (drawn[1:] == drawn[:-1]).double().mean()
    assert float(agreement) == pytest.approx(0.3**2 + 0.7**2, abs=0.005)


def test_words_are_those_of_the_published_generator() -> None:
    """Known answers of Random123 for Philox 4x32-10."""
    from mtlcore.ops.reference.lora import _philox

    words = 4 * [torch.zeros(1, dtype=torch.int64)]
    found = [int(word) for word in _philox(*words, 0, 0)]
    assert found == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    words = 4 * [torch.full((1,), 0xFFFFFFFF)]
    found = [int(word) for word in _philox(*words, 0xFFFFFFFF, 0xFFFFFFFF)]
    assert found == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_repeat_from_run_to_run_and_for_any_number_of_threads(dtype: torch.dtype) -> None:
    given = problem([100, 1, 60], (200, 130), dtype=dtype, share=0.1)
    first, first_halves = given.run("cpp"), halves(given, "cpp")
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert_same_bits(given.run("cpp"), first)
            assert_same_bits(halves(given, "cpp"), first_halves)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("lengths", SEGMENTS.values(), ids=SEGMENTS)
def test_layers_that_read_one_input_run_as_one(lengths: list[int], dtype: torch.dtype) -> None:
    assert_matches_reference(pack(lengths, dtype=dtype))
    assert_matches_reference(pack(lengths, dtype=dtype, share=0.3, square=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_run_as_one_are_the_layers_alone(dtype: torch.dtype) -> None:
    given = pack([16, 3, 20], inner=576, dtype=dtype)
    found = given.run("cpp")
    alone = [one.run("cpp") for one in given.layers]
    for i, one in enumerate(alone):
        assert torch.equal(found[f"y{i}"], one["y"])
    memory = torch.cat([one["memory"] for one in alone])
    torch.testing.assert_close(found["memory"], memory)
    wide = torch.promote_types(dtype, torch.float64)
    parts = sum(one["dx"].to(wide) - given.layers[0].dx.to(wide) for one in alone)
    error = (found["dx"].to(wide) - given.layers[0].dx.to(wide) - parts).abs().max()
    assert error <= 4 * TOLERANCE[dtype] * found["dx"].abs().max()


def test_layers_in_another_order_than_their_slots_are_refused() -> None:
    given = pack([5, 3])
    given.slots.rows[0] = given.slots.rows[0].flip(0)
    with pytest.raises(ValueError, match="rows of task 0 must go layer by layer, in the order of"):
        given.run("cpp")


def test_as_many_outputs_as_factors() -> None:
    given = problem([5, 3])
    with pytest.raises(ValueError, match="y must be as many tensors as B, 1, found 2"):
        lora_forward(given.x, given.A, given.B, given.slots, [given.y, given.y.clone()])


def test_rows_may_lie_apart() -> None:
    given = problem([16, 3, 20])
    apart = dataclasses.replace(
        given,
        **{
            name: torch.nn.functional.pad(getattr(given, name), (3, 5), value=float("nan"))[:, 3:-5]
            for name in ("x", "y", "dy", "dx")
        },
    )
    assert_same_bits(apart.run("cpp"), given.run("cpp"))


def test_raw_ops_are_valid_custom_ops() -> None:
    given = problem([5, 3], share=0.5)
    assert given.dropout is not None
    shared = (given.A, [given.B], *given.slots, *dataclasses.astuple(given.dropout))
    z = given.A.new_zeros(8, 8)
    torch.library.opcheck(RAW["lora_forward"], (given.x, *shared, [given.y], z))
    places = given.places
    torch.library.opcheck(
        RAW["lora_backward"],
        ([given.dy], given.x, z, *shared, places.a_offsets, places.b_offsets, places.weights,
         False, given.dx, z.clone(), places.memory),
    )  # fmt: skip
    table = shared[2:]
    torch.library.opcheck(RAW["lora_shrink"], (given.x, given.A, *table, z))
    torch.library.opcheck(RAW["lora_expand"], (z, given.B, *table, given.y))
    torch.library.opcheck(
        RAW["lora_grads"],
        (z, given.x, *table, places.a_offsets, places.weights, places.memory),
    )


# -- the two halves in plain autograd ----------------------------------------------------------


def mix(z: Tensor) -> Tensor:
    """Bent at the size of z: bent more, the rounding of a long sum would be most of the error."""
    return (z / 32).tanh() * 32


def halves(given: Problem, backend: str, mixes: bool = True) -> dict[str, Tensor]:
    """Both halves with a mix between them, and all gradients of their sum with dy."""
    x, A, B = (value.clone().requires_grad_() for value in (given.x, given.A, given.B))
    with use_backend(backend):
        z = lora_shrink(x, A, given.slots, given.dropout)
        y = lora_expand(mix(z) if mixes else z, B, given.slots, dtype=x.dtype)
        y.backward(given.dy)
    values = {"z": z, "y": y, "dx": x.grad, "dA": A.grad, "dB": B.grad}
    return {name: value.detach() for name, value in values.items() if value is not None}


def torchs_halves(given: Problem) -> dict[str, Tensor]:
    """The same without a mix, by matrix products of torch in the dtype of x, task by task."""
    assert given.dropout is not None
    x, A, B = (value.clone().requires_grad_() for value in (given.x, given.A, given.B))
    dropped = x * keep_mask(given.x, given.slots, given.dropout).to(x.dtype)
    z = given.A.new_zeros(len(x), given.slots.rows.shape[1]).to(x.dtype)
    y = torch.zeros_like(given.y)
    for task, start, stop in given.slots.segments.tolist():
        n, rows = slice(start, stop), given.slots.rows[task].long()
        rows = rows[rows >= 0]
        part = dropped[n] @ A[rows].to(x.dtype).t()
        z[n, : len(rows)], y[n] = part, part @ B[rows].to(x.dtype)
    y.backward(given.dy)
    values = {"z": z, "y": y, "dx": x.grad, "dA": A.grad, "dB": B.grad}
    return {name: value.detach() for name, value in values.items() if value is not None}


def assert_halves_match(given: Problem, backend: str = "cpp") -> None:
    if given.x.dtype != torch.float64 and AS_WIDE_AS_TORCH:
        found, expected = (halves(given, name, mixes=False) for name in (backend, "reference"))
        assert_as_good_as_torch(found, expected, torchs_halves(given))
        if backend == "triton" and given.x.dtype != torch.float32:
            return  # it multiplies 16-bit numbers
    found, expected = halves(given, backend), halves(given, "reference")
    assert found.keys() == expected.keys() == {"z", "y", "dx", "dA", "dB"}
    for name, value in expected.items():
        bound = 4 * TOLERANCE[given.x.dtype] * max(float(value.double().abs().max()), 1)
        assert found[name].dtype == value.dtype
        error = float((found[name].double() - value.double()).abs().max())
        assert error <= bound, f"{name}: {error} > {bound}"


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("columns", SIZES)
@pytest.mark.parametrize("lengths", SEGMENTS.values(), ids=SEGMENTS)
def test_both_halves_match_the_reference(
    lengths: list[int], columns: tuple[int, int], dtype: torch.dtype
) -> None:
    assert_halves_match(problem(lengths, columns, dtype=dtype, share=0.3))


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", SEGMENTS.values(), ids=SEGMENTS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_both_halves_match_the_reference_on_a_gpu(lengths: list[int], dtype: torch.dtype) -> None:
    assert_halves_match(problem(lengths, dtype=dtype, share=0.3).to("cuda"), "triton")


def test_the_halves_are_differentiable() -> None:
    given = problem([5, 1, 4], (6, 7), r=2, dtype=torch.float64, share=0.25)
    x, A, B = (value.clone().requires_grad_() for value in (given.x, given.A, given.B))

    def both(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        z = lora_shrink(x, A, given.slots, given.dropout)
        return lora_expand(z.tanh(), B, given.slots)

    assert torch.autograd.gradcheck(both, (x, A, B))


def test_the_halves_together_are_the_whole() -> None:
    given = problem([16, 3, 20], dtype=torch.float64, share=0.3)
    given.slots.scales.fill_(1.0)
    given.y.zero_()
    found = halves(given, "cpp", mixes=False)
    whole = given.run("cpp")
    torch.testing.assert_close(found["y"], whole["y"])
    torch.testing.assert_close(found["z"], whole["z"])
    torch.testing.assert_close(found["dx"], whole["dx"] - given.dx)


def test_raw_ops_take_tensors_that_require_grad_as_compilers_hand_them_over() -> None:
    given = problem([5, 3], share=0.5)
    assert given.dropout is not None
    table = (*given.slots, *dataclasses.astuple(given.dropout))
    z, expected = given.A.new_zeros(8, 8), given.A.new_zeros(8, 8)
    RAW["lora_shrink"](given.x, given.A, *table, expected)
    with torch.no_grad():
        RAW["lora_shrink"](given.x.requires_grad_(), given.A.requires_grad_(), *table, z)
    assert torch.equal(z, expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of what torch itself does
@pytest.mark.parametrize(
    "compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_the_halves_compile_into_one_graph(share: float, compiler: str) -> None:
    given = problem([5, 3], (12, 10), share=share)
    x, A, B = (value.clone().requires_grad_() for value in (given.x, given.A, given.B))

    def both(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        z = lora_shrink(x, A, given.slots, given.dropout)
        return lora_expand(z.tanh(), B, given.slots)

    compiled = torch.compile(both, fullgraph=True, backend=compiler)
    grads = [torch.autograd.grad(run(x, A, B).sum(), [x, A, B]) for run in (both, compiled)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("half", "error", "message"),
    [
        (lambda p: lora_shrink(p.x.long(), p.A, p.slots), TypeError, "x must be float32"),
        (lambda p: lora_shrink(p.x, p.A[:, :5], p.slots), ValueError, "A must"),
        (lambda p: lora_shrink("x", p.A, p.slots), TypeError, "x must be a torch.Tensor"),
        (
            lambda p: lora_expand(p.x[:, :3], p.B, p.slots),
            ValueError,
            r"z must have shape \[N, K\]",
        ),
        (lambda p: lora_expand(p.x.half(), p.B, p.slots), TypeError, "z must be float32"),
        (lambda p: lora_expand(p.A.new_ones(8, 8), p.B.double(), p.slots), TypeError, "B must be"),
    ],
)
def test_a_wrong_argument_of_a_half_is_named(
    half: Callable[[Problem], Tensor], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        half(problem([5, 3]))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.ones(8, 63).long()}, TypeError, "x must be float32 or float64 or bfloat16"),
        ({"x": torch.ones(8, 5)}, ValueError, r"A must have shape \[R, in\] = \[8, 5\]"),
        ({"A": torch.ones(8, 63).double()}, TypeError, "A must be float32, found float64"),
        ({"B": torch.ones(3, 100)}, ValueError, "B must have 8 rows, as A has, found 3"),
        ({"y": torch.ones(7, 100)}, ValueError, r"y must have shape \[N, out\] = \[8, 100\]"),
        ({"A": torch.ones(63, 8).t()}, ValueError, "A must be contiguous"),
    ],
)
def test_a_wrong_argument_is_named(
    change: dict[str, Tensor], error: type[Exception], message: str
) -> None:
    given = dataclasses.replace(problem([5, 3]), **change)
    with pytest.raises(error, match=message if "R, in" not in message else "A must have shape"):
        given.run("cpp")


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([[0, 0, 9]], r"segments\[0\] = \(0, 0, 9\) does not fit 2 tasks and 8 tokens"),
        ([[0, 0, 5], [2, 5, 8]], r"segments\[1\] = \(2, 5, 8\) does not fit"),
        ([[0, 5, 3]], "does not fit"),
    ],
)
def test_segments_that_do_not_fit_are_refused(segments: list[list[int]], message: str) -> None:
    given = problem([5, 3])
    given.slots = given.slots._replace(segments=torch.tensor(segments))
    with pytest.raises(ValueError, match=message):
        given.run("cpp")


def test_places_and_rows_beyond_the_end_are_refused() -> None:
    given = problem([5, 3])
    given.places.a_offsets[1, 0] = len(given.places.memory) - 62
    with pytest.raises(ValueError, match=r"a_offsets holds .* beyond a memory of"):
        given.run("cpp")
    given = problem([5, 3])
    given.slots.rows[0, 0] = 8
    with pytest.raises(ValueError, match="rows holds 8, but A has 8 rows"):
        given.run("cpp")


if __name__ == "__main__":  # small cases: the interpreter takes a second for each
    torch.use_deterministic_algorithms(True)  # empty memory is full of NaN
    for cut in SEGMENTS.values():
        assert_matches_reference(problem(cut, (63, 100)), "triton")
    for size in SIZES:
        assert_matches_reference(problem([16, 3, 20], size), "triton")
    for rank in (1, 128):
        assert_matches_reference(problem([16, 3], (70, 30), r=rank), "triton")
    for extent in SCALES:
        assert_matches_reference(problem([16, 3], (70, 30), scale=extent, share=0.3), "triton")
    longer = [600, 1, 20]  # more than a chunk of tokens
    for square_, folded_ in ((False, True), (True, True), (True, False)):
        case = problem(longer, (65, 20), folded=folded_, square=square_, share=0.3)
        assert_matches_reference(case, "triton")
    assert_matches_reference(problem([16, 3, 20], dtype=torch.float64, share=0.5), "triton")
    for cut in ([16, 3, 20], [0, 9, 0, 2]):
        case = problem(cut, (200, 65), dtype=torch.float16, share=0.3)
        expected_ = case.run("reference")
        assert_as_good_as_torch(case.run("triton"), expected_, case.torchs_own())
        case = problem(cut, (70, 30), share=0.3)
        once = case.run("triton")
        assert_same_bits(case.run("triton"), once)
        assert_same_bits(with_room(case).run("triton"), once)  # as in a captured graph
        assert_same_bits(in_dirty_memory(case, "triton"), once)
        for floats in (torch.float32, torch.float16):
            assert_halves_match(problem(cut, (65, 20), dtype=floats, share=0.3), "triton")
    assert_matches_reference(pack([16, 3, 20], share=0.3), "triton")
    assert_matches_reference(pack([600, 0, 2], square=True), "triton")
    wide_ = Pack([problem([16, 3], (65, 20), r=r_, seed=r_) for r_ in (40, 3)])
    assert_matches_reference(wide_, "triton")
