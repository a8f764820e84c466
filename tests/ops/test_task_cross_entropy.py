"""`task_cross_entropy`: both backends against the whole logits of autograd, and its properties."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mtlcore.ops import backend, sum_by_task, task_cross_entropy, use_backend
from mtlcore.ops.task_cross_entropy import PIECE, raw_task_cross_entropy

D, V, T = 7, 13, 4
FORMS = [{}, {"softcap": 1.5}, {"scale": 0.3}, {"softcap": 2.0, "scale": 3.0}]
LOW = [torch.float32, torch.bfloat16, torch.float16]
Found = tuple[Tensor, Tensor, Tensor]


@dataclass
class Problem:
    """Task 2 has no label."""

    hidden: Tensor
    weight: Tensor
    labels: Tensor
    tasks: Tensor
    bias: Tensor | None
    smoothing: Tensor | None
    form: dict[str, float] = field(default_factory=dict)

    def ours(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return task_cross_entropy(
            hidden, self.weight, self.labels, self.tasks, T,
            bias=self.bias, smoothing=self.smoothing, **self.form,
        )  # fmt: skip

    def whole(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """All logits in the dtype of the problem, as a model makes them; the loss of torch."""
        logits = F.linear(hidden, self.weight, self.bias) * self.form.get("scale", 1.0)
        if cap := self.form.get("softcap"):
            logits = torch.tanh(logits / cap) * cap
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses = F.cross_entropy(logits, self.labels, reduction="none")
        if self.smoothing is not None:
            shares = torch.stack([*self.smoothing, self.smoothing.new_zeros(())])[self.tasks]
            mean = -logits.log_softmax(1).mean(1)
            losses = (1 - shares.to(losses)) * losses + shares.to(losses) * mean
        sums = [losses[self.tasks == task].double().sum() for task in range(T)]
        return losses, torch.stack(sums).to(losses.dtype)

    def found(self, way: str) -> Found:
        """Losses, sums, and the gradient when each loss and each sum has a weight of its own."""
        hidden = self.hidden.clone().requires_grad_()
        losses, sums = getattr(self, way)(hidden)
        of_losses = torch.linspace(-1, 2, len(losses), dtype=losses.dtype, device=losses.device)
        of_sums = torch.linspace(2, -1, T, dtype=losses.dtype, device=losses.device)
        (grad,) = torch.autograd.grad((losses @ of_losses) + (sums @ of_sums), hidden)
        return losses.detach(), sums.detach(), grad

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Problem:
        moved = {}
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                kept = name in ("labels", "tasks", "smoothing")
                moved[name] = value.to(device, value.dtype if kept else dtype)
        return replace(self, **moved)


def problem(
    count: int = 23,
    *,
    smoothed: bool = True,
    biased: bool = True,
    size: float = 1.0,
    **form: float,
) -> Problem:
    draw = torch.Generator().manual_seed(count)
    hidden, weight, bias = (
        torch.randn(shape, generator=draw, dtype=torch.float64).mul_(size)
        for shape in ((count, D), (V, D), (V,))
    )
    return Problem(
        hidden,
        weight,
        torch.randint(V, (count,), generator=draw),
        torch.tensor([0, 1, 3])[torch.randint(3, (count,), generator=draw)].sort().values,
        bias if biased else None,
        torch.rand(T, generator=draw, dtype=torch.float64) if smoothed else None,
        form,
    )


def assert_same(found: Found, expected: Found, tolerance: float = 1e-11) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


@pytest.fixture(params=[1, 4, 1000], autouse=True)
def labels_in_a_piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setitem(PIECE, "cpu", request.param)
    monkeypatch.setitem(PIECE, "cuda", request.param)
    return int(request.param)


once = pytest.mark.parametrize("labels_in_a_piece", [4], indirect=True)


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("smoothed", [False, True])
@pytest.mark.parametrize("count", [0, 1, 4, 23])
def test_losses_sums_and_gradients_are_those_of_whole_logits(
    backend: str, form: dict[str, float], smoothed: bool, count: int
) -> None:
    given = problem(count, smoothed=smoothed, biased=count != 4, **form)
    with use_backend(backend):
        assert_same(given.found("ours"), given.found("whole"))


def assert_error_is_at_most_twice_torchs(given: Problem) -> None:
    exact = given.to(torch.float64, given.hidden.device).found("whole")
    for mine, torchs, value in zip(given.found("ours"), given.found("whole"), exact, strict=True):
        error, allowed = ((one.double() - value).norm() for one in (mine, torchs))
        assert mine.dtype == torchs.dtype
        assert error <= 2 * allowed + torch.finfo(torchs.dtype).eps * value.norm()


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("size", [1e-10, 1.0, 3.0])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_error_is_at_most_twice_that_of_torch(
    dtype: torch.dtype, size: float, form: dict[str, float]
) -> None:
    assert_error_is_at_most_twice_torchs(problem(61, size=size, **form).to(dtype))


@pytest.mark.parametrize("dtype", LOW[:2])
def test_the_error_of_huge_logits_is_at_most_twice_that_of_torch(dtype: torch.dtype) -> None:
    assert_error_is_at_most_twice_torchs(problem(61, size=1e5).to(dtype))


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_gradient_is_that_of_finite_differences(backend: str, form: dict[str, float]) -> None:
    given = problem(5, **form)
    with use_backend(backend):
        assert torch.autograd.gradcheck(given.ours, given.hidden.clone().requires_grad_())


@once
def test_the_losses_are_those_of_torchs_own_loss_in_chunks() -> None:
    given = problem(smoothed=False)
    found = F.linear_cross_entropy(
        given.hidden, given.weight, given.labels, linear_bias=given.bias, reduction="none",
        options=torch.nn.LinearCrossEntropyOptions(),
    )  # fmt: skip
    torch.testing.assert_close(given.ours(given.hidden)[0], found)


def test_a_label_of_no_task_counts_in_no_sum_and_keeps_its_loss() -> None:
    given = problem()
    outside = given.tasks == 1
    given.tasks[outside] = -1
    losses, sums, grad = given.found("ours")
    assert_same((losses, sums, grad), given.found("whole"))
    assert sums[1] == sums[2] == 0
    plain = replace(given, smoothing=None).found("ours")[0]
    torch.testing.assert_close(losses[outside], plain[outside])
    assert not torch.isclose(losses[~outside], plain[~outside]).any()


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_every_element_of_the_outputs_is_written(backend: str) -> None:
    given = problem(softcap=2.0)
    outs = [torch.full(size, torch.nan).double() for size in ((23,), (T,), (23, D))]
    with use_backend(backend):
        raw_task_cross_entropy(
            given.hidden, given.weight, given.bias, given.labels, given.tasks, given.smoothing,
            2.0, 1.0, *outs,
        )  # fmt: skip
    assert all(out.isfinite().all() for out in outs)


@once
def test_no_gradient_is_made_where_none_is_wanted() -> None:
    given = problem()
    with torch.no_grad():
        losses, sums = given.ours(given.hidden.clone().requires_grad_())
    assert not losses.requires_grad
    assert not sums.requires_grad
    torch.testing.assert_close((losses, sums), given.found("ours")[:2])


@once
def test_a_loss_that_is_not_finite_spoils_the_sum_of_its_task_alone() -> None:
    given = problem()
    given.hidden[given.tasks == 1] = torch.nan
    _, sums = given.ours(given.hidden)
    assert sums.isfinite().tolist() == [True, False, True, True]


def test_sums_keep_the_digits_of_many_small_losses() -> None:
    losses = torch.full((100_001,), 1e-4)
    losses[0] = 1e4
    tasks = torch.zeros(100_001, dtype=torch.int64)
    found = sum_by_task(losses, tasks, 2)
    torch.testing.assert_close(found, torch.tensor([1e4 + 10, 0.0]), rtol=1e-7, atol=0)


@once
def test_bits_repeat_from_run_to_run() -> None:
    given = problem(101, softcap=2.0).to(torch.float32)
    first, second = given.found("ours"), given.found("ours")
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


class Largest(TorchDispatchMode):
    """Remembers the most numbers that any tensor held."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor):
            self.numbers = max(self.numbers, found.numel())
        return found


