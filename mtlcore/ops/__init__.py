"""Ops: kernels with one reference each. `mtlcore ops` prints which backends this machine has."""

from mtlcore.ops.backend import BackendError, OpStatus, active_backend, table, use_backend
from mtlcore.ops.combine import combine
from mtlcore.ops.gramian import gramian

__all__ = [
    "BackendError",
    "OpStatus",
    "active_backend",
    "combine",
    "gramian",
    "table",
    "use_backend",
]
