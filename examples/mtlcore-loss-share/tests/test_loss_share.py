import pytest
import torch
from mtlcore_loss_share import LossShare

from mtlcore.testing import StandInGradients, plugin_manager, stand_in_run


def weigh(losses: list[float], **options: float) -> torch.Tensor:
    """Ask through the hook, as a run does."""
    manager = plugin_manager(LossShare(**options))
    run = stand_in_run({str(index): 10 for index in range(len(losses))})
    gradients = StandInGradients(torch.eye(len(losses)))
    return manager.hook.mtlcore_weigh_tasks(
        run=run, losses=torch.tensor(losses, dtype=torch.float64), gradients=gradients
    )


def test_weights_are_the_shares_of_the_loss():
    assert weigh([1.0, 3.0]).tolist() == pytest.approx([0.25, 0.75])


@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e10])
def test_weights_do_not_depend_on_the_scale_of_the_losses(scale):
    assert weigh([scale, 3 * scale]).tolist() == pytest.approx([0.25, 0.75])


def test_power_zero_weighs_all_tasks_alike():
    assert weigh([1.0, 2.0, 5.0], power=0.0).tolist() == pytest.approx([1 / 3] * 3)


def test_losses_of_zero_are_weighed_alike():
    assert weigh([0.0, 0.0]).tolist() == [0.5, 0.5]


def test_one_task_weighs_one():
    assert weigh([7.0]).tolist() == [1.0]