@pytest.mark.parametrize("labels_in_a_piece", [20], indirect=True)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_no_tensor_has_the_logits_of_more_than_a_piece(form: dict[str, float]) -> None:
    given = problem(200, **form)
    outs = [torch.empty(size).double() for size in ((200,), (T,), (200, D))]
    with Largest() as seen:
        backend.kernel("task_cross_entropy", torch.device("cpu"))(
            given.hidden, given.weight, given.bias, given.labels, given.tasks, given.smoothing,
            form.get("softcap"), form.get("scale", 1.0), *outs,
        )  # fmt: skip
    assert seen.numbers == 200 * T < 200 * V
    with Largest() as seen:
        given.found("whole")
    assert seen.numbers == 200 * V


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("form", FORMS[::2], ids=str)
def test_autocast_rounds_as_it_does_for_whole_logits(
    dtype: torch.dtype, form: dict[str, float]
) -> None:
    given = problem(**form).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = given.found("ours"), given.found("whole")
    assert_same(found[:2], expected[:2], 1e-3 if form else 1e-5)
    torch.testing.assert_close(found[2], expected[2], rtol=2e-2, atol=2e-2)


@once
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_raw_op_is_a_valid_custom_op(form: dict[str, float]) -> None:
    given = problem(9, **form)
    for biased, wanted in ((True, True), (False, False)):
        outs = [given.hidden.new_empty(9), given.hidden.new_empty(T)]
        outs.append(given.hidden.new_empty((9, D) if wanted else (0,)))
        torch.library.opcheck(
            raw_task_cross_entropy,
            (given.hidden, given.weight, given.bias if biased else None, given.labels, given.tasks,
             given.smoothing if biased else None, form.get("softcap"), form.get("scale", 1.0),
             *outs),
        )  # fmt: skip


