"""`mtlcore group`: planted groups are found, the plan is a recipe part, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mtlcore
from mtlcore.errors import RecipeError, UserError
from mtlcore.grouping import Measured, cluster, group, read_affinity, similarities, write_plan
from mtlcore.recipe_file import read_recipe
from mtlcore.testing import StandInGradients, stand_in_run
from mtlcore.testing.command_line import CommandLine
from mtlcore_plugins.monitoring.affinity import Affinity
from tests.helpers import write_jsonl
from tests.recipes import training_part, write_tiny_recipe

PLANTED = ("up1", "down1", "up2", "down2")


@pytest.fixture(scope="module")
def planted(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four tasks that answer the same prompts: two say one thing, two another."""
    folder = tmp_path_factory.mktemp("planted")
    words = ("house", "river", "stone", "light", "paper", "music", "table", "green")
    tasks = ""
    for name in PLANTED:
        answer = "better and higher" if name.startswith("up") else "worse or lower"
        rows = [{"prompt": f"The {word}", "completion": f" {answer}"} for word in words]
        write_jsonl(folder / f"{name}.jsonl", rows if name.endswith("1") else rows[::-1])
        tasks += f"\n  {name}: {{train: {name}.jsonl, format: prompt_completion}}"
    recipe = write_tiny_recipe(
        folder,
        tiny_model,
        tasks=tasks,
        monitoring="[affinity]",
        weighting="equal",
        sampling="equal",
        regularization="[]",
        training=training_part(folder, max_steps=6, per_device_train_batch_size=8, save_steps=6),
    )
    return mtlcore.train(recipe).folder


@pytest.fixture
def grouped(planted: Path, tmp_path: Path) -> Path:
    """That run, for a test to change."""
    return Path(shutil.copytree(planted, tmp_path / "planted"))


def measured(affinity: list[list[float]], tasks: str = "") -> Measured:
    matrix = np.array(affinity, dtype=np.float64)
    names = tuple(tasks or "abcdefgh"[: len(matrix)])
    units = np.sqrt(np.outer(matrix.diagonal(), matrix.diagonal()))
    return Measured(names, 10, matrix, matrix / units, (matrix < 0).astype(float))


def blocks(sizes: list[int], inside: float, outside: float) -> Measured:
    label = np.repeat(np.arange(len(sizes)), sizes)
    matrix = np.where(label[:, None] == label, inside, outside)
    np.fill_diagonal(matrix, 1)
    return measured(matrix.tolist())


# -- clustering --------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[2, 2], [3, 2], [2, 2, 2], [4, 3], [2, 3, 3]])
def test_planted_blocks_are_found_without_being_told_their_number(sizes: list[int]) -> None:
    found = cluster(blocks(sizes, 0.7, -0.3))
    names = iter("abcdefgh")
    assert list(found.groups.values()) == [[next(names) for _ in range(size)] for size in sizes]
    assert found.alone == []
    assert found.notes == []


def test_the_scales_of_tasks_do_not_change_the_groups() -> None:
    plain = blocks([2, 3], 0.7, -0.3)
    sizes = np.array([1.0, 1e4, 1e-3, 10.0, 1e6])
    scaled = measured((plain.affinity * np.outer(sizes, 1 / sizes**0.5)).tolist())
    assert cluster(scaled).groups == cluster(plain).groups
    assert cluster(scaled).similarity.max() == 1


def test_permuted_tasks_give_the_same_groups() -> None:
    plain = blocks([2, 3, 2], 0.5, -0.2)
    order = np.random.default_rng(0).permutation(7)
    permuted = measured(plain.affinity[np.ix_(order, order)].tolist())
    object.__setattr__(permuted, "tasks", tuple(plain.tasks[index] for index in order))
    as_sets = [
        {frozenset(tasks) for tasks in cluster(some).groups.values()} for some in (plain, permuted)
    ]
    assert as_sets[0] == as_sets[1]


def test_a_task_that_suits_no_other_stands_alone() -> None:
    found = cluster(blocks([3, 1], 0.7, -0.3))
    assert found.groups == {"group1": ["a", "b", "c"]}
    assert found.alone == ["d"]
    assert found.count == 2


