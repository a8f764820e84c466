"""The gate of auxiliary tasks: its rule, steps without main tasks, its report and state."""

from types import SimpleNamespace

import pytest
import torch

import mtlcore
from mtlcore import ops
from mtlcore.components import Weighting
from mtlcore.errors import UserError
from mtlcore.plugin_sources import Plugin
from mtlcore.plugins import PluginManager
from mtlcore.recipe_components import make_components
from mtlcore.recipe_file import recipe_from_mapping
from mtlcore.testing import StandInGradients, plugin_manager, stand_in_run
from mtlcore_plugins.weighting.gradient_similarity import GradientSimilarity
from tests.recipes import TASKS, metrics, training_part, write_tiny_recipe
from tests.weighting.helpers import jacobian
from tests.weighting.helpers import weigh as weights_of


def run_of(*roles):
    run = stand_in_run({f"{role}{index}": 5 for index, role in enumerate(roles)})
    run.stage, run.recipe.stages = "train", []
    run.recipe.training.max_steps, run.recipe.training.learning_rate = 10, 1e-3
    for task, role in zip(run.tasks, roles, strict=True):
        task.recipe = run.recipe.tasks[task.name] = SimpleNamespace(role=role)
    return run


def weigh(weighting, run, rows, present=None):
    gradients = StandInGradients(torch.tensor(rows, dtype=torch.float64), present)
    return weighting.mtlcore_weigh_tasks(run, None, gradients)


def cosine(rows, task, mains):
    rows = torch.tensor(rows, dtype=torch.float64)
    return float(torch.cosine_similarity(rows[task], rows[mains].mean(0), dim=0))


class OnlyPresent:
    """Gradients that nobody may read."""

    def __init__(self, present):
        self.present = present


ROWS = [[2.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, -1.0, 0.5], [0.0, 3.0, 1.0]]
ROLES = ("main", "auxiliary", "auxiliary", "main")


def test_an_auxiliary_task_is_kept_when_its_cosine_with_the_mean_of_the_main_ones_is_positive():
    assert cosine(ROWS, 1, [0, 3]) > 0 > cosine(ROWS, 2, [0, 3])
    weights = weigh(GradientSimilarity(), run_of(*ROLES), ROWS)
    assert weights.tolist() == [0.5, 0.5, 0.0, 0.5]


def test_a_damped_task_counts_by_its_cosine_and_never_less_than_zero():
    expected = [0.5, 0.5 * cosine(ROWS, 1, [0, 3]), 0.0, 0.5]
    for threshold in (0.0, -0.9):
        weighting = GradientSimilarity(rule="damp", threshold=threshold)
        weights = weigh(weighting, run_of(*ROLES), ROWS)
        assert weights.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rule", ["keep", "damp"])
def test_a_task_is_dropped_where_its_cosine_is_not_above_the_threshold(rule):
    found = cosine(ROWS, 1, [0, 3])
    for threshold, kept in ((found - 1e-6, True), (found + 1e-6, False)):
        weighting = GradientSimilarity(rule=rule, threshold=threshold)
        assert bool(weigh(weighting, run_of(*ROLES), ROWS)[1]) == kept
    low = weigh(GradientSimilarity(threshold=-1.0), run_of(*ROLES), ROWS)
    assert low.tolist() == [0.5] * 4, "below every cosine"


def test_always_reads_no_gradients_and_treats_all_tasks_alike():
    weighting, run = GradientSimilarity(rule="always"), run_of(*ROLES)
    weighting.mtlcore_run_start(run)
    assert weighting.needs == weighting.needs_at(0, [0, 1, 2]) == "nothing"
    assert weighting.mtlcore_weigh_tasks(run, None, OnlyPresent([0, 1, 2])).tolist() == [0.5] * 3
    assert weighting.mtlcore_report(run) == []


