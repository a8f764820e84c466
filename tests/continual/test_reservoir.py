"""The replay memory: what it keeps, what it adds, and that nobody changes it unseen."""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from mtlcore.data.example import Example
from mtlcore.errors import UserError
from mtlcore.testing import stand_in_run
from mtlcore_plugins.continual.reservoir import Reservoir, quotas


def row(task: str, number: int) -> Example:
    return Example(
        task=task, row=number, prompt="p", target="t", input_ids=(1, 2, number),
        labels=(-100, 2, 3), prompt_length=1, options=("yes", "no"),
        option_ids=((4,), (5, 6)), label=1,
        fields={"text": f"{task} {number}", "tags": ["x", "y"], "score": 0.1},
    )  # fmt: skip


def staged_run(
    rows: dict[str, int], *stages: list[str], start: object = None, seed: int = 0
) -> Any:
    run = stand_in_run(rows, seed=seed, stage="s0", notes=[])
    for task in run.tasks:
        task.train = [row(task.name, number) for number in range(rows[task.name])]
    run.recipe.tasks = rows
    run.recipe.start = start
    run.recipe.stages = [SimpleNamespace(name=f"s{i}", tasks=s) for i, s in enumerate(stages)]
    run.note = run.notes.append
    return run


def counts(memory: Reservoir) -> dict[str, int]:
    return {name: len(kept) for name, kept in memory.memory.items()}


def test_the_budget_is_shared_out_evenly_over_the_tasks_so_far() -> None:
    run = staged_run({"a": 50, "b": 60, "c": 70}, ["a"], ["b"], ["c"])
    memory = Reservoir(rows=20)
    found = []
    for stage in ("s0", "s1", "s2"):
        memory.mtlcore_stage_end(run, stage)
        found.append(counts(memory))
    assert found == [{"a": 20}, {"a": 10, "b": 10}, {"a": 6, "b": 7, "c": 7}]
    for name, kept in memory.memory.items():
        assert len({example.row for example in kept}) == len(kept), "without replacement"
        assert {example.task for example in kept} == {name}


@pytest.mark.parametrize(
    ("budget", "available", "expected"),
    [
        (10, {"a": 100}, {"a": 10}),
        (10, {"a": 2, "b": 100, "c": 100}, {"a": 2, "b": 4, "c": 4}),
        (10, {"a": 100, "b": 3, "c": 1}, {"a": 6, "b": 3, "c": 1}),
        (100, {"a": 3, "b": 4}, {"a": 3, "b": 4}),
        (2, {"a": 9, "b": 9, "c": 9}, {"a": 0, "b": 1, "c": 1}),
        (5, {}, {}),
    ],
)
def test_what_a_small_task_leaves_goes_to_the_others(
    budget: int, available: dict[str, int], expected: dict[str, int]
) -> None:
    assert quotas(budget, available) == expected


def test_every_row_is_kept_equally_often_and_stays_so_when_tasks_come() -> None:
    seen: Counter[int] = Counter()
    runs = 400
    for seed in range(runs):
        run = staged_run({"a": 10, "b": 10}, ["a"], ["b"], seed=seed)
        memory = Reservoir(rows=8)
        memory.mtlcore_stage_end(run, "s0")
        run.step = 5
        memory.mtlcore_stage_end(run, "s1")
        seen.update(example.row for example in memory.memory["a"])
    # 4 of 10 rows: binomial with mean 160 and standard deviation 9.8; 4 of them are allowed.
    assert all(abs(seen[number] - 0.4 * runs) < 40 for number in range(10))


def test_replayed_rows_are_a_share_of_the_step_on_average() -> None:
    run = staged_run({"a": 50, "b": 50}, ["a"], ["b"])
    memory = Reservoir(rows=20, share=0.3)
    memory.mtlcore_stage_end(run, "s0")
    run.stage = "s1"
    rows = [row("b", number) for number in range(6)]
    sizes = []
    for step in range(1000):
        added = memory.mtlcore_add_rows(run, step, rows)
        assert {example.task for example in added} <= {"a"}
        assert len({example.row for example in added}) == len(added)
        sizes.append(len(added))
    assert set(sizes) == {1, 2}
    assert sum(sizes) / 1000 == pytest.approx(1.8, abs=0.06)


def test_draws_depend_on_seed_and_step_alone() -> None:
    rows = [row("b", number) for number in range(16)]

    def added(seed: int, step: int) -> list[Example]:
        run = staged_run({"a": 50, "b": 50}, ["a"], ["b"], seed=seed)
        memory = Reservoir(rows=20)
        memory.mtlcore_stage_end(run, "s0")
        run.stage = "s1"
        return memory.mtlcore_add_rows(run, step, rows)

    assert added(0, 7) == added(0, 7)
    assert added(0, 7) != added(0, 8)
    assert added(0, 7) != added(1, 7)


def test_tasks_of_the_stage_are_not_replayed() -> None:
    run = staged_run({"a": 50, "b": 50}, ["a", "b"], ["a"])
    memory = Reservoir(rows=20, share=1.0)
    assert memory.mtlcore_add_rows(run, 0, [row("a", 0)] * 8) == []
    memory.mtlcore_stage_end(run, "s0")
    assert memory.mtlcore_add_rows(run, 0, [row("a", 0)] * 8) == []
    run.stage = "s1"
    added = memory.mtlcore_add_rows(run, 0, [row("a", 0)] * 8)
    assert {example.task for example in added} == {"b"}
    assert len(added) == 8


