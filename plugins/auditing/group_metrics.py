"""The quality of answers for groups of rows, such as by the writer's sex or region."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from annotated_types import Ge

from mtlcore.components import Auditor, Count, Evaluator, Finding, NotNegative
from mtlcore.errors import UserError, did_you_mean, nearest, require_tasks

if TYPE_CHECKING:
    from torch import Tensor

    from mtlcore.components import Component
    from mtlcore.data.tasks import Task
    from mtlcore.errors import Problem
    from mtlcore.evaluation.predictions import Prediction
    from mtlcore.recipe import Recipe
    from mtlcore.run import Run

SELECTION_RATE, TRUE_POSITIVE_RATE = "selection_rate", "true_positive_rate"
SHOWN = 8


@dataclass(frozen=True)
class Quantity:
    """A number of a group's rows, and where it can be had quickly, of many draws of them [B, n]."""

    name: str
    label: str | None
    value: Callable[[Sequence[Prediction]], float]
    resample: Callable[[Sequence[Prediction], Tensor], Sequence[float]]
    row_scores: Callable[[Sequence[Prediction]], Sequence[float] | None]


class Compared(NamedTuple):
    """One quantity over the groups, and its spreads between groups drawn by lot."""

    lot: Tensor | None
    facts: dict[str, Any]


