"""What the base classes do for a plugin."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from mtlcore.components import Component, Evaluator, Regularizer, RowChooser, Sampler, Weighting
from mtlcore.errors import UserError
from mtlcore.hookspecs import hookimpl
from mtlcore.testing import plugin_manager, stand_in_run


class Shares(Sampler):
    name = "shares"

    def __init__(self, shares):
        self.given = shares

    def shares(self, run, step):
        return self.given


def test_an_override_without_a_marker_is_called():
    class Base(Weighting):
        name = "base"

        def mtlcore_weigh_tasks(self, run):
            return 1

    class Child(Base):
        name = "child"

        def mtlcore_weigh_tasks(self, run):
            return 2

    weigh = plugin_manager(Child()).hook.mtlcore_weigh_tasks
    assert weigh(run=None, losses=None, gradients=None) == 2


def test_a_marker_that_was_set_is_kept():
    class Last(Component):
        @hookimpl(trylast=True)
        def mtlcore_step_end(self, run):
            pass

    assert Last.mtlcore_step_end.mtlcore_impl["trylast"] is True


def test_a_component_without_state_refuses_a_state():
    component = Shares([1.0])
    assert component.state_dict() == {}
    component.load_state_dict({})
    with pytest.raises(ValueError, match="keeps no state"):
        component.load_state_dict({"x": 1})


@pytest.mark.parametrize("shares", [[1.0], [0.5, 0.5], [0.03, 0.9, 0.07], [0.0, 1.0, 0.0]])
@pytest.mark.parametrize("rows", [1, 2, 7, 100])
def test_counts_are_the_shares_rounded_up_or_down(shares, rows):
    run = stand_in_run({str(i): 5 for i in range(len(shares))}, rows_per_step=rows)
    for step in range(50):
        counts = Shares(shares).mtlcore_plan_step(run, step)
        assert sum(counts) == rows
        for count, share in zip(counts, shares, strict=True):
            assert abs(count - rows * share) < 1 + 1e-9
            assert share > 0 or count == 0


def test_counts_are_right_on_average():
    shares = [0.013, 0.487, 0.2, 0.3]
    run = stand_in_run(dict.fromkeys("abcd", 5), rows_per_step=7)
    drawn = torch.tensor([Shares(shares).mtlcore_plan_step(run, step) for step in range(4000)])
    assert drawn.double().mean(0).tolist() == pytest.approx([7 * s for s in shares], abs=0.03)


def test_counts_depend_on_seed_and_step_alone():
    def plan(seed):
        run = stand_in_run({"a": 5, "b": 5}, seed=seed, rows_per_step=5)
        return [Shares([0.5, 0.5]).mtlcore_plan_step(run, step) for step in range(20)]

    assert plan(0) == plan(0) != plan(1)


@pytest.mark.parametrize(
    "shares",
    [[1.0], [0.5, 0.6], [1.5, -0.5], [float("nan"), 1.0], {"a": 0.5, "b": 0.5}, None, 1.0],
)
def test_shares_that_are_no_distribution_are_refused(shares):
    with pytest.raises(UserError, match=r"shares.*\n.*fix: return a list of 2 numbers"):
        Shares(shares).mtlcore_plan_step(stand_in_run({"a": 5, "b": 5}), 0)


def test_a_row_chooser_serves_its_tasks_alone():
    class First(RowChooser):
        name = "first"

        def choose(self, run, step, task, count):
            return list(range(count))

    chooser = First()
    chooser.tasks = ("a",)
    run = stand_in_run({"a": 5, "b": 5})
    choose = plugin_manager(chooser).hook.mtlcore_choose_rows
    assert choose(run=run, step=0, task=run.tasks[0], count=2) == [0, 1]
    assert choose(run=run, step=0, task=run.tasks[1], count=2) is None


def test_an_evaluator_scores_its_tasks_alone_and_refuses_no_predictions():
    class One(Evaluator):
        name = "one"

        def score(self, predictions):
            return 1

    evaluator = One()
    evaluator.tasks = ("a",)
    a, b = SimpleNamespace(name="a"), SimpleNamespace(name="b")
    assert evaluator.mtlcore_evaluate(None, a, ["p"]) == {"one": 1.0}
    assert evaluator.mtlcore_evaluate(None, b, ["p"]) is None
    with pytest.raises(UserError, match="one has no predictions"):
        evaluator.mtlcore_evaluate(None, a, [])


def test_normalized_scores_are_one_when_perfect_and_grow_with_quality():
    class Percent(Evaluator):
        name, best = "percent", 100.0

    class Distance(Evaluator):
        name, best, greater_is_better = "distance", 0.0, False

    assert [Percent().normalized(v) for v in (0.0, 50.0, 100.0)] == [0.0, 0.5, 1.0]
    assert [Distance().normalized(v) for v in (0.0, 1.0, 3.0)] == [1.0, 0.5, 0.25]


@pytest.mark.parametrize("base", [Sampler, RowChooser, Evaluator])
def test_what_a_subclass_must_implement_is_said(base):
    component = base()
    method = {Sampler: "shares", RowChooser: "choose", Evaluator: "score"}[base]
    arguments = {Sampler: 2, RowChooser: 4, Evaluator: 1}[base]
    with pytest.raises(NotImplementedError, match=f"must implement `{method}`"):
        getattr(component, method)(*[None] * arguments)


def test_components_import_no_torch():
    code = "import sys, mtlcore.components, mtlcore.hookspecs; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_regularizer_says_what_it_acts_on():
    assert Regularizer.acts_on == "weights"
