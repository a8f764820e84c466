"""Ops: kernels with one reference each. `mtlcore ops` prints which backends this machine has."""

from mtlcore.ops.backend import BackendError, OpStatus, active_backend, table, use_backend
from mtlcore.ops.combine import combine, combine_by_slice, project_task_gradients
from mtlcore.ops.gramian import cross_gramian, gramian, gramian_by_slice
from mtlcore.ops.lora import (
    Dropout,
    Places,
    Slots,
    lora_backward,
    lora_expand,
    lora_forward,
    lora_shrink,
)
from mtlcore.ops.solvers import (
    SolverError,
    balance,
    cagrad_minimum,
    cone_minimum,
    equal_projections,
    gradvac,
    pcgrad,
    simplex_minimum,
)
from mtlcore.ops.task_cross_entropy import sum_by_task, task_cross_entropy

__all__ = [
    "BackendError",
    "Dropout",
    "OpStatus",
    "Places",
    "Slots",
    "SolverError",
    "active_backend",
    "balance",
    "cagrad_minimum",
    "combine",
    "combine_by_slice",
    "cone_minimum",
    "cross_gramian",
    "equal_projections",
    "gradvac",
    "gramian",
    "gramian_by_slice",
    "lora_backward",
    "lora_expand",
    "lora_forward",
    "lora_shrink",
    "pcgrad",
    "project_task_gradients",
    "simplex_minimum",
    "sum_by_task",
    "table",
    "task_cross_entropy",
    "use_backend",
]