# Dynamo makes an instance of the Function, of which torch itself warns.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@once
@pytest.mark.parametrize("smoothed", [False, True])
def test_it_compiles_into_one_graph(smoothed: bool) -> None:
    given = problem(smoothed=smoothed, softcap=2.0)
    eager = given.found("ours")
    torch.compiler.reset()
    compiled = torch.compile(given.ours, fullgraph=True, backend="aot_eager")
    hidden = given.hidden.clone().requires_grad_()
    losses, sums = compiled(hidden)
    of_losses = torch.linspace(-1, 2, len(losses), dtype=losses.dtype)
    of_sums = torch.linspace(2, -1, T, dtype=losses.dtype)
    (grad,) = torch.autograd.grad((losses @ of_losses) + (sums @ of_sums), hidden)
    assert_same((losses.detach(), sums.detach(), grad), eager)


@once
@pytest.mark.parametrize("trained", ["weight", "bias"])
def test_a_trained_weight_is_refused_instead_of_left_without_a_gradient(trained: str) -> None:
    given = problem(5)
    getattr(given, trained).requires_grad_()
    with pytest.raises(ValueError, match=f"no gradient to {trained}: "):
        given.ours(given.hidden)
    with torch.no_grad():
        torch.testing.assert_close(given.ours(given.hidden), given.whole(given.hidden))


@once
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"hidden": torch.ones(5, D).long()}, TypeError, "hidden must be float32 or"),
        ({"hidden": torch.ones(5).double()}, ValueError, "hidden must have 2 dimensions"),
        ({"weight": torch.ones(V, D)}, TypeError, "weight must be float64, found float32"),
        ({"weight": torch.ones(V, 3).double()}, ValueError, r"\[V, d\] = \[13, 7\]"),
        ({"bias": torch.ones(3).double()}, ValueError, r"bias must have shape \[V\] = \[13\]"),
        ({"labels": torch.ones(4).long()}, ValueError, r"labels must have shape \[L\] = \[5\]"),
        ({"tasks": torch.ones(5)}, TypeError, "tasks must be int64"),
        ({"smoothing": torch.ones(T)}, TypeError, "smoothing must be float64"),
        ({"smoothing": torch.ones(3).double()}, ValueError, r"shape \[T\] = \[4\]"),
        ({"form": {"softcap": 0.0}}, ValueError, "softcap must be a number above 0, found 0.0"),
        ({"form": {"scale": float("nan")}}, ValueError, "scale must be a number above 0"),
    ],
)
def test_a_wrong_argument_is_named(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    given = replace(problem(5), **change)
    with pytest.raises(error, match=message):
        given.ours(given.hidden)


@once
def test_numbers_out_of_range_are_errors() -> None:
    given = problem(5)
    for name, index, value, message in (
        ("labels", 3, -100, r"labels must be in \[0, 12\], found -100 .. "),
        ("tasks", 1, T, rf"tasks must be at most {T - 1}, found -?\d .. {T}"),
        ("smoothing", 0, -1.0, r"smoothing must be in \[0, 1\], found -1.0 .. "),
        ("smoothing", 0, torch.nan, "smoothing must be in "),
    ):
        changed = getattr(given, name).clone()
        changed[index] = value
        with pytest.raises(ValueError, match=message):
            replace(given, **{name: changed}).ours(given.hidden)


@once
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("hidden", {"hidden": [[1.0]]}),
        ("weight", {"weight": None}),
        ("labels", {"labels": [1]}),
        ("softcap", {"form": {"softcap": "x"}}),
    ],
)
def test_what_is_no_tensor_or_number_is_named(name: str, change: dict[str, Any]) -> None:
    given = replace(problem(5), **change)
    with pytest.raises((TypeError, ValueError), match=f"{name} must be a "):
        given.ours(given.hidden)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float64, *LOW])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_on_a_gpu_it_matches_the_reference_and_repeats(
    dtype: torch.dtype, form: dict[str, float]
) -> None:
    given = problem(101, **form).to(dtype, "cuda")
    first, second = given.found("ours"), given.found("ours")
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert_error_is_at_most_twice_torchs(given)