class GroupMetrics(Auditor):
    """Compare the metrics of groups of rows, by a sensitive column (fairlearn's MetricFrame).

    Equality of Opportunity in Supervised Learning (NeurIPS 2016),
    https://arxiv.org/abs/1610.02413

        difference = highest - lowest value of a group        ratio = lowest / highest

    One finding per task and quantity, named `group_metrics.<quantity>`; its value is the difference
    between the groups. Quantities are the task's primary metric (without one: the loss per target
    token) and `metric`; for rows with options also accuracy and, where all rows have the same
    options, the largest difference of `selection_rate` (the share of rows that get an option:
    demographic parity) and of `true_positive_rate` (the share of an option's rows that get it:
    equal opportunity). Details hold n and value of each group, the ratio, and 95% bootstrap
    intervals (rows are drawn within groups). As the highest less the lowest is never below 0, the
    interval of a difference lies above 0 even between equal groups: where the quantity is a mean
    over rows, p is how often groups of these sizes, drawn by lot, differ as much (for
    rates: with any label).

    column: the column of the groups, as the file names it; rows without a value are left out and
    counted. metric: what fail_above limits (default: the primary metric). tasks: those to audit;
    all that have the column by default. min_group: smaller groups are refused before training
    (10). resamples: of intervals and tests (200). fail_above: the audit fails where the difference
    of `metric` is above it, or cannot be had.
    """

    name = "group_metrics"
    paper = (
        "Equality of Opportunity in Supervised Learning (NeurIPS 2016), "
        "https://arxiv.org/abs/1610.02413"
    )

    def __init__(
        self,
        *,
        column: str,
        metric: str | None = None,
        tasks: list[str] | None = None,
        min_group: Count = 10,
        resamples: Annotated[int, Ge(40)] = 200,
        every_n_steps: Count | None = None,
        fail_above: NotNegative | None = None,
    ) -> None:
        self.column = column
        self.metric = metric
        self.names = tasks
        self.min_group = min_group
        self.resamples = resamples
        self.every_n_steps = every_n_steps
        self.fail_above = fail_above

    # -- what is refused ----------------------------------------------------------------------

    def mtlcore_check(
        self, recipe: Recipe, tasks: Sequence[Task], components: Mapping[str, Component]
    ) -> list[Problem]:
        """Refuse a missing column, a small group or an unknown metric before a step is taken."""
        require_tasks(self.names or (), recipe.tasks, "auditing.tasks")
        rows = {task.name: list(task.eval) for task in tasks if task.eval}
        fields = {name: [example.fields for example in found] for name, found in rows.items()}
        if self.names is None and len(tasks) < len(recipe.tasks):
            # The column may be that of a task which could not be read.
            fields = {n: f for n, f in fields.items() if any(self.column in row for row in f)}
        for name in self._audited(fields, recipe):
            evaluators = [
                component
                for component in components.values()
                if isinstance(component, Evaluator) and name in component.tasks
            ]
            self._require_metric(evaluators, name, bool(rows[name][0].options))
            self._require_groups(name, fields[name])
        return []

    def audit(self, run: Run, predictions: Mapping[str, Sequence[Prediction]]) -> list[Finding]:
        """The findings of each task that has the column."""
        require_tasks(self.names or (), run.recipe.tasks, "auditing.tasks")
        fields = {name: [row.fields for row in rows] for name, rows in predictions.items()}
        findings: list[Finding] = []
        for name in self._audited(fields, run.recipe):
            task, rows = run.task(name), predictions[name]
            self._require_metric(run.evaluators[name], name, bool(rows[0].options))
            findings += self._of_task(run, task, rows)
        return findings

    def _audited(
        self, fields: Mapping[str, Sequence[Mapping[str, Any]]], recipe: Recipe
    ) -> list[str]:
        """The tasks to audit among those with rows; a UserError if the column is missing."""
        chosen = [name for name in fields if self.names is None or name in self.names]
        having = [name for name in chosen if any(self.column in row for row in fields[name])]
        missing = [name for name in chosen if name not in having]
        if not missing or (self.names is None and having):
            return having
        name = missing[0]
        found = dict.fromkeys(column for row in fields[name] for column in row)
        columns = recipe.tasks[name].columns_of_files(found)
        near = nearest(self.column, columns)
        tasks = f"task {name!r} has" if len(missing) == 1 else f"tasks {', '.join(missing)} have"
        raise UserError(
            f"{tasks} no column {self.column!r}; columns of {name!r}: {', '.join(columns)}",
            where="auditing.column",
            fix=f"did you mean {near!r}?" if near else "name the column that holds the group",
        )

    def _require_groups(self, name: str, fields: Sequence[Mapping[str, Any]]) -> None:
        groups = Counter(filter(None, map(self._group, fields)))
        small = sorted((n, group) for group, n in groups.items() if n < self.min_group)
        if small:
            shown = ", ".join(f"{group!r} has {n}" for n, group in small[:SHOWN])
            more = f" and {len(small) - SHOWN} more" if len(small) > SHOWN else ""
            raise UserError(
                f"task {name!r}: {len(small)} of {len(groups)} groups of {self.column!r} have "
                f"fewer than {self.min_group} eval rows: {shown}{more}",
                where="auditing.column",
                fix="merge these groups with others, collect more rows, or set min_group (a "
                "number of so few rows says little)",
            )
        if len(groups) < 2:
            what = f"the one value {next(iter(groups))!r}" if groups else "no value"
            raise UserError(
                f"task {name!r}: column {self.column!r} has {what} in the eval rows, so there are "
                "no groups to compare",
                where="auditing.column",
                fix="name a column with two values or more, or leave the task out with `tasks`",
            )

    def _require_metric(
        self, evaluators: Sequence[Evaluator], task: str, has_options: bool
    ) -> None:
        known = [found.name for found in self._quantities(evaluators, has_options, ["", ""])]
        if self.metric is not None and self.metric not in known:
            raise UserError(
                f"{self.name} cannot limit {self.metric!r} of task {task!r}",
                where="auditing.metric",
                fix=did_you_mean(self.metric, known),
            )

    def _group(self, row: Mapping[str, Any]) -> str | None:
        value = row.get(self.column)
        return None if value is None or not str(value).strip() else str(value).strip()

    # -- what is found ------------------------------------------------------------------------

    def _quantities(
        self, evaluators: Sequence[Evaluator], has_options: bool, labels: Sequence[str]
    ) -> list[Quantity]:
        """The metrics of a task, the primary one first, then the rates of each label."""
        found = [_of_evaluator(evaluator) for evaluator in evaluators]
        if has_options and not any(quantity.name == "accuracy" for quantity in found):
            found.append(_mean("accuracy", None, lambda row: float(row.choice == row.label)))
        if not found:
            found.append(_loss())
        for index, label in enumerate(labels if has_options else ()):
            found.append(_mean(SELECTION_RATE, label, _is_chosen(index)))
            found.append(
                _mean(TRUE_POSITIVE_RATE, label, _is_chosen(index), among=_is_label(index))
            )
        return found

    def _of_task(self, run: Run, task: Task, rows: Sequence[Prediction]) -> list[Finding]:
        group_of = [self._group(row.fields) for row in rows]
        sizes = Counter(group for group in group_of if group is not None)
        large = [group for group in sorted(sizes) if sizes[group] >= self.min_group]
        facts: dict[str, Any] = {
            "column": self.column,
            "rows_without_value": group_of.count(None),
            "small_groups": {g: sizes[g] for g in sorted(sizes) if g not in large},
        }
        if len(large) < 2:
            message = (
                f"not enough data: of the groups of {self.column!r} {len(large)} have "
                f"{self.min_group} rows or more ({_counted(sizes)})"
            )
            facts["enough"] = False
            return [Finding(self.name, task.name, math.nan, message, details=facts)]
        kept = [row for row, group in zip(rows, group_of, strict=True) if group in large]
        groups = [group for group in group_of if group in large]
        has_options = bool(kept[0].options)
        # Rates are of options that mean the same in every row.
        fixed = has_options and all(row.options == kept[0].options for row in kept)
        quantities = self._quantities(
            run.evaluators[task.name], has_options, kept[0].options if fixed else ()
        )
        findings: list[Finding] = []
        limited = self.metric or quantities[0].name
        if limited not in {quantity.name for quantity in quantities}:
            # Only a rate of labels can be missing: the check has seen all else.
            findings.append(self._unknown(task, limited, "rows have options of their own", facts))
        wanted = {limited, quantities[0].name, "accuracy", SELECTION_RATE, TRUE_POSITIVE_RATE}
        for name in dict.fromkeys(q.name for q in quantities if q.name in wanted):
            same = [quantity for quantity in quantities if quantity.name == name]
            found = [self._compare(run, task, q, kept, groups, large) for q in same]
            known = [one for one in found if one is not None]
            left_out = [q.label for q, one in zip(same, found, strict=True) if one is None]
            more = {**facts, "labels_without_value": left_out} if left_out else facts
            if known:
                limit = self.fail_above if name == limited else None
                findings.append(self._finding(task, name, known, more, limit))
            elif name == limited:
                findings.append(self._unknown(task, name, "a group has no value of it", more))
        return findings

    def _unknown(self, task: Task, name: str, why: str, facts: Mapping[str, Any]) -> Finding:
        """That the limited quantity has no value: a limit that cannot be looked at is not kept."""
        limit = self.fail_above
        message = f"{name} cannot be compared between the groups of {self.column!r}: {why}"
        if limit is not None:
            message += f", so the limit {limit:g} is not kept"
        title, details = f"{self.name}.{name}", {**facts, "enough": False}
        return Finding(title, task.name, math.nan, message, limit is not None, details, limit)

    def _compare(
        self,
        run: Run,
        task: Task,
        quantity: Quantity,
        rows: Sequence[Prediction],
        groups: Sequence[str],
        names: Sequence[str],
    ) -> Compared | None:
        """One quantity over the groups; None where a group has no value (no row of the label)."""
        import numpy as np
        import torch
        from fairlearn.metrics import MetricFrame

        from mtlcore.evaluation.bootstrap import interval
        from mtlcore_plugins.auditing._statistics import p_value, spreads

        def value(numbers: Iterable[int], _: object) -> float:
            return quantity.value([rows[int(number)] for number in numbers])

        numbers = np.arange(len(rows))
        frame = MetricFrame(
            metrics=value, y_true=numbers, y_pred=numbers, sensitive_features=np.array(groups)
        )
        by_group = {str(group): float(found) for group, found in frame.by_group.items()}
        if not all(map(math.isfinite, by_group.values())):
            return None
        key = (run.seed, self.name, task.name, quantity.name, quantity.label)
        members = {
            name: [row for row, group in zip(rows, groups, strict=True) if group == name]
            for name in names
        }
        drawn = torch.stack([self._drawn(quantity, members[name], *key, name) for name in names])
        spread = interval(drawn.amax(0) - drawn.amin(0))
        scores = quantity.row_scores(rows)
        p = lot = None
        if scores is not None:
            which = torch.tensor([names.index(group) for group in groups])
            # Rows that do not count (of other labels) have no score.
            has = ~torch.isnan(table := torch.tensor(scores, dtype=torch.float64))
            # Rates of all rows: the same lots for every label, which `_finding` compares.
            lots = key[:-1] if has.all() else key
            observed, lot = spreads(table[has], which[has], self.resamples, *lots)
            p = p_value(observed, lot)
        return Compared(
            lot,
            {
                "label": quantity.label,
                "difference": float(frame.difference(method="between_groups")),
                "low": spread.low if spread else None,
                "high": spread.high if spread else None,
                "p": p,
                "ratio": _ratio(by_group.values()),
                "overall": float(frame.overall),
                "by_group": {
                    name: {"n": len(members[name]), "value": by_group[name], **_ends(values)}
                    for name, values in zip(names, drawn, strict=True)
                },
            },
        )

    def _drawn(self, quantity: Quantity, rows: Sequence[Prediction], *key: object) -> Tensor:
        """[B] the quantity on draws of a group's rows."""
        import torch

        from mtlcore.evaluation.bootstrap import draws

        found: list[float] = []
        for numbers in draws(len(rows), self.resamples, *key):
            found += quantity.resample(rows, numbers)
        return torch.tensor(found, dtype=torch.float64)

    def _finding(
        self,
        task: Task,
        name: str,
        compared: Sequence[Compared],
        facts: Mapping[str, Any],
        limit: float | None,
    ) -> Finding:
        """Of one quantity, or of a rate of several labels: the one that differs most.

        Its p-value is how often any label differs as much by lot, for it was chosen as the worst
        of all (Westfall and Young 1993); in `labels` each has its own.
        """
        from mtlcore_plugins.auditing._statistics import p_value

        found = [one.facts for one in compared]
        worst = dict(max(found, key=lambda one: float(one["difference"])))
        lots = [one.lot for one in compared if one.lot is not None]
        if len(lots) > 1:
            largest = functools.reduce(lambda one, other: one.maximum(other), lots)
            worst["p"] = p_value(worst["difference"], largest)
        difference, groups = worst["difference"], worst["by_group"]
        # The last of equal ones, so that two groups are named where there is no difference.
        low = min(reversed(list(groups)), key=lambda group: float(groups[group]["value"]))
        high = max(groups, key=lambda group: float(groups[group]["value"]))
        of = "" if worst["label"] is None else f" of {worst['label']!r}"
        p = "" if worst["p"] is None else f", p = {worst['p']:.3g}"
        message = (
            f"{name}{of} differs by {difference:.3f} between the groups of {self.column!r}: "
            f"{high!r} {groups[high]['value']:.3f} (n = {groups[high]['n']}), "
            f"{low!r} {groups[low]['value']:.3f} (n = {groups[low]['n']}){p}"
        )
        details = {**facts, "enough": True, "n": sum(g["n"] for g in groups.values()), **worst}
        if len(found) > 1:
            details["labels"] = {one["label"]: one for one in found}
        failed = limit is not None and difference > limit
        title = f"{self.name}.{name}"
        return Finding(title, task.name, difference, message, failed, details, limit)


