"""What `mtlcore check` says of model and run, as plain records. Sizes are in bytes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AdapterSize:
    """One adapter (or head) in all layers that have it; `r` is its rank or width."""

    name: str
    family: str
    tasks: list[str]
    r: int
    layers: int
    parameters: int
    size: int
    trained: bool


@dataclass(frozen=True)
class ModelCheck:
    """The base model, known without its weights, and the adapters that a run gives it."""

    architecture: str
    dtype: str
    remote_code: bool
    """Whether the recipe lets code that comes with the model run."""
    frozen_parameters: int
    frozen_size: int
    adapters: list[AdapterSize]


@dataclass(frozen=True)
class StagePlan:
    """One stage: its optimizer steps, and the train rows that they are expected to take.

    `passes` are these rows over the rows of the task. Rows that a replay adds are left out.
    """

    name: str
    steps: int
    rows: dict[str, float]
    passes: dict[str, float]


@dataclass(frozen=True)
class TokensPerStep:
    """Tokens of the rows of one step: the mean, and what 95% of the steps stay below."""

    mean: float
    p95: float


@dataclass(frozen=True)
class Memory:
    """What a step is expected to hold at its peak (see `mtlcore.preflight.memory`)."""

    device: str
    base: int
    adapters: int
    optimizer: int
    gradients: int
    activations: int
    logits: int
    total: int


@dataclass(frozen=True)
class Disk:
    """Checkpoints of a run: one's size, how many lie there at most, and the room for them."""

    checkpoint: int
    checkpoints: int
    needed: int
    free: int


@dataclass(frozen=True)
class Plan:
    """What a run would do and need, in one process."""

    stages: list[StagePlan]
    steps: int
    rows_per_step: int
    tokens_per_step: TokensPerStep
    memory: Memory
    disk: Disk


def readable(size: int) -> str:
    """`12.3 MB`: bytes in the unit, of powers of 1000, that leaves up to 4 digits."""
    number, units = float(size), ["bytes", "kB", "MB", "GB", "TB"]
    while number >= 9999.5 and len(units) > 1:
        number, units = number / 1000, units[1:]
    if units[0] == "bytes":
        return f"{size} bytes"
    return f"{number:,.0f} {units[0]}" if number >= 100 else f"{number:.1f} {units[0]}"