@pytest.mark.parametrize("scale", [1e-10, 1e10])
def test_weights_do_not_depend_on_the_scale_of_the_gradients(scale):
    scaled = [[scale * value for value in row] for row in ROWS]
    plain = weigh(GradientSimilarity(rule="damp"), run_of(*ROLES), ROWS)
    found = weigh(GradientSimilarity(rule="damp"), run_of(*ROLES), scaled)
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
    assert weights.tolist() == [0.5, 0.5]


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
    plain, smooth = GradientSimilarity(), GradientSimilarity(rule="damp", smoothing=0.9)
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
    first, run = GradientSimilarity(rule="damp", smoothing=0.7), run_of(*ROLES)
    weigh(first, run, ROWS)
    second = GradientSimilarity(rule="damp", smoothing=0.7)
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


# -- fading out -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"until": 0.5}, [1, 1, 1, 1, 1, 0, 0, 0, 0, 0]),
        ({"fade": "linear"}, [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
        ({"fade": "linear", "until": 0.4}, [1, 0.75, 0.5, 0.25, 0, 0, 0, 0, 0, 0]),
        ({"fade": "cosine", "until": 0.4}, [1, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5, *[0] * 6]),
    ],
)
def test_auxiliary_tasks_fade_out_over_the_steps_and_then_cost_nothing(options, expected):
    weighting, run = GradientSimilarity(**options), run_of("main", "auxiliary")
    weighting.mtlcore_run_start(run)
    found = []
    for run.step in range(10):
        needs = weighting.needs_at(run.step, [0, 1])
        assert needs == ("gramian" if expected[run.step] else "nothing")
        main, helper = weigh(weighting, run, [[1.0, 0.0], [1.0, 0.0]]).tolist()
        assert main == 1
        found.append(helper)
    assert found == pytest.approx(expected, abs=1e-12)


def test_without_an_end_nothing_fades():
    weighting, run = GradientSimilarity(), run_of("main", "auxiliary")
    weighting.mtlcore_run_start(run)
    assert {weighting.strength(step) for step in range(10)} == {1.0}


def test_steps_without_auxiliary_or_without_main_tasks_need_no_gradients():
    weighting, run = GradientSimilarity(), run_of(*ROLES)
    weighting.mtlcore_run_start(run)
    assert [weighting.needs_at(0, present) for present in ([0, 3], [1, 2], [0, 1])] == [
        "nothing",
        "nothing",
        "gramian",
    ]


def test_a_stage_of_auxiliary_tasks_alone_trains_them_by_equal_weights():
    weighting, run = GradientSimilarity(), run_of(*ROLES)
    run.recipe.stages = [SimpleNamespace(name="domain", tasks=["auxiliary1", "auxiliary2"])]
    run.stage = "domain"
    assert weigh(weighting, run, ROWS[1:3], present=[1, 2]).tolist() == [0.25, 0.25]


# -- another weighting for the main tasks -----------------------------------------------------


class Turned(Weighting):
    """A third party's: tells tasks apart by their index, and reads all there is."""

    name = "turned"
    needs = "rows"

    def mtlcore_weigh_tasks(self, run, losses, gradients):
        rows = gradients.rows()
        assert torch.allclose(rows @ rows.T, gradients.gramian())
        assert len(losses) == len(rows) == len(gradients.present)
        return losses * (1 + torch.tensor(gradients.present))


class Given:
    """What the test's own steps give, as the trainer would."""

    def __init__(self, **options):
        self.plugins = PluginManager.load(environ={"MTLCORE_NO_PLUGINS": "1"})
        self.plugins.add(Plugin("turned", "tests:turned", "0", "installed", lambda: None), Turned)
        data = {
            "model": "m",
            "tasks": {
                f"{role}{index}": {"train": "t", "format": "text", "role": role}
                for index, role in enumerate(ROLES)
            },
            "weighting": {"name": "gradient_similarity", **options},
        }
        self.recipe = recipe_from_mapping(data).recipe
        self.made = make_components(self.recipe, self.plugins)

    def weigh(self, rows, losses=None, present=None, run=None):
        run = run or run_of(*ROLES)
        run.plugins = self.plugins
        losses = torch.arange(1.0, 1 + len(rows)).double() if losses is None else losses
        return self.plugins.hook.mtlcore_weigh_tasks(
            run=run,
            losses=losses,
            gradients=StandInGradients(torch.as_tensor(rows, dtype=torch.float64), present),
        )