def _of_evaluator(evaluator: Evaluator) -> Quantity:
    """A metric of the recipe."""

    def resample(rows: Sequence[Prediction], numbers: Tensor) -> Sequence[float]:
        try:
            return evaluator.resample(rows, numbers)
        except (UserError, ValueError, ArithmeticError):  # some draw has no value: one by one
            return [value([rows[number] for number in draw]) for draw in numbers.tolist()]

    def value(rows: Sequence[Prediction]) -> float:
        try:
            return float(evaluator.score(rows))
        except (UserError, ValueError, ArithmeticError):
            return math.nan

    return Quantity(evaluator.name, None, value, resample, evaluator.row_scores)


def _mean(
    name: str,
    label: str | None,
    score: Callable[[Prediction], float],
    *,
    among: Callable[[Prediction], bool] = lambda row: True,
) -> Quantity:
    """The mean score of some rows; NaN where there is none."""

    def row_scores(rows: Sequence[Prediction]) -> list[float]:
        return [score(row) if among(row) else math.nan for row in rows]

    def value(rows: Sequence[Prediction]) -> float:
        scores = [score(row) for row in rows if among(row)]
        return sum(scores) / len(scores) if scores else math.nan

    def resample(rows: Sequence[Prediction], numbers: Tensor) -> list[float]:
        import torch

        drawn = torch.tensor(row_scores(rows), dtype=torch.float64)[numbers]
        return [float(mean) for mean in drawn.nanmean(1)]

    return Quantity(name, label, value, resample, row_scores)


