"""The recipe of the larger set fits rows of the form that its builder writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import large_set
from mtlcore.demo import build_data
from mtlcore.errors import UserError
from tests.helpers import load

ROWS = {
    "boolq": build_data.boolq([(f"is {n} red", f"Passage {n} .", n % 2 == 0) for n in range(200)]),
    "siqa": build_data.siqa(
        [(f"Jan {n} ate.", "Why?", ["a", "b", "c"], n % 3) for n in range(200)]
    ),
    "entities": build_data.entities(
        [(f"Bank {n} lends .", "Bank - ORGANIZATION" * (n % 2)) for n in range(500)]
    ),
}


def test_each_added_task_reads_its_rows(tmp_path: Path) -> None:
    built = {name: build_data.choose(name, rows, build_data.LARGE) for name, rows in ROWS.items()}
    build_data.write(built, tmp_path, lambda line: None)
    recipes = large_set.tasks(list(ROWS), tmp_path)
    found = {task.name: task for task in load(json.loads(json.dumps(recipes)))}
    for name, splits in built.items():
        assert len(found[name].train) == len(splits["train"]) > 0
        assert len(found[name].eval or ()) == len(splits["dev"]) > 0
        assert len(found[name].test or ()) == len(splits["test"]) > 0
    assert {e.target for e in found["siqa"].train} == {"a", "b", "c"}
    assert {e.target for e in found["entities"].train} == {"none", "Bank - ORGANIZATION"}
    assert all(example.options == ("no", "yes") for example in found["boolq"].train)


def test_there_are_eight_tasks_and_a_missing_one_is_told(tmp_path: Path) -> None:
    assert len(large_set.NAMES) == 8
    with pytest.raises(UserError, match="build_data --large"):
        large_set.tasks(folder=tmp_path)
