"""Which kernel runs? The one place that answers, for every op and device.

In this order: the innermost `use_backend(...)`, the environment variable `MTLCORE_BACKEND`, the
default of the tensor's device. What was asked for and cannot run is an error, never replaced; but
an op that torch's own kernels do best (`torch`) has no others and stays with them, and so does one
that sees nothing but small tensors of the CPU.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from mtlcore.errors import UserError, did_you_mean

ENVIRONMENT_VARIABLE = "MTLCORE_BACKEND"

BACKENDS = {
    "reference": "the specification in float64, on any device",
    "torch": "torch's own kernels, for ops that are made of matrix products; on any device",
    "cpp": "C++ with OpenMP, on the CPU",
    "cuda": "CUDA, on NVIDIA GPUs",
    "triton": "Triton, on NVIDIA GPUs (on the CPU under TRITON_INTERPRET=1)",
}

# The first that is available runs. CUDA kernels are compiled in only where nvcc was found at
# installation, so a GPU has a second choice; `mtlcore ops` shows which one it is.
_DEFAULTS = {"cpu": ("cpp", "torch"), "cuda": ("cuda", "triton", "torch")}
_ELSEWHERE = ("torch", "reference")

# Asking for one of them chooses among kernels of our own, which an op of torch's does not have.
_COMPILED = {"cpp", "cuda", "triton"}
_GPU = {"cuda", "triton"}

Kernel = Callable[..., None]

_kernels: dict[str, dict[str, Kernel]] = {}
# Of the process, not of the thread: autograd calls ops from threads of its own.
_asked: list[str] = []


class BackendError(UserError):
    """A backend that was asked for, or that a device needs, cannot run."""


@dataclass(frozen=True)
class OpStatus:
    """One cell of the table of ops and backends."""

    op: str
    backend: str
    available: bool
    reason: str = ""  # why it is not available
    default_on: tuple[str, ...] = field(default=())  # devices on which it runs unasked


def declare(op: str, **kernels: Kernel) -> None:
    """Tell which backends `op` has: `declare("gramian", cpp=..., reference=...)`.

    A kernel takes the op's inputs, then its outputs, which it fills.
    """
    unknown = kernels.keys() - BACKENDS.keys()
    assert not unknown, f"{op}: unknown backends {unknown}"
    _kernels[op] = kernels


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run all ops inside the `with` block on one backend: `with use_backend("reference"): ...`."""
    _asked.append(_known(name, "use_backend"))
    try:
        yield
    finally:
        _asked.pop()


def active_backend(op: str, device: torch.device | str) -> str:
    """The backend that `op` runs on for tensors on `device`; BackendError when none can."""
    return _resolve(op, torch.device(device).type)


def _resolve(op: str, device_type: str) -> str:
    name = _asked_for()
    if name is not None and not _has_nothing_like(op, name):
        reason = _why_not(op, name) or _wrong_device(name, device_type)
        if reason:
            have = ", ".join(status.backend for status in _statuses(op) if status.available)
            raise BackendError(
                f"backend {name!r} was asked for, but {reason}",
                where=f"op {op}",
                fix=f"available for {op} here: {have}",
            )
        return name
    reasons = {}
    for candidate in _DEFAULTS.get(device_type, _ELSEWHERE):
        if candidate in _kernels[op]:
            reasons[candidate] = _why_not(op, candidate)
            if not reasons[candidate]:
                return candidate
    raise BackendError(
        "; ".join(f"{candidate}: {reason}" for candidate, reason in reasons.items()),
        where=f"op {op} on {device_type}",
        fix=f"reinstall mtlcore, or set {ENVIRONMENT_VARIABLE}=reference (slow)",
    )


def _has_nothing_like(op: str, name: str) -> bool:
    """Whether the op is of torch's own kernels, or of the CPU alone, and the backend is not."""
    kernels = _kernels[op]
    on_cpu_alone = "cpp" in kernels and not _GPU & kernels.keys()
    return (name in _COMPILED and "torch" in kernels) or (name in _GPU and on_cpu_alone)


def kernel(op: str, device: torch.device) -> Kernel:
    """The function that runs `op` for tensors on `device`."""
    return _kernels[op][_resolve(op, device.type)]


def table() -> list[OpStatus]:
    """Every op with every backend: available or why not, and where it is the default."""
    return [status for op in sorted(_kernels) for status in _statuses(op)]


def _statuses(op: str) -> list[OpStatus]:
    statuses = []
    for name in BACKENDS:
        reason = _why_not(op, name)
        default_on = [
            device
            for device, candidates in _DEFAULTS.items()
            if name == next((one for one in candidates if not _why_not(op, one)), None)
        ]
        statuses.append(OpStatus(op, name, not reason, reason, tuple(default_on)))
    return statuses


def _asked_for() -> str | None:
    if _asked:
        return _asked[-1]
    name = os.environ.get(ENVIRONMENT_VARIABLE)
    return _known(name, ENVIRONMENT_VARIABLE) if name else None


def _known(name: str, where: str) -> str:
    if name not in BACKENDS:
        raise BackendError(
            f"unknown backend {name!r}", where=where, fix=did_you_mean(name, BACKENDS)
        )
    return name


def _why_not(op: str, name: str) -> str:
    """Why the backend cannot run the op on this machine; empty when it can."""
    if name not in _kernels[op]:
        return f"{op} has no {name} kernel"
    return _UNAVAILABLE[name]()


def _wrong_device(name: str, device_type: str) -> str:
    runs_on = {"cpp": "cpu", "cuda": "cuda", "triton": "cpu" if _interpreted() else "cuda"}
    needed = runs_on.get(name, device_type)
    return "" if needed == device_type else f"it runs on {needed} tensors, found {device_type}"


@cache
def _import_error(module: str) -> str:
    try:
        importlib.import_module(module)
    except ImportError as error:
        return f"{module} cannot be imported: {error}"
    return ""


@cache
def core() -> Any:
    """The compiled core. Imported after torch, so that both use torch's OpenMP threads."""
    return importlib.import_module("mtlcore._core")


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _no_core() -> str:
    return _import_error("mtlcore._core")


def _no_cuda() -> str:
    if _no_core():
        return _no_core()
    if not core().has_cuda:
        return "mtlcore was installed without nvcc (see MTLCORE_CUDA)"
    return "" if torch.cuda.is_available() else "torch sees no CUDA device"


def _no_triton() -> str:
    if _import_error("triton"):
        return _import_error("triton")
    if _interpreted() or torch.cuda.is_available():
        return ""
    return "torch sees no CUDA device (TRITON_INTERPRET=1 runs it, slowly, on the CPU)"


_UNAVAILABLE: dict[str, Callable[[], str]] = {
    "reference": str,
    "torch": str,
    "cpp": _no_core,
    "cuda": _no_cuda,
    "triton": _no_triton,
}
