"""Hold out rows of one file: seeded, stratified, and never dividing a group."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mtlcore.errors import UserError, counted


def hold_out(
    rows: Sequence[Mapping[str, Any]],
    shares: Mapping[str, float],
    *,
    among: Sequence[int] | None = None,
    by: str | None = None,
    stratify: str | None = None,
    seed: int = 0,
    where: str = "",
) -> dict[str, list[int]]:
    """Row numbers of each part in `shares`, and of the rest under "train"; all rising.

    Only rows whose numbers are in `among` are divided; without it, all are. Rows with equal values
    of `by` form a unit that stays whole (a null is a value too). Units are ordered by a hash of
    (seed, unit), not by a generator, so two tasks that read one file hold out the same rows as far
    as their strata allow. Each part takes its share of every value of `stratify`; a unit counts as
    the value that most of its rows have.
    """
    numbers = range(len(rows)) if among is None else among
    units = _units(rows, numbers, by)
    parts = [part for part, share in shares.items() if share > 0]
    if len(units) <= len(parts):
        what = counted(len(units), "value") + f" of {by!r}" if by else counted(len(units), "row")
        raise UserError(
            f"{what} cannot be divided into train, {', '.join(parts)}",
            where=where,
            fix="name files for them, set their share to 0, or add rows",
        )
    order = sorted(units, key=lambda unit: hashlib.sha256(f"{seed}\x1f{unit}".encode()).digest())
    stratum = {unit: _stratum(rows, units[unit], stratify) for unit in order}
    left = dict.fromkeys(order)
    result: dict[str, list[int]] = {}
    for number, part in enumerate(parts):
        wanted = max(1, round(shares[part] * len(numbers)))
        taken = _draw(list(left), units, stratum, wanted)
        # One unit for train and one for each later part must stay.
        for unit in taken[: len(left) - (len(parts) - number)]:
            del left[unit]
            result.setdefault(part, []).extend(units[unit])
        result[part].sort()
    result["train"] = sorted(row for unit in left for row in units[unit])
    return result


def _units(
    rows: Sequence[Mapping[str, Any]], numbers: Iterable[int], by: str | None
) -> dict[str, list[int]]:
    if by is None:
        return {str(number): [number] for number in numbers}
    units: dict[str, list[int]] = {}
    for number in numbers:
        units.setdefault(_key(rows[number].get(by)), []).append(number)
    return units


def _stratum(rows: Sequence[Mapping[str, Any]], unit: list[int], column: str | None) -> str:
    if column is None:
        return ""
    counts = Counter(_key(rows[index].get(column)) for index in unit)
    return min(counts, key=lambda value: (-counts[value], value))


def _draw(
    free: list[str], units: Mapping[str, list[int]], stratum: Mapping[str, str], wanted: int
) -> list[str]:
    """Units of about `wanted` rows in sum, at least one, each stratum by its size.

    A unit is taken while it brings the count nearer to what is wanted. The last unit of a stratum
    stays, so that no value is missing from train.
    """
    stay = Counter(stratum[unit] for unit in free)
    sizes: Counter[str] = Counter()
    for unit in free:
        sizes[stratum[unit]] += len(units[unit])
    need = _apportion(sizes, wanted)
    taken: dict[str, None] = {}
    for unit in free:
        name, size = stratum[unit], len(units[unit])
        if stay[name] > 1 and size / 2 <= need[name]:
            taken[unit] = None
            stay[name] -= 1
            need[name] -= size
    missing = wanted - sum(len(units[unit]) for unit in taken)
    for unit in free:  # what small strata could not give
        name, size = stratum[unit], len(units[unit])
        if unit not in taken and stay[name] > 1 and size / 2 <= missing:
            taken[unit] = None
            stay[name] -= 1
            missing -= size
    if not taken:
        spare = [unit for unit in free if stay[stratum[unit]] > 1] or free
        taken[min(spare, key=lambda unit: len(units[unit]))] = None
    return list(taken)


def _apportion(sizes: Mapping[str, int], wanted: int) -> dict[str, int]:
    """Divide `wanted` rows among strata by size, largest remainders first."""
    total = sum(sizes.values())
    exact = {name: wanted * size / total for name, size in sizes.items()}
    quotas = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (quotas[name] - exact[name], name))
    for name in by_remainder[: wanted - sum(quotas.values())]:
        quotas[name] += 1
    return quotas


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
