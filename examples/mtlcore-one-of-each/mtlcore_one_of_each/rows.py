"""Where rows come from: a sampler, a row chooser, a format and a replay memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

from mtlcore.components import Count, Format, Replay, RowChooser, Sampler
from mtlcore.data.example import Example, RowError
from mtlcore.data.tokens import encode_pair


class RoundRobin(Sampler):
    """Give each step to one task, in turn; a task of another stage misses its turns."""

    name = "round_robin"

    def shares(self, run: Any, step: int) -> list[float]:
        """1 for the task whose turn it is."""
        active = [task.index for task in run.tasks if run.is_active(task)]
        return [float(task.index == active[step % len(active)]) for task in run.tasks]


class NewestFirst(RowChooser):
    """Take the last rows of the file first: for data that is appended to."""

    name = "newest_first"

    def choose(self, run: Any, step: int, task: Any, count: int) -> list[int]:
        """Backwards from the end, again and again."""
        place, size = run.rows_drawn[task.index], len(task.train)
        return [size - 1 - (place + i) % size for i in range(count)]


class KeyValue(Format):
    """Write all columns but the answer as "column: value" lines, and learn the answer."""

    name = "key_value"
    columns: ClassVar[dict[str, str]] = {"answer": "the text to learn"}

    def example(self, row: dict[str, Any], *, task: str, index: int, tokenizer: Any) -> Example:
        """RowError where nothing is asked or answered."""
        target = str(row["answer"])
        # A renamed column stands in the row by the file's name and by the format's.
        lines = [f"{k}: {v}" for k, v in row.items() if k != "answer" and str(v) != target]
        if not lines:
            raise RowError("the row has no column but the answer")
        prompt = "\n".join([*lines, "answer:"])
        ids, labels, given = encode_pair(tokenizer, prompt, target)
        return Example(task, index, prompt, target, ids, labels, given, fields=row)


class LastRows(Replay):
    """Keep the last rows of each task whose stage ended, and add one of each per step."""

    name = "last_rows"

    def __init__(self, *, rows: Count = 8) -> None:
        self.rows = rows
        self.kept: dict[str, list[dict[str, Any]]] = {}  # Examples as plain values

    def mtlcore_stage_end(self, run: Any, stage: str) -> None:
        """Remember the tasks that were trained."""
        for task in run.tasks:
            if run.is_active(task):
                self.kept[task.name] = [asdict(row) for row in task.train[-self.rows :]]

    def mtlcore_add_rows(self, run: Any, step: int, rows: Sequence[Example]) -> list[Example]:
        """One row of each task that is trained no longer."""
        idle = {task.name for task in run.tasks if not run.is_active(task)}
        return [
            restored(kept[step % len(kept)]) for name, kept in self.kept.items() if name in idle
        ]

    def state_dict(self) -> dict[str, Any]:
        """JSON values, saved with the run."""
        return {"kept": {name: list(rows) for name, rows in self.kept.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self.kept = dict(state.get("kept", {}))


def restored(values: Mapping[str, Any]) -> Example:
    """The Example of plain values: JSON has lists where it has tuples."""
    as_tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    as_tuples["option_ids"] = tuple(tuple(ids) for ids in values["option_ids"])
    return Example(**as_tuples)
