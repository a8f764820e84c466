"""Hooks are documented, and a manager refuses implementations that would never be called."""

import inspect

import pytest

from mtlcore import hookspecs
from mtlcore.components import Component
from mtlcore.errors import UserError
from mtlcore.hookspecs import hookimpl
from mtlcore.plugins import hook_arguments
from mtlcore.testing import plugin_manager

FIRST_RESULT = {"mtlcore_plan_step", "mtlcore_choose_rows", "mtlcore_weigh_tasks"}
ARGUMENTS = {
    "mtlcore_components": (),
    "mtlcore_commands": ("cli",),
    "mtlcore_check": ("recipe", "tasks", "layout", "components"),
    "mtlcore_run_start": ("run",),
    "mtlcore_run_end": ("run",),
    "mtlcore_stage_start": ("run", "stage"),
    "mtlcore_stage_end": ("run", "stage"),
    "mtlcore_plan_step": ("run", "step"),
    "mtlcore_choose_rows": ("run", "step", "task", "count"),
    "mtlcore_add_rows": ("run", "step", "rows"),
    "mtlcore_penalties": ("run", "batch", "outputs"),
    "mtlcore_weigh_tasks": ("run", "losses", "gradients"),
    "mtlcore_before_update": ("run", "gradients"),
    "mtlcore_after_update": ("run", "losses_again"),
    "mtlcore_step_end": ("run", "record"),
    "mtlcore_evaluate": ("run", "task", "predictions"),
    "mtlcore_audit": ("run", "predictions"),
    "mtlcore_report": ("run",),
}


def test_the_hooks_and_their_arguments_are_the_public_interface():
    assert hook_arguments() == ARGUMENTS


@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_hook_is_documented_and_typed(name):
    spec = getattr(hookspecs, name)
    assert len(inspect.getdoc(spec).splitlines()[0]) > 20
    assert set(spec.__annotations__) == {*ARGUMENTS[name], "return"}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_hooks_with_one_answer_stop_at_the_first(name):
    caller = getattr(plugin_manager().hook, name)
    assert bool(caller.spec.opts["firstresult"]) == (name in FIRST_RESULT)


def test_an_implementation_may_leave_out_arguments():
    class Short:
        @hookimpl
        def mtlcore_plan_step(self, step):
            return [step]

    assert plugin_manager(Short()).hook.mtlcore_plan_step(run=None, step=3) == [3]


def test_the_newest_answers_first_and_none_falls_through():
    class Answer:
        def __init__(self, value):
            self.value = value

        @hookimpl
        def mtlcore_plan_step(self):
            return self.value

    manager = plugin_manager(Answer([1]), Answer([2]), Answer(None))
    assert manager.hook.mtlcore_plan_step(run=None, step=0) == [2]


def test_a_misspelt_hook_is_refused_with_the_nearest_name():
    class Misspelt(Component):
        kind, name = "test", "misspelt"

        def mtlcore_step_ends(self, run):
            pass

    for plugin in (Misspelt, Misspelt()):
        with pytest.raises(
            UserError, match=r"'mtlcore_step_ends'\n.*did you mean 'mtlcore_step_end'"
        ):
            plugin_manager(plugin)


def test_an_unmarked_hook_of_a_plain_object_is_refused():
    class Unmarked:
        def mtlcore_step_end(self, run):
            pass

    with pytest.raises(UserError, match="not marked"):
        plugin_manager(Unmarked())


def test_an_argument_that_the_hook_does_not_have_is_refused():
    class Wrong(Component):
        kind, name = "test", "wrong"

        def mtlcore_step_end(self, run, loss):
            pass

    with pytest.raises(UserError, match="argument 'loss'"):
        plugin_manager(Wrong())
