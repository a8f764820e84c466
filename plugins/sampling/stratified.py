"""Every step's rows as mixed as the whole task, by label, column or cluster."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from mtlcore.components import Count, Share
from mtlcore.distributed import all_reduce_sum, is_main
from mtlcore.errors import UserError
from mtlcore_plugins.sampling._rows import (
    Passes,
    PreparedChooser,
    group_by_column,
    group_by_label,
    has_labels,
    note_groups,
    where,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mtlcore.data.tasks import Task
    from mtlcore.errors import Problem
    from mtlcore.run import Run

# A word, or one character of a script that puts no spaces between words.
WORD = r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+"
MAX_WORDS = 10_000  # the commonest: rarer ones tell few rows apart and cost memory


@dataclass
class Strata:
    """The strata of a task, their shares of the draws, and how many rows of each were drawn."""

    rows: dict[str, list[int]]
    shares: list[float]
    drawn: list[int]


class Stratified(PreparedChooser[Strata]):
    """Keep the shares of a task's strata in every step, so that small batches are representative.

    Accelerating Minibatch Stochastic Gradient Descent using Stratified Sampling (2014),
    https://arxiv.org/abs/1405.3080: strata by label or by clusters of the inputs.

        p_s = (1 - emphasis) n_s / n + emphasis / S        n_s of the n rows are in stratum s of S
        a step of k rows takes floor(k p_s) or ceil(k p_s) of stratum s

    The strata that get the row more (the largest remainder) are those whose draws so far lag
    farthest behind p_s times all draws: what one step rounds off, later ones make good, and a rare
    stratum gets its turn even in steps of one row. Within a stratum rows come in passes, each in an
    order drawn anew. The step's rows are handed out stratum by stratum, which deals each
    micro-batch its share of every stratum too.

    by: "label" is the label of the format (of multiple_choice, the place of the right answer; of a
        format without labels, the column `label`); "cluster" is the cluster of the prompt (of rows
        without one, the text); any other word is a column, whose values are the strata.
    clusters: with by "cluster", how many (8), or as many as there are different texts. KMeans on
        TF-IDF vectors of the words, of 10,000 words at most, from a fixed start: the same at every
        seed. They are found once and kept with the run.
    emphasis: how much more often the critical rows come, that is, those of small strata: 0 keeps
        the task's own shares, 1 gives all strata the same share.

    State: rows drawn of each stratum, and the clusters.
    Errors: rows without a label or without a value in the column, no words to cluster by.
    """

    name = "stratified"
    paper = (
        "Accelerating Minibatch Stochastic Gradient Descent using Stratified Sampling (2014), "
        "https://arxiv.org/abs/1405.3080"
    )

    def __init__(self, *, by: str = "label", clusters: Count = 8, emphasis: Share = 0.0) -> None:
        super().__init__()
        self.by = by
        self.clusters = clusters
        self.emphasis = emphasis
        self._passes = Passes()
        self._clusters: dict[str, torch.Tensor] = {}  # task -> cluster of each train row [n]
        self._drawn: dict[str, list[int]] = {}  # of a checkpoint, until the strata are known

    def require(self, task: Task) -> list[Problem]:
        """Refuse rows without a label, a value or words."""
        self._group(task)
        return []

    def prepare(self, run: Run, task: Task) -> Strata:
        """The strata with their shares, and what was drawn of them before a run was resumed."""
        rows = self._group(task)
        note_groups(run, self, task, rows, self.by)
        sizes = [len(ids) for ids in rows.values()]
        even, whole = self.emphasis / len(sizes), sum(sizes)
        shares = [(1 - self.emphasis) * size / whole + even for size in sizes]
        drawn = self._drawn.pop(task.name, [0] * len(sizes))
        if len(drawn) != len(sizes):
            raise other_rows(task, f"{len(drawn)} strata", f"{len(sizes)}")
        return Strata(rows, shares, drawn)

    def choose(self, run: Run, step: int, task: Task, count: int) -> list[int]:
        """The next `count` rows, stratum by stratum."""
        strata = self.prepared(run, task)
        takes = quotas(strata.shares, strata.drawn, count)
        chosen: list[int] = []
        for stratum, (name, ids) in enumerate(strata.rows.items()):
            first = strata.drawn[stratum]
            strata.drawn[stratum] += takes[stratum]
            chosen += (
                self._passes.row(run, ids, place, task.name, name)
                for place in range(first, strata.drawn[stratum])
            )
        return chosen

    def _group(self, task: Task) -> dict[str, list[int]]:
        if self.by == "cluster":
            return self._group_by_cluster(task)
        if self.by == "label" and has_labels(task):
            return group_by_label(task)
        return group_by_column(task, self.by)

    def _group_by_cluster(self, task: Task) -> dict[str, list[int]]:
        if task.name not in self._clusters:
            texts = [example.prompt or example.target for example in task.train]
            found = torch.tensor(cluster(texts, self.clusters, where(task)))  # [n]
            if not is_main():  # one process decides for all: rounding may differ between them
                found.zero_()
            self._clusters[task.name] = all_reduce_sum(found)
        clusters = self._clusters[task.name].tolist()  # [n]
        if len(clusters) != len(task.train):
            raise other_rows(task, f"{len(clusters)} rows", f"{len(task.train)}")
        groups: dict[str, list[int]] = {f"cluster {c}": [] for c in sorted(set(clusters))}
        for row, number in enumerate(clusters):
            groups[f"cluster {number}"].append(row)
        return groups

    def state_dict(self) -> dict[str, Any]:
        """By task: rows drawn of each stratum [S], the cluster of each row [n]."""
        drawn = {**self._drawn, **{name: made.drawn for name, made in self._prepared.items()}}
        return {
            **{f"drawn:{task}": list(counts) for task, counts in drawn.items()},
            **{f"clusters:{task}": found.clone() for task, found in self._clusters.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._prepared = {}
        parts = {name: name.partition(":") for name in state}
        self._drawn = {
            task: list(state[name]) for name, (what, _, task) in parts.items() if what == "drawn"
        }
        self._clusters = {
            task: state[name].clone()
            for name, (what, _, task) in parts.items()
            if what == "clusters"
        }


def quotas(shares: Sequence[float], drawn: Sequence[int], count: int) -> list[int]:
    """How many of `count` rows each stratum gives: its share rounded down or up, by its lag."""
    exact = [count * share for share in shares]
    takes = [math.floor(value + 1e-9) for value in exact]
    total = sum(drawn) + count
    # Rounded: lags that differ by rounding alone are ties, which the first stratum wins.
    lag = [
        round(total * share - before - take, 9)
        for share, before, take in zip(shares, drawn, takes, strict=True)
    ]
    partly = [s for s, value in enumerate(exact) if value - takes[s] > 1e-9]
    for stratum in sorted(partly, key=lambda s: -lag[s])[: count - sum(takes)]:
        takes[stratum] += 1
    return takes


def cluster(texts: Sequence[str], count: int, place: str) -> list[int]:
    """The cluster of each text; numbers go by the first text of each."""
    from sklearn.cluster import KMeans
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(token_pattern=WORD, sublinear_tf=True, max_features=MAX_WORDS)
    try:
        vectors = vectorizer.fit_transform(texts)  # sparse [n, words]
    except ValueError:  # its error for an empty vocabulary
        raise UserError(
            "the prompts have no words to cluster by",
            where=f"{place}.by",
            fix="choose strata by label or by a column",
        ) from None
    # There can be no more clusters than there are different vectors.
    vectors.sort_indices()
    different: set[tuple[bytes, bytes]] = set()
    for start, stop in pairwise(vectors.indptr):
        part = vectors.indices[start:stop].tobytes(), vectors.data[start:stop].tobytes()
        different.add(part)
    count = min(count, len(different))
    found = KMeans(n_clusters=count, n_init=4, random_state=0).fit_predict(vectors).tolist()
    numbers = {label: number for number, label in enumerate(dict.fromkeys(found))}
    return [numbers[label] for label in found]


def other_rows(task: Task, saved: str, now: str) -> UserError:
    """The error of a state that was made for other rows."""
    return UserError(
        f"the checkpoint knows {saved} of task {task.name!r}, its train rows make {now}",
        where=where(task),
        fix="resume with the rows and options that the run was started with",
    )
