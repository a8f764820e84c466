"""How groups of people are represented in the rows of a task."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any, TypeAlias

from mtlcore.data.check_report import Group, GroupCheck, Interval

MOST_GROUPS = 50
NO_VALUE = "(none)"

Counts: TypeAlias = Counter[tuple[str, str, str]]
"""(value of the column, split, label) -> rows."""


def group_check(task: str, column: str, counts: Counts) -> GroupCheck:
    """The largest groups of a column with their share of the task, and each label's of them."""
    total = counts.total()
    values: Counter[str] = Counter()
    for (value, _, _), count in counts.items():
        values[value] += count
    splits: dict[str, Counter[str]] = defaultdict(Counter)
    labels: dict[str, Counter[str]] = defaultdict(Counter)
    for (value, split, label), count in counts.items():
        splits[value][split] += count
        if label:
            labels[value][label] += count
    ordered = sorted(values, key=lambda value: (-values[value], value))
    groups = [
        Group(
            value,
            Interval.of(values[value], total),
            dict(splits[value]),
            {
                label: Interval.of(count, values[value])
                for label, count in sorted(labels[value].items())
            },
        )
        for value in ordered[:MOST_GROUPS]
    ]
    return GroupCheck(task, column, groups, len(ordered))


def without_labels(counts: Counts) -> Counts:
    """The same rows where the answers are no labels."""
    found: Counts = Counter()
    for (value, split, _), count in counts.items():
        found[value, split, ""] += count
    return found


def group_value(value: Any) -> str:
    """The name of a group; 1, 1.0 and "1" are one."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return NO_VALUE
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()
