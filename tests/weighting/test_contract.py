"""What all weightings that read gradients keep, with options that change what they do."""

import inspect
from types import SimpleNamespace

import pytest
import torch

from mtlcore.plugins import PluginManager
from tests.weighting.helpers import (
    assert_close,
    assert_degenerate_gradients_are_weighed,
    assert_permutes,
    assert_scopes_are_apart,
    jacobian,
    tasks,
    weigh,
)

CASES = [
    ("aligned_mtl", {"scale": "min"}),
    ("aligned_mtl", {"scale": "median"}),
    ("aligned_mtl", {"scale": "rmse"}),
    ("cagrad", {}),
    ("config", {}),
    ("db_mtl", {}),
    ("doge_weights", {"rule": "paper"}),
    ("doge_weights", {"rule": "code"}),
    ("dualproj", {}),
    ("dualproj", {"reg_eps": 1e-4}),
    ("excess_mtl", {}),
    ("fairgrad", {"alpha": 0.5}),
    ("fairgrad", {"alpha": 1.0}),
    ("fairgrad", {"alpha": 2.0}),
    ("fairgrad", {"alpha": 10.0}),
    ("gradnorm", {}),
    ("gradvac", {"beta": 0.5}),
    ("imtl_g", {}),
    *[("mgda", {"normalization": how}) for how in ("none", "l2", "loss", "loss+")],
    ("nash_mtl", {}),
    ("nash_mtl", {"max_norm": 0}),
    ("pcgrad", {}),
    ("upgrad", {}),
    ("upgrad", {"reg_eps": 1e-4}),
]
CLASSES = {
    name: info.cls
    for (kind, name), info in PluginManager.load(environ={"MTLCORE_NO_PLUGINS": "1"})
    .components()
    .items()
    if kind == "weighting"
}
# A loss below 1e-8 counts as 1e-8 to db_mtl, whose own tests scale within that.
WITH_A_POWER = [
    (name, options)
    for name, options in CASES
    if CLASSES[name](**options).homogeneity is not None and name != "db_mtl"
]
OTHERS = {"gradient_similarity", "graddrop"}  # one asks for roles, one gives no weights


def has_scope(name):
    return "scope" in inspect.signature(CLASSES[name].__init__).parameters


def test_no_weighting_is_forgotten():
    reading = {name for name, cls in CLASSES.items() if cls.needs in ("gramian", "rows")}
    assert {name for name, _ in CASES} == reading - OTHERS
    without_a_power = {name for name, _ in CASES} - {name for name, _ in WITH_A_POWER}
    assert without_a_power == {"db_mtl", "doge_weights", "nash_mtl"}


@pytest.mark.parametrize(("name", "options"), CASES)
def test_gradients_of_every_kind_have_finite_weights(name, options):
    assert_degenerate_gradients_are_weighed(CLASSES[name], **options)


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e30])
@pytest.mark.parametrize(("name", "options"), WITH_A_POWER)
def test_weights_scale_as_declared(name, options, scale):
    plain, scaled = (CLASSES[name](**options) for _ in range(2))
    run = tasks(8)
    for run.step in range(3):
        rows = jacobian(8, 30, seed=run.step)
        losses = torch.linspace(0.5, 2, 8, dtype=torch.float64) + run.step
        expected = weigh(plain, rows, losses, run=run) * scale**plain.homogeneity
        assert_close(weigh(scaled, rows * scale, losses * scale, run=run), expected, 1e-10)


def test_a_scale_that_is_undone_makes_loss_weights_a_warning():
    """That the scale is undone is a matter of `check_weighting`."""
    warned = set()
    for name, cls in CLASSES.items():
        weighting = cls(**({"weights": {}} if name == "fixed" else {}))
        check = weighting.loss_weight_warnings
        assert check(recipe_of(1.0, 1.0)) == check(recipe_of(2.0, 2.0, auxiliary=2.0)) == []
        found = check(recipe_of(1.0, 2.0, 1.0))
        for problem in found:
            assert problem.where == "tasks.1.loss_weight"
            assert f"weighting {name} undoes the scale of every loss" in problem.message
            warned.add(name)
        weighting.weighs_auxiliary = False
        assert check(recipe_of(1.0, 1.0, auxiliary=2.0)) == []
    assert warned == {
        *("config", "db_mtl", "famo", "geometric", "imtl_g", "nash_mtl", "scale_invariant")
    }


def recipe_of(*main, auxiliary=1.0):
    """A stand-in for a recipe whose main tasks have these loss weights, and an auxiliary one."""
    given = [SimpleNamespace(loss_weight=weight, role="main") for weight in main]
    last = SimpleNamespace(loss_weight=auxiliary, role="auxiliary")
    return SimpleNamespace(tasks={str(index): task for index, task in enumerate([*given, last])})


@pytest.mark.parametrize(
    ("name", "options"), [case for case in CASES if CLASSES[case[0]].symmetric]
)
def test_permuted_tasks_have_permuted_weights(name, options):
    assert_permutes(CLASSES[name], **options)


@pytest.mark.parametrize(
    ("name", "options"),
    # The cap of nash_mtl is on all scopes together.
    [case for case in CASES if has_scope(case[0]) and case != ("nash_mtl", {})],
)
def test_scopes_are_weighed_each_by_itself(name, options):
    assert_scopes_are_apart(CLASSES[name], **options)
