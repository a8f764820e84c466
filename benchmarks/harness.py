"""The common form of all benchmarks.

    def check() -> None: ...                 # raises AssertionError; nothing is timed then
    def measure() -> list[Result]: ...
    if __name__ == "__main__":
        main("startup", check, measure)

`python -m benchmarks.<name>` prints a table, then one JSON object as the last line; `--json` leaves
the table out, `--record` appends the line to `benchmarks/results/<device>.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import psutil

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("mtlcore", "torch", "transformers", "peft", "triton", "torchjd")
BUSY = 0.15  # with more of the CPU in others' hands, times are not to be trusted


@dataclass(frozen=True)
class Result:
    """One number: the median with its spread, and whether it meets its target."""

    case: str
    metric: str
    value: float
    unit: str
    p20: float
    p80: float
    target: float | None = None
    met: bool | None = None


def seconds(
    function: Callable[[], object], synchronize: Callable[[], object] | None = None
) -> float:
    """Wall time of one call; `synchronize` waits for the device before both readings."""
    if synchronize:
        synchronize()
    start = time.perf_counter()
    function()
    if synchronize:
        synchronize()
    return time.perf_counter() - start


def interleave(
    variants: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warmup: int = 1,
    synchronize: Callable[[], object] | None = None,
    settle: Callable[[], object] | None = None,
) -> dict[str, list[float]]:
    """Time all variants in every round, in turning order, so that drift hits all alike.

    `settle` follows every call and is not timed: it waits for what the call left to be done.
    """
    names = list(variants)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-warmup, rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            elapsed = seconds(variants[name], synchronize)
            if settle:
                settle()
            if turn >= 0:
                times[name].append(elapsed)
    return times


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, 20th and 80th percentile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return statistics.median(values), fifths[0], fifths[3]


def result(
    case: str,
    metric: str,
    values: Sequence[float],
    unit: str,
    *,
    target: float | None = None,
    higher_is_better: bool = False,
) -> Result:
    """The median of measured values against a target."""
    value, p20, p80 = spread(values)
    met = None
    if target is not None:
        met = value >= target if higher_is_better else value <= target
    return Result(case, metric, value, unit, p20, p80, target, met)


def ratios(times: Mapping[str, Sequence[float]], variant: str, rival: str) -> list[float]:
    """Time of `variant` over time of `rival`, round by round."""
    return [mine / theirs for mine, theirs in zip(times[variant], times[rival], strict=True)]


class Work(NamedTuple):
    """The fewest operations and bytes of a computation: its roofline (Williams et al., CACM 2009,
    https://doi.org/10.1145/1498765.1498785)."""

    operations: float
    bytes: float

    def floor(self, rate: float, bandwidth: float) -> float:
        """Seconds at so many operations and bytes a second, each at the same time as the other."""
        return max(self.operations / rate, self.bytes / bandwidth)


class OtherLoad:
    """Share of all cores that other processes use between `start` and `share`."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self._at, self._all, self._own = time.perf_counter(), _busy_seconds(), _own_seconds()

    def share(self) -> float:
        available = (time.perf_counter() - self._at) * (os.cpu_count() or 1)
        others = (_busy_seconds() - self._all) - (_own_seconds() - self._own)
        return min(1.0, max(0.0, others / available)) if available else 0.0


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    # guest time is counted in user time already
    idle = ("idle", "iowait", "guest", "guest_nice", "steal")
    return float(sum(value for name, value in times._asdict().items() if name not in idle))


def _own_seconds() -> float:
    mine = psutil.Process().cpu_times()
    return float(mine.user + mine.system + mine.children_user + mine.children_system)


def device_name(device: str = "cpu") -> str:
    """The GPU's name, or the CPU's model and its cores, as a slug for a file name."""
    if device == "cpu":
        name = f"{_cpu_model()} {os.cpu_count()} cores"
    else:
        import torch

        name = torch.cuda.get_device_name(device)
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        if found:
            return re.sub(r"\((R|TM)\)|@.*", "", found[1]).strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """The commit of the source tree, with `-dirty` when files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=RESULTS.parent, capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


def versions() -> dict[str, str]:
    """Versions of what the times depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def main(
    name: str,
    check: Callable[[], None],
    measure: Callable[[], list[Result]],
    *,
    device: str = "cpu",
    argv: Sequence[str] | None = None,
    complete: Callable[[], bool] = lambda: True,
) -> None:
    """Check, measure, print; exits with 1, and without any time, when the check is red.

    A measurement of several sittings is recorded when it is `complete`.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    parser.add_argument("--json", action="store_true", help="print only the JSON line")
    parser.add_argument("--record", action="store_true", help="append the line to results/")
    options = parser.parse_args(argv)
    try:
        check()
    except AssertionError as error:
        print(f"{name}: the check failed, nothing was timed: {error}", file=sys.stderr)
        sys.exit(1)
    load = OtherLoad()
    time.sleep(1.0)
    before = load.share()
    load.start()
    results = measure()
    during = load.share()
    busy = max(before, during) > BUSY
    record = {
        "benchmark": name,
        "device": device_name(device),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": versions(),
        "load": {"before": round(before, 3), "during": round(during, 3), "busy": busy},
        "results": [asdict(one) for one in results],
    }
    if not options.json:
        _print_table(results, busy)
    line = json.dumps(record)
    if options.record and not complete():
        print(f"{name}: not complete, so nothing was recorded", file=sys.stderr)
    elif options.record:
        RESULTS.mkdir(exist_ok=True)
        with (RESULTS / f"{record['device']}.jsonl").open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
    print(line)


def _print_table(results: Sequence[Result], busy: bool) -> None:
    for one in results:
        target = "" if one.target is None else f"  target {one.target:g}: "
        verdict = "" if one.met is None else "met" if one.met else "MISSED"
        print(
            f"{one.case:24} {one.metric:20} {one.value:10.4g} {one.unit:4} "
            f"[{one.p20:.4g} .. {one.p80:.4g}]{target}{verdict}"
        )
    if busy:
        print(f"other processes used more than {BUSY:.0%} of the CPU: do not trust these times")