def test_a_memory_smaller_than_a_step_asks_for_is_not_repeated() -> None:
    run = staged_run({"a": 3, "b": 50}, ["a"], ["b"])
    memory = Reservoir(rows=20, share=1.0)
    memory.mtlcore_stage_end(run, "s0")
    run.stage = "s1"
    assert len(memory.mtlcore_add_rows(run, 0, [row("b", 0)] * 8)) == 3


def test_a_budget_smaller_than_the_tasks_is_refused_before_training() -> None:
    run = staged_run({"a": 5, "b": 5, "c": 5}, ["a"], ["b"], ["c"])
    with pytest.raises(UserError, match=r"replay\.rows: a memory of 2 rows .* each of 3 tasks"):
        Reservoir(rows=2).mtlcore_check(run.recipe)
    assert Reservoir(rows=3).mtlcore_check(run.recipe) == []


def test_it_says_when_nothing_will_be_replayed() -> None:
    run = staged_run({"a": 5, "b": 5})
    Reservoir().mtlcore_run_start(run)
    assert "adds no rows in a run of one stage" in run.notes[0]


def test_a_start_run_without_a_memory_gives_its_train_rows() -> None:
    run = staged_run({"a": 50, "b": 50, "new": 9}, ["new"], start="runs/before")
    memory = Reservoir(rows=10)
    memory.mtlcore_run_start(run)
    assert counts(memory) == {"a": 5, "b": 5}
    assert "kept no rows of a, b" in run.notes[0]
    kept = dict(memory.memory)
    memory.mtlcore_run_start(run)
    assert memory.memory == kept, "a resumed run keeps what it has"


def test_a_start_run_with_a_memory_gives_that_thinned_to_the_budget() -> None:
    before = Reservoir(rows=20)
    before.mtlcore_stage_end(staged_run({"a": 50, "b": 50}), "train")
    run = staged_run({"a": 50, "b": 50, "new": 9}, ["new"], start="runs/before")
    memory = Reservoir(rows=6)
    memory.load_state_dict(before.state_dict())
    memory.mtlcore_run_start(run)
    assert counts(memory) == {"a": 3, "b": 3}
    assert run.notes == []
    for name, kept in memory.memory.items():
        assert all(example in before.memory[name] for example in kept)


def test_a_memory_of_unknown_tasks_is_refused() -> None:
    memory = Reservoir()
    memory.mtlcore_stage_end(staged_run({"a": 5}), "train")
    with pytest.raises(UserError, match="rows of a task 'a' that the recipe lacks"):
        memory.mtlcore_check(staged_run({"b": 5}, start="runs/before").recipe)


def saved() -> tuple[Reservoir, dict[str, Any]]:
    """A memory, and its state as it comes back from a file."""
    memory = Reservoir(rows=4)
    memory.mtlcore_stage_end(staged_run({"a": 9, "b": 9}), "train")
    return memory, json.loads(json.dumps(memory.state_dict()))


def test_rows_survive_saving_with_columns_and_tokens() -> None:
    memory, state = saved()
    other = Reservoir(rows=4)
    other.load_state_dict(state)
    assert other.memory == memory.memory
    assert other.memory["a"][0].fields["tags"] == ["x", "y"]
    assert other.state_dict() == memory.state_dict()
    empty = Reservoir()
    empty.load_state_dict({})
    assert empty.memory == empty.state_dict() == {}


def test_columns_that_json_cannot_hold_are_kept_as_text() -> None:
    import datetime

    memory, _ = saved()
    memory.memory["a"][0].fields["day"] = datetime.date(2024, 2, 29)  # type: ignore[index]
    other = Reservoir(rows=4)
    other.load_state_dict(json.loads(json.dumps(memory.state_dict())))
    assert other.memory["a"][0].fields["day"] == "2024-02-29"


@pytest.mark.parametrize("part", ["input_ids", "fields", "label"])
def test_a_memory_edited_by_hand_is_refused(part: str) -> None:
    _, state = saved()
    changed = {"input_ids": [1, 2, 99], "fields": {"text": "something else"}, "label": 0}
    state["memory"]["a"][1][part] = changed[part]
    with pytest.raises(UserError, match="not what the run had saved") as caught:
        Reservoir().load_state_dict(state)
    assert str(caught.value).count("\n") == 1, "one line, and the fix"


def test_a_memory_that_lost_its_digest_or_a_row_is_refused() -> None:
    for spoil in (lambda s: s.pop("sha256"), lambda s: s["memory"]["b"].pop()):
        _, state = saved()
        spoil(state)
        with pytest.raises(UserError, match="not what the run had saved"):
            Reservoir().load_state_dict(state)


def test_the_report_counts_the_rows() -> None:
    memory, _ = saved()
    [section] = memory.mtlcore_report(staged_run({"a": 9, "b": 9}))
    assert section.table == {"task": ["a", "b"], "rows kept": [2, 2]}
    assert Reservoir().mtlcore_report(staged_run({"a": 9})) == []