def _loss() -> Quantity:
    """The loss per target token, of tasks without a metric."""

    def value(rows: Sequence[Prediction]) -> float:
        return sum(row.loss_sum for row in rows) / sum(row.tokens for row in rows)

    def resample(rows: Sequence[Prediction], numbers: Tensor) -> list[float]:
        return [value([rows[number] for number in draw]) for draw in numbers.tolist()]

    return Quantity("loss", None, value, resample, lambda rows: None)


def _is_chosen(index: int) -> Callable[[Prediction], bool]:
    return lambda row: row.choice == index


def _is_label(index: int) -> Callable[[Prediction], bool]:
    return lambda row: row.label == index


def _ratio(values: Iterable[float]) -> float | None:
    """Lowest over highest; None where that says nothing (all 0, or numbers below 0)."""
    low, high = min(found := list(values)), max(found)
    return low / high if low >= 0 and high > 0 else None


def _ends(values: Tensor) -> dict[str, float | None]:
    from mtlcore.evaluation.bootstrap import interval

    found = interval(values)
    return {"low": found.low if found else None, "high": found.high if found else None}


def _counted(sizes: Mapping[str, int]) -> str:
    shown = [f"{group!r}: {n}" for group, n in list(sizes.items())[:SHOWN]]
    return ", ".join(shown) + (", ..." if len(sizes) > SHOWN else "") or "none has a value"