OPPOSED = [[2.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, -1.0, 0.5], [-1.0, 1.5, 1.0]]
"""Main tasks 0 and 3 are in conflict."""


def test_the_main_tasks_are_weighed_among_themselves_by_any_weighting():
    rows = torch.tensor(OPPOSED).double()
    mains = rows[[0, 3]]
    assert mains[0] @ mains[1] < 0
    expected = ops.pcgrad(mains @ mains.T, torch.zeros(2, 1, dtype=torch.float64))
    given = Given(main="pcgrad")
    assert given.made.problems == []
    weights = given.weigh(OPPOSED)
    torch.testing.assert_close(weights[[0, 3]], expected)
    assert cosine(OPPOSED, 1, [0, 3]) > 0 > cosine(OPPOSED, 2, [0, 3])
    assert weights[1] == pytest.approx(float(expected.mean())), "like a mean main task"
    assert weights[2] == 0


NAMES = sorted(
    name
    for kind, name in PluginManager.load(environ={"MTLCORE_NO_PLUGINS": "1"}).components()
    if kind == "weighting"
)


@pytest.mark.parametrize(
    "main",
    # One is the gate itself, one gives a direction, one draws a number for every task of the run.
    [name for name in NAMES if name not in ("gradient_similarity", "graddrop", "rlw")],
)
def test_main_tasks_are_weighed_as_if_there_were_no_others(main):
    options = {
        "fixed": {"weights": {"main0": 0.3, "main3": 0.6}},
        "dwa": {"window": 1},
    }.get(main, {})
    given = Given(main={"name": main, **options})
    inner = given.made.weighting.inner
    alone = type(inner)(**options)
    run, few = run_of(*ROLES), stand_in_run({"main0": 5, "main3": 5})
    for weighting, its in ((inner, run), (alone, few)):
        plugin_manager(weighting).hook.mtlcore_stage_start(run=its, stage=None)
    for step in range(3):
        run.step = few.step = step
        rows = jacobian(4, spread=3, seed=step)
        losses = torch.linspace(0.5, 2, 4, dtype=torch.float64) + step
        found = given.weigh(rows, losses, run=run)
        expected = weights_of(alone, rows[[0, 3]], losses[[0, 3]], run=few)
        torch.testing.assert_close(found[..., [0, 3]], expected, rtol=1e-12, atol=0)


def test_shares_and_sums_are_of_the_main_tasks():
    drawn = Given(main="rlw").weigh(OPPOSED)
    assert drawn[[0, 3]].sum() == pytest.approx(1)
    given = Given(main={"name": "pcgrad", "normalize": "sum_to_one"})
    assert given.weigh(OPPOSED)[[0, 3]].sum() == pytest.approx(1)
    assert given.weigh(OPPOSED[:3], present=[0, 1, 2])[0] == pytest.approx(1 / 2)


def test_a_stage_of_auxiliary_tasks_gives_coba_nothing_to_look_at():
    inner = Given(main="coba").made.weighting.inner
    run = run_of(*ROLES)
    run.is_active = lambda task: task.recipe.role == "auxiliary"
    inner.mtlcore_stage_start(run)
    inner.mtlcore_step_end(run)
    assert inner.losses.shape == (0, 0)


def test_fixed_refuses_a_weight_that_no_task_would_have():
    given = Given(main={"name": "fixed", "weights": {"main0": 1, "main3": 1, "auxiliary1": 1}})
    with pytest.raises(UserError, match="names 'auxiliary1', and here it weighs main tasks"):
        given.made.weighting.inner.mtlcore_check(given.recipe)


def test_coba_looks_at_main_tasks_alone():
    inner = Given(main="coba").made.weighting.inner
    run = run_of(*ROLES)
    inner.mtlcore_stage_start(run)
    assert inner.tasks == [0, 3]
    for task in run.tasks:
        task.eval = range(5) if task.recipe.role == "main" else None
    assert inner.mtlcore_check(run.tasks) == []
    run.tasks[3].eval = None
    with pytest.raises(UserError, match="task 'main3' has none"):
        inner.mtlcore_check(run.tasks)