def test_the_number_of_groups_can_be_told() -> None:
    found = cluster(blocks([2, 2, 2], 0.7, -0.3), 2)
    assert found.count == 2
    assert list(found.silhouettes) == [2]


def test_tasks_that_are_all_alike_are_told_to_have_no_clear_groups() -> None:
    assert "no clear groups" in cluster(blocks([5], 0.5, 0.5)).notes[0]


def test_a_pair_that_never_met_counts_as_neutral_and_is_named() -> None:
    some = blocks([2, 2], 0.7, -0.3)
    some.affinity[0, 2] = some.affinity[2, 0] = np.nan
    similarity, unknown = similarities(some)
    assert similarity[0, 2] == 0
    assert unknown == ["a and c"]
    assert "a and c" in cluster(some).notes[0]


def test_similarity_is_symmetric_and_one_with_itself() -> None:
    similarity, _ = similarities(measured([[4.0, 1.0, 0.0], [2.0, 1.0, -9.0], [0.0, 0.0, 1.0]]))
    assert similarity.tolist() == [[1.0, 0.75, 0.0], [0.75, 1.0, -1.0], [0.0, -1.0, 1.0]]


# -- the command -------------------------------------------------------------------------------


def test_tasks_that_answer_alike_are_grouped_together(cli: CommandLine, grouped: Path) -> None:
    code, out, err = cli("group", grouped, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert {name: part["tasks"] for name, part in found["groups"].items()} == {
        "group1": ["up1", "up2"],
        "group2": ["down1", "down2"],
    }
    for part in found["groups"].values():
        assert part["within"]["similarity"] > 0.5
        assert part["within"]["similarity"] > part["to_others"]["similarity"]
    assert found["plan"] == str(grouped / "plan.yaml")
    again = group(grouped).to_json()
    assert again == {key: found[key] for key in again}


def test_gradients_in_known_conflict_are_grouped_apart(cli: CommandLine, grouped: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    towards = torch.zeros(4, 50, dtype=torch.float64)
    towards[:, 0] = torch.tensor([3.0, -3.0, 3.0, -3.0])  # up1, down1, up2, down2
    run: Any = stand_in_run(dict.fromkeys(PLANTED, 5), folder=grouped)
    monitor = Affinity()
    for _ in range(20):
        step: Any = StandInGradients(towards + 0.3 * torch.randn(4, 50, generator=draw))
        step.mean_losses = lambda: torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
        monitor.mtlcore_before_update(run, step)
        monitor.mtlcore_step_end(run, {"learning_rate": 1e-3})
    monitor.mtlcore_run_end(run)
    code, out, err = cli("group", grouped, "--json")
    assert code == 0, err
    groups = json.loads(out)["groups"]
    assert [part["tasks"] for part in groups.values()] == [["up1", "up2"], ["down1", "down2"]]
    for part in groups.values():
        assert part["within"]["conflict"] == 0
        assert part["to_others"]["conflict"] == 1
        assert part["to_others"]["similarity"] < 0 < part["within"]["similarity"]


def test_the_table_names_groups_and_file(cli: CommandLine, grouped: Path, tmp_path: Path) -> None:
    plan = tmp_path / "new" / "groups.yaml"
    code, out, err = cli("group", grouped, "--groups", 2, "--out", plan)
    assert code == 0, err
    for word in ("group1", "up1, up2", "down1, down2", "silhouette", str(plan)):
        assert word in out
    assert plan.is_file()
    assert not (grouped / "plan.yaml").exists()


def test_the_plan_is_a_part_that_a_recipe_can_extend_and_train(
    cli: CommandLine, grouped: Path, planted: Path, tmp_path: Path
) -> None:
    cli("group", grouped, "--rank", 3)
    text = (grouped / "plan.yaml").read_text(encoding="utf-8")
    assert text.startswith("# Groups of tasks by `mtlcore group`")
    assert "silhouette" in text
    recipe = tmp_path / "next.yaml"
    recipe.write_text(
        f"extends: [{planted.parent / 'recipe.yaml'}, {grouped / 'plan.yaml'}]\n"
        f"training: {{output_dir: {tmp_path / 'next'}, max_steps: 1}}\n",
        encoding="utf-8",
    )
    sharing = read_recipe(recipe).recipe.sharing
    assert sharing is not None
    assert (sharing.shared, sharing.own) == (4, 2)
    assert {name: (part.tasks, part.r) for name, part in sharing.groups.items()} == {
        "group1": (["up1", "up2"], 3),
        "group2": (["down1", "down2"], 3),
    }
    adapters = mtlcore.train(recipe).model.layout.adapters
    assert {a.name: a.tasks for a in adapters if a.name.startswith("group:")} == {
        "group:group1": (0, 2),
        "group:group2": (1, 3),
    }


def test_a_group_of_one_task_gets_no_adapter(grouped: Path, tmp_path: Path) -> None:
    data = json.loads((grouped / "affinity.json").read_text())
    lonely = blocks([3, 1], 0.7, -0.3).affinity.tolist()
    (grouped / "affinity.json").write_text(json.dumps({**data, "affinity": lonely}))
    part = write_plan(grouped, group(grouped), tmp_path / "plan.yaml")
    assert part["sharing"]["groups"] == {"group1": {"tasks": ["up1", "down1", "up2"], "r": 2}}
    assert "# down2 is in a group of its own" in (tmp_path / "plan.yaml").read_text()


def test_a_plan_used_with_other_tasks_names_the_unknown_one(
    cli: CommandLine, grouped: Path, tiny_model: Path, tmp_path: Path
) -> None:
    cli("group", grouped)
    write_tiny_recipe(tmp_path, tiny_model)
    recipe = tmp_path / "other.yaml"
    recipe.write_text(f"extends: [recipe.yaml, {grouped / 'plan.yaml'}]\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="no task 'up1'") as caught:
        read_recipe(recipe)
    first = caught.value.problems[0]
    assert "plan.yaml" in first.where
    assert "sentiment" in first.fix


# -- what it refuses ---------------------------------------------------------------------------


def refused(cli: CommandLine, *args: Any) -> str:
    code, out, err = cli("group", *args)
    assert code == 2
    assert out == ""
    return err


def test_a_run_without_affinities_is_refused(cli: CommandLine, grouped: Path) -> None:
    (grouped / "affinity.json").unlink()
    err = refused(cli, grouped)
    assert "affinity.json is missing" in err
    assert "monitoring: [affinity]" in err
    assert not (grouped / "plan.yaml").exists()


def test_a_folder_without_a_run_is_refused(cli: CommandLine, tmp_path: Path) -> None:
    assert "holds no run" in refused(cli, tmp_path)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"tasks": ["a"]}', '{"tasks": ["a", "b"], "steps": 1, "affinity": [[1]], '
     '"cosine": [[1]], "conflict": [[1]]}'],
)  # fmt: skip
def test_a_damaged_file_is_refused(text: str, grouped: Path) -> None:
    (grouped / "affinity.json").write_text(text)
    with pytest.raises(UserError, match="cannot be read as affinities") as caught:
        read_affinity(grouped)
    assert caught.value.problem.where.endswith("affinity.json")


def test_two_tasks_are_refused() -> None:
    with pytest.raises(UserError, match="the run has 2 tasks, and groups need 3 or more"):
        cluster(measured([[1.0, 0.5], [0.5, 1.0]]))


@pytest.mark.parametrize("count", [5, 4, 1, 0])
def test_a_number_of_groups_that_cannot_be_is_refused(
    cli: CommandLine, grouped: Path, count: int
) -> None:
    err = refused(cli, grouped, "--groups", count)
    assert f"--groups {count} for 4 tasks: must be 2 .. 3, or auto" in err


def test_a_number_of_groups_that_is_no_number_is_refused(cli: CommandLine, grouped: Path) -> None:
    assert "--groups 'two' is no number" in refused(cli, grouped, "--groups", "two")


def test_a_file_is_overwritten_only_when_told_to(cli: CommandLine, grouped: Path) -> None:
    plan = grouped / "plan.yaml"
    plan.write_text("mine\n")
    err = refused(cli, grouped)
    assert "exists already" in err
    assert "--force" in err
    assert plan.read_text() == "mine\n"
    code, _, _ = cli("group", grouped, "--force")
    assert code == 0
    assert "sharing:" in plan.read_text()
