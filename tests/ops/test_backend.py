"""Which kernel runs: asked for, by the environment, by default; and never another one silently."""

from __future__ import annotations

import threading

import pytest
import torch

from mtlcore.ops import BackendError, active_backend, backend, gramian, table, use_backend


@pytest.fixture(autouse=True)
def no_backend_from_outside(monkeypatch):
    monkeypatch.delenv("MTLCORE_BACKEND", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def test_the_compiled_core_is_the_default_on_the_cpu():
    assert active_backend("gramian", "cpu") == "cpp"


def test_a_device_without_kernels_of_its_own_uses_the_reference():
    assert active_backend("gramian", "mps") == "reference"


def test_the_environment_chooses(monkeypatch):
    monkeypatch.setenv("MTLCORE_BACKEND", "reference")
    assert active_backend("gramian", "cpu") == "reference"


def test_the_innermost_context_wins_over_the_environment(monkeypatch):
    monkeypatch.setenv("MTLCORE_BACKEND", "cuda")
    with use_backend("reference"):
        with use_backend("cpp"):
            assert active_backend("gramian", "cpu") == "cpp"
        assert active_backend("gramian", "cpu") == "reference"


def test_a_context_ends_when_its_block_raises():
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert active_backend("gramian", "cpu") == "cpp"


def test_a_context_holds_in_the_threads_that_autograd_may_use():
    seen = []
    with use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(active_backend("gramian", "cpu")))
        thread.start()
        thread.join()
    assert seen == ["reference"]


def test_the_kernel_that_was_asked_for_is_the_one_that_runs(monkeypatch):
    calls = []

    def kernel(J, starts, out):
        calls.append(out.zero_())

    kernels = {**backend._kernels["gramian"], "reference": kernel}
    monkeypatch.setitem(backend._kernels, "gramian", kernels)
    gramian(torch.ones(2, 3))
    assert not calls
    with use_backend("reference"):
        gramian(torch.ones(2, 3))
    assert len(calls) == 1


def test_a_misspelt_backend_gets_the_nearest_spelling(monkeypatch):
    with pytest.raises(BackendError, match="did you mean 'triton'"), use_backend("tritn"):
        pass
    monkeypatch.setenv("MTLCORE_BACKEND", "referense")
    with pytest.raises(BackendError, match=r"MTLCORE_BACKEND(.|\n)*did you mean 'reference'"):
        active_backend("gramian", "cpu")


def test_a_backend_for_another_device_is_an_error():
    with use_backend("cpp"), pytest.raises(BackendError, match="cpu tensors, found cuda"):
        active_backend("gramian", "cuda")


def test_a_missing_backend_is_an_error_and_not_another_backend(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with use_backend("triton"), pytest.raises(BackendError, match="no CUDA device"):
        gramian(torch.ones(2, 3))


def test_a_missing_core_is_an_error_and_not_the_reference(monkeypatch):
    monkeypatch.setitem(backend._UNAVAILABLE, "cpp", lambda: "mtlcore._core cannot be imported")
    with pytest.raises(BackendError, match=r"cannot be imported(.|\n)*MTLCORE_BACKEND=reference"):
        gramian(torch.ones(2, 3))
    assert gramian_default("cpu") == ""


def test_a_gpu_takes_triton_where_the_core_was_built_without_cuda(monkeypatch):
    monkeypatch.setitem(backend._UNAVAILABLE, "cuda", lambda: "installed without nvcc")
    monkeypatch.setitem(backend._UNAVAILABLE, "triton", lambda: "")
    assert active_backend("gramian", "cuda") == "triton"
    assert gramian_default("cuda") == "triton"


def test_an_op_without_the_kernel_that_was_asked_for_says_which_it_has(monkeypatch):
    monkeypatch.setitem(backend._kernels, "other", {"reference": lambda out: None})
    with (
        use_backend("cpp"),
        pytest.raises(BackendError, match=r"other has no cpp kernel(.|\n)*here: reference"),
    ):
        active_backend("other", "cpu")


@pytest.mark.parametrize("asked", ["cpp", "cuda", "triton"])
def test_a_compiled_backend_is_not_asked_of_an_op_of_torchs_own_kernels(asked):
    assert active_backend("task_cross_entropy", "cpu") == "torch"
    assert active_backend("task_cross_entropy", "cuda") == "torch"
    assert active_backend("task_cross_entropy", "mps") == "torch"
    with use_backend(asked):
        assert active_backend("task_cross_entropy", "cpu") == "torch"
    with use_backend("reference"):
        assert active_backend("task_cross_entropy", "cpu") == "reference"
    with use_backend("torch"), pytest.raises(BackendError, match="gramian has no torch kernel"):
        active_backend("gramian", "cpu")


def test_the_table_has_every_op_with_every_backend_and_a_reason_where_it_is_missing():
    rows = table()
    assert {(row.op, row.backend) for row in rows} >= {
        (op, name) for op in ("combine", "gramian") for name in backend.BACKENDS
    }
    assert all(row.available != bool(row.reason) for row in rows)
    assert gramian_default("cpu") == "cpp"


def gramian_default(device):
    names = [row.backend for row in table() if row.op == "gramian" and device in row.default_on]
    return names[0] if names else ""