def test_weights_by_layer_gate_every_layer():
    given = Given(main={"name": "pcgrad", "scope": "layer"})
    weights = given.weigh(OPPOSED)
    assert weights.shape == (3, 4)
    torch.testing.assert_close(weights[:, 1], weights[:, [0, 3]].mean(1))
    assert not weights[:, 2].any()


def test_a_weighting_of_a_third_party_sees_the_main_tasks_alone():
    given = Given(main="turned")
    assert given.made.weighting.needs == "rows"
    assert given.weigh(OPPOSED).tolist() == pytest.approx([1, (1 + 16) / 2, 0, 16])
    assert given.weigh(OPPOSED[:2], present=[0, 1]).tolist() == pytest.approx([1, 1])


def test_kept_tasks_are_added_to_a_direction():
    given = Given(main="graddrop")
    assert given.made.weighting.gives == "direction"
    alone = Given(main="graddrop").weigh([OPPOSED[0], OPPOSED[3]], present=[0, 3])
    found = given.weigh(OPPOSED)
    torch.testing.assert_close(found.vector, alone.vector + torch.tensor(OPPOSED[1]).double())


def test_a_schedule_may_stand_around_the_gate_and_around_what_it_asks():
    given = Given(main={"name": "pcgrad", "warmup": 5}, every=3)
    assert [key for key in given.made.by_key if key.startswith("weighting")] == [
        "weighting.main:pcgrad",
        "weighting.main.schedule:pcgrad",
        "weighting:gradient_similarity",
        "weighting.schedule:gradient_similarity",
    ]
    assert given.made.weighting.name == "gradient_similarity"
    assert given.weigh(OPPOSED).tolist() == [0.5, 0.5, 0, 0.5], "pcgrad is in its warm-up"


@pytest.mark.parametrize("main", ["famo", "upgrad", "dwa", "uncertainty", "gradnorm"])
def test_a_run_weighs_its_main_tasks_by(main, tiny_model, tmp_path):
    recipe = write_tiny_recipe(
        tmp_path,
        tiny_model,
        tasks=TASKS.replace("    loss_weight: 2.0", "    role: auxiliary"),
        weighting=f"{{name: gradient_similarity, threshold: -1, main: {main}}}",
        training=training_part(tmp_path, max_steps=3, save_steps=3),
    )
    run = mtlcore.train(recipe)
    assert run.weighting.inner.name == main
    for line in metrics(run.folder):
        weights = line["weights"]
        mean = (weights["sentiment"] + weights["definitions"]) / 2
        assert weights["spelling"] == pytest.approx(mean)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("rule: unweighted", "weighting.rule must be 'keep', 'damp' or 'always', found 'unweighte"),
        ("threshold: 1", "weighting.threshold must be less than 1, found 1"),
        ("until: 0", "weighting.until must be greater than 0, found 0"),
        ("fade: slow", "weighting.fade must be 'none', 'linear' or 'cosine', found 'slow'"),
        ("main: gradient_similarity", "cannot be 'gradient_similarity' again"),
        ("main: pcgrd", "weighting 'pcgrd' is not known\n  fix: did you mean 'pcgrad'?"),
        ("main: {c: 1}", "weighting.main"),
        ("main: {name: pcgrad, d: 1}", "weighting.d is not an option of 'pcgrad'"),
        ("main: {name: graddrop, every: 2}", "every acts on the weights of tasks"),
    ],
)
def test_bad_options_are_refused(options, message, tiny_model, tmp_path):
    recipe = write_tiny_recipe(
        tmp_path,
        tiny_model,
        tasks=TASKS.replace("    loss_weight: 2.0", "    role: auxiliary"),
        weighting=f"{{name: gradient_similarity, {options}}}",
    )
    with pytest.raises(UserError) as caught:
        mtlcore.train(recipe)
    assert message in str(caught.value)


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
        assert line["weights"]["spelling"] in (0.0, 0.5)
    [section] = run.weighting.mtlcore_report(run)
    assert section.table["auxiliary task"] == ["spelling"]
    assert section.table["steps measured"] == [4]
