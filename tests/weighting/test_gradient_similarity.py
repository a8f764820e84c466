"""The gate of auxiliary tasks: its rule, steps without main tasks, its report and state."""

from types import SimpleNamespace

import pytest
import torch

import mtlcore
from mtlcore.errors import UserError
from mtlcore.testing import StandInGradients, stand_in_run
from mtlcore_plugins.weighting.gradient_similarity import GradientSimilarity
from tests.recipes import TASKS, metrics, training_part, write_tiny_recipe


def run_of(*roles):
    run = stand_in_run({f"{role}{index}": 5 for index, role in enumerate(roles)})
    for task, role in zip(run.tasks, roles, strict=True):
        task.recipe = run.recipe.tasks[task.name] = SimpleNamespace(role=role)
    return run


def weigh(weighting, run, rows, present=None):
    gradients = StandInGradients(torch.tensor(rows, dtype=torch.float64), present)
    return weighting.mtlcore_weigh_tasks(run, gradients)


def cosine(rows, task, mains):
    rows = torch.tensor(rows, dtype=torch.float64)
    return float(torch.cosine_similarity(rows[task], rows[mains].mean(0), dim=0))


ROWS = [[2.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, -1.0, 0.5], [0.0, 3.0, 1.0]]
ROLES = ("main", "auxiliary", "auxiliary", "main")


def test_an_auxiliary_task_is_kept_when_its_cosine_with_the_mean_of_the_main_ones_is_positive():
    assert cosine(ROWS, 1, [0, 3]) > 0 > cosine(ROWS, 2, [0, 3])
    weights = weigh(GradientSimilarity(), run_of(*ROLES), ROWS)
    assert weights.tolist() == [0.5, 1.0, 0.0, 0.5]


def test_the_weighted_rule_gives_the_cosine_and_never_less_than_zero():
    weights = weigh(GradientSimilarity(rule="weighted"), run_of(*ROLES), ROWS)
    assert weights.tolist() == pytest.approx([0.5, cosine(ROWS, 1, [0, 3]), 0.0, 0.5], rel=1e-12)


@pytest.mark.parametrize("scale", [1e-10, 1e10])
def test_weights_do_not_depend_on_the_scale_of_the_gradients(scale):
    scaled = [[scale * value for value in row] for row in ROWS]
    plain = weigh(GradientSimilarity(rule="weighted"), run_of(*ROLES), ROWS)
    found = weigh(GradientSimilarity(rule="weighted"), run_of(*ROLES), scaled)
    torch.testing.assert_close(found, plain, rtol=1e-12, atol=0)


def test_a_kept_task_does_not_turn_the_update_against_the_main_tasks():
    draw = torch.Generator().manual_seed(0)
    for _ in range(50):
        rows = torch.randn(5, 6, generator=draw, dtype=torch.float64)
        run = run_of("main", "main", "auxiliary", "auxiliary", "auxiliary")
        weights = weigh(GradientSimilarity(), run, rows.tolist())
        main = rows[:2].mean(0)
        assert main @ (rows.T @ weights) >= main @ main - 1e-12


def test_orthogonal_and_zero_gradients_are_dropped():
    run = run_of("main", "auxiliary", "auxiliary")
    rows = [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    assert weigh(GradientSimilarity(), run, rows).tolist() == [1.0, 0.0, 0.0]
    rows = [[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    assert weigh(GradientSimilarity(), run, rows).tolist() == [1.0, 0.0, 0.0]


def test_a_main_task_that_is_absent_leaves_the_share_of_the_others():
    weights = weigh(GradientSimilarity(), run_of(*ROLES), ROWS[:2], present=[0, 1])
    assert weights.tolist() == [0.5, 1.0]


def test_without_a_main_task_in_the_step_auxiliary_tasks_count_nothing():
    weighting, run = GradientSimilarity(smoothing=0.5), run_of(*ROLES)
    weigh(weighting, run, ROWS)
    before = weighting.state.clone()
    assert weigh(weighting, run, ROWS[1:3], present=[1, 2]).tolist() == [0.0, 0.0]
    assert torch.equal(weighting.state[:4], before[:4])
    [section] = weighting.mtlcore_report(run)
    assert section.table["steps without a main task"] == [1, 1]


def test_smoothing_keeps_a_task_through_a_step_of_noise():
    run = run_of("main", "auxiliary")
    steps = ([[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [-1.0, 0.0]])  # cosines 1, then -1
    plain, smooth = GradientSimilarity(), GradientSimilarity(rule="weighted", smoothing=0.9)
    assert [weigh(plain, run, rows)[1].item() for rows in steps] == [1.0, 0.0]
    found = [weigh(smooth, run, rows)[1].item() for rows in steps]
    assert found == pytest.approx([1.0, 0.8])


def test_the_report_counts_the_steps_in_which_each_task_was_kept():
    weighting, run = GradientSimilarity(), run_of(*ROLES)
    assert weighting.mtlcore_report(run) == []
    for _ in range(3):
        weigh(weighting, run, ROWS)
    weigh(weighting, run, [ROWS[0], [-1.0, 0.0, 0.0]], present=[0, 1])
    [section] = weighting.mtlcore_report(run)
    assert section.table["auxiliary task"] == ["auxiliary1", "auxiliary2"]
    assert section.table["steps measured"] == [4, 3]
    assert section.table["share kept"] == [0.75, 0.0]
    assert section.table["mean cosine"][1] == pytest.approx(cosine(ROWS, 2, [0, 3]))


def test_a_resumed_weighting_goes_on_alike():
    first, run = GradientSimilarity(rule="weighted", smoothing=0.7), run_of(*ROLES)
    weigh(first, run, ROWS)
    second = GradientSimilarity(rule="weighted", smoothing=0.7)
    second.load_state_dict(first.state_dict())
    rows = ROWS[::-1]
    assert torch.equal(weigh(first, run, rows), weigh(second, run, rows))
    assert first.mtlcore_report(run) == second.mtlcore_report(run)


@pytest.mark.parametrize("role", ["main", "auxiliary"])
def test_a_run_of_one_role_is_refused(role):
    other = {"main": "auxiliary", "auxiliary": "main"}[role]
    with pytest.raises(UserError, match=f"the recipe has no {other} task") as caught:
        GradientSimilarity().mtlcore_check(run_of(role, role).recipe)
    assert caught.value.problem.where == "weighting"
    assert f"role: {other}" in caught.value.problem.fix


def test_a_run_gates_its_auxiliary_task_and_reports_it(tiny_model, tmp_path):
    recipe = write_tiny_recipe(
        tmp_path,
        tiny_model,
        tasks=TASKS.replace("    loss_weight: 2.0", "    role: auxiliary"),
        weighting="gradient_similarity",
        training=training_part(tmp_path, max_steps=4, save_steps=4),
    )
    run = mtlcore.train(recipe)
    for line in metrics(run.folder):
        assert line["weights"]["sentiment"] == line["weights"]["definitions"] == 0.5
        assert line["weights"]["spelling"] in (0.0, 1.0)
    [section] = run.weighting.mtlcore_report(run)
    assert section.table["auxiliary task"] == ["spelling"]
    assert section.table["steps measured"] == [4]
