"""Groups of tasks that help each other, from the affinities that a run measured."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ruamel.yaml import YAML

from mtlcore.errors import UserError, require_free
from mtlcore.recipe_file import read_recipe
from mtlcore.run import RECIPE

AFFINITY = "affinity.json"
"""What a run knows of each pair of its tasks: see `read_affinity`."""
PLAN = "plan.yaml"
CLEAR = 0.1
"""A silhouette below this is no sign of groups: random affinities reach it."""
_MEASURES = ("affinity", "cosine", "conflict")


@dataclass(frozen=True)
class Measured:
    """What affinity.json says: [T, T] matrices, NaN for a pair that never met in a step."""

    tasks: tuple[str, ...]
    steps: int
    affinity: NDArray[np.float64]
    cosine: NDArray[np.float64]
    conflict: NDArray[np.float64]


@dataclass(frozen=True)
class Grouping:
    """Groups of tasks, and how they were found.

    `similarity` [T, T]: see `similarities`. `silhouettes`: mean silhouette by number of groups, of
    those that were tried. `alone`: tasks of a group of one. `notes`: what to doubt.
    """

    measured: Measured
    groups: dict[str, list[str]]
    alone: list[str]
    similarity: NDArray[np.float64]
    silhouettes: dict[int, float]
    notes: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Groups in all, those of one task too."""
        return len(self.groups) + len(self.alone)

    def within(self, tasks: Sequence[str]) -> dict[str, float | None]:
        """Mean similarity and share of conflict between the tasks of a group; None if it is one."""
        rows = [self.measured.tasks.index(task) for task in tasks]
        pairs = [(a, b) for a in rows for b in rows if a != b]
        return self._means(pairs)

    def outward(self, tasks: Sequence[str]) -> dict[str, float | None]:
        """The same between the tasks of a group and all others."""
        rows = [self.measured.tasks.index(task) for task in tasks]
        others = [b for b in range(len(self.measured.tasks)) if b not in rows]
        return self._means([(a, b) for a in rows for b in others])

    def _means(self, pairs: list[tuple[int, int]]) -> dict[str, float | None]:
        return {
            name: _mean([matrix[pair] for pair in pairs])
            for name, matrix in (
                ("similarity", self.similarity),
                ("conflict", self.measured.conflict),
            )
        }

    def to_json(self) -> dict[str, Any]:
        """Everything, for --json."""
        return {
            "tasks": list(self.measured.tasks),
            "steps": self.measured.steps,
            "groups": {
                name: {
                    "tasks": tasks,
                    "within": self.within(tasks),
                    "to_others": self.outward(tasks),
                }
                for name, tasks in self.groups.items()
            },
            "alone": self.alone,
            "silhouettes": {str(count): value for count, value in self.silhouettes.items()},
            "similarity": self.similarity.tolist(),
            "notes": self.notes,
        }


def group(run: str | Path, count: int | None = None) -> Grouping:
    """Group the tasks of a finished run into `count` groups; None takes the clearest number."""
    return cluster(read_affinity(Path(run)), count)


