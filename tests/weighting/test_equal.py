"""Equal weights."""

import pytest
import torch

from mtlcore.testing import StandInGradients, plugin_manager, stand_in_run
from mtlcore_plugins.weighting.equal import Equal


@pytest.mark.parametrize("present", [[0], [1, 3], [0, 1, 2, 3, 4]])
def test_weights_are_one_over_all_tasks_also_when_some_are_absent(present):
    run = stand_in_run(dict.fromkeys("abcde", 5))
    gradients = StandInGradients(torch.zeros(len(present), 3), present)
    weigh = plugin_manager(Equal()).hook.mtlcore_weigh_tasks
    weights = weigh(run=run, losses=None, gradients=gradients)
    assert weights.dtype == torch.float64
    assert weights.tolist() == [1 / 5] * len(present)
