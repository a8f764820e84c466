"""Weights from the recipe."""

from types import SimpleNamespace

import pytest
import torch

from mtlcore.errors import UserError
from mtlcore.testing import StandInGradients, plugin_manager, stand_in_run
from mtlcore_plugins.weighting.fixed import Fixed

RUN = stand_in_run({"qa": 5, "chat": 5, "sum": 5})
ALL = {"sum": 3.0, "qa": 1.0, "chat": 0.0}


def test_weights_follow_the_names_of_the_present_tasks():
    fixed = Fixed(weights=ALL)
    fixed.mtlcore_check(RUN.recipe)
    assert fixed.mtlcore_weigh_tasks(RUN, StandInGradients(torch.eye(3))).tolist() == [1, 0, 3]
    two = StandInGradients(torch.eye(2), [0, 2])
    assert fixed.mtlcore_weigh_tasks(RUN, two).tolist() == [1, 3]


def test_a_task_left_out_or_misspelt_is_refused_at_the_start():
    with pytest.raises(UserError, match="misses chat"):
        Fixed(weights={"sum": 1.0, "qa": 1.0}).mtlcore_check(RUN.recipe)
    with pytest.raises(UserError, match=r"'chatt'(?s:.*)did you mean 'chat'"):
        Fixed(weights={**ALL, "chatt": 1.0}).mtlcore_check(RUN.recipe)
    with pytest.raises(UserError, match=r"must not all be 0(?s:.*)above 0, such as qa: 1\.0"):
        Fixed(weights={"qa": 0.0, "sum": 0.0, "chat": 0.0}).mtlcore_check(RUN.recipe)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"qa": -1.0}, r"weighting\.weights\.qa must be greater than or equal to 0, found -1"),
        ({"qa": float("inf")}, "finite"),
    ],
)
def test_weights_that_learn_nothing_or_unlearn_are_refused(weights, message):
    spec = SimpleNamespace(name="fixed", options={"weights": weights})
    with pytest.raises(UserError, match=message):
        plugin_manager(Fixed).create("weighting", spec, "weighting")