def read_affinity(folder: Path) -> Measured:
    """Read a run's affinity.json; anything wrong with it is a UserError."""
    if not (folder / RECIPE).is_file():
        raise UserError(f"{folder} holds no run", fix="give the folder of a run, e.g. runs/demo")
    path = folder / AFFINITY
    if not path.is_file():
        raise UserError(
            f"the run measured no affinities: {AFFINITY} is missing",
            where=str(folder),
            fix="add `monitoring: [affinity]` to its recipe and train to the end",
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        tasks = tuple(str(name) for name in data["tasks"])
        matrices = {name: np.array(data[name], dtype=np.float64) for name in _MEASURES}
        measured = Measured(tasks=tasks, steps=int(data["steps"]), **matrices)
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from None
    for name, matrix in matrices.items():
        if matrix.shape != (len(tasks), len(tasks)):
            raise _damaged(path, f"{name} is not {len(tasks)} x {len(tasks)}")
    return measured


def _damaged(path: Path, why: str) -> UserError:
    return UserError(
        f"cannot be read as affinities: {why}", where=str(path), fix="train the run again"
    )


def cluster(measured: Measured, count: int | None = None) -> Grouping:
    """Cluster tasks by average linkage on 1 - similarity; without `count` by silhouette."""
    from sklearn.cluster import AgglomerativeClustering
    from sklearn.metrics import silhouette_score

    tasks = measured.tasks
    if len(tasks) < 3:
        raise UserError(
            f"the run has {len(tasks)} tasks, and groups need 3 or more",
            fix="with two tasks compare runs with sharing.shared above 0 and of 0",
        )
    if count is not None and not 2 <= count < len(tasks):
        raise UserError(
            f"--groups {count} for {len(tasks)} tasks: must be 2 .. {len(tasks) - 1}, or auto",
            fix="one group of all is the shared adapter, groups of one are the tasks' own",
        )
    notes = []
    similarity, unknown = similarities(measured)
    if unknown:
        notes.append(
            f"pairs that never met in a step count as neutral: {', '.join(unknown[:6])}"
            + (" ..." if len(unknown) > 6 else "")
        )
    distances = np.clip(1 - similarity, 0, None)
    np.fill_diagonal(distances, 0)
    silhouettes, labels = {}, {}
    for k in range(2, len(tasks)) if count is None else [count]:
        labels[k] = AgglomerativeClustering(
            n_clusters=k, metric="precomputed", linkage="average"
        ).fit_predict(distances)
        silhouettes[k] = float(silhouette_score(distances, labels[k], metric="precomputed"))
    best = max(silhouettes, key=silhouettes.__getitem__)  # of equals the fewest groups
    if silhouettes[best] < CLEAR:
        notes.append(
            f"the tasks show no clear groups: the silhouette is {silhouettes[best]:.2f} "
            f"(1 is clear, below {CLEAR} is chance); one adapter for all may serve as well"
        )
    # Named in the order of their first task.
    members = {
        label: [task for task, mine in zip(tasks, labels[best], strict=True) if mine == label]
        for label in dict.fromkeys(labels[best].tolist())
    }
    several = [some for some in members.values() if len(some) > 1]
    return Grouping(
        measured=measured,
        groups={f"group{number}": some for number, some in enumerate(several, start=1)},
        alone=[some[0] for some in members.values() if len(some) == 1],
        similarity=similarity,
        silhouettes=silhouettes,
        notes=notes,
    )


def similarities(measured: Measured) -> tuple[NDArray[np.float64], list[str]]:
    """Affinities in both directions, in units of the tasks' affinities for themselves: [T, T].

        S_ij = (Z_ij + Z_ji) / 2 / sqrt(Z_ii Z_jj),  clipped to -1 .. 1

    The units take out the sizes of losses and gradients, which would group tasks by their scale.
    Also gives the pairs that have no affinity; their S is 0.
    """
    Z, tasks = measured.affinity, measured.tasks
    own = np.sqrt(np.clip(np.nan_to_num(np.diagonal(Z)), 0, None))
    units = own[:, None] * own
    known = (units > 0) & ~np.isnan(Z) & ~np.isnan(Z.T)
    S = np.where(known, (Z + Z.T) / 2 / np.where(units > 0, units, 1), 0)
    S = np.clip(S, -1, 1)
    np.fill_diagonal(S, 1)
    unknown = [
        f"{tasks[a]} and {tasks[b]}"
        for a in range(len(tasks))
        for b in range(a + 1, len(tasks))
        if not known[a, b]
    ]
    return S, unknown


def write_plan(
    run: str | Path,
    grouping: Grouping,
    path: str | Path,
    *,
    rank: int | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the groups as a part of a recipe, for `extends`, and return that part.

    Shared and own ranks are those of the run. `rank` is that of each group's adapter; None takes
    half of the shared rank (of lora.r where nothing is shared).
    """
    path, run = Path(path), Path(run)
    require_free(path, overwrite)
    recipe = read_recipe(run / RECIPE, check_files=False).recipe
    shared = recipe.lora.r if recipe.sharing is None else recipe.sharing.shared
    own = 0 if recipe.sharing is None else recipe.sharing.own
    rank = rank or max(1, (shared or recipe.lora.r) // 2)
    groups = {name: {"tasks": tasks, "r": rank} for name, tasks in grouping.groups.items()}
    part = {"sharing": {"shared": shared, "own": own, "groups": groups}}
    old = {} if recipe.sharing is None else recipe.sharing.groups
    lines = [
        f"Groups of tasks by `mtlcore group` from {run / AFFINITY}:",
        f"measured in {grouping.measured.steps} steps, {len(grouping.measured.tasks)} tasks in "
        f"{grouping.count} groups, average linkage,",
        "silhouette "
        + ", ".join(f"{value:.3f} for {k} groups" for k, value in grouping.silhouettes.items()),
        *(f"{name}: {_within(grouping.within(tasks))}" for name, tasks in grouping.groups.items()),
        *(f"{task} is in a group of its own: no adapter" for task in grouping.alone),
        *(f"note: {note}" for note in grouping.notes),
        *(
            [f"note: the run's own groups ({', '.join(old)}) stay unless a recipe takes them out"]
            if set(old) - set(groups)
            else []
        ),
        f"Use: a recipe with `extends: [<recipe of the run>, {path.name}]` and a new output_dir.",
    ]
    stream = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(part, stream)
    header = "".join(f"# {line}\n" for line in lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(header + stream.getvalue(), encoding="utf-8")
    return part


def _within(means: dict[str, float | None]) -> str:
    similarity, conflict = means["similarity"], means["conflict"]
    text = f"mean similarity {similarity:.3f}"
    return text if conflict is None else f"{text}, in conflict in {conflict:.1%} of the steps"


def _mean(values: Sequence[float]) -> float | None:
    known = [float(value) for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else None
