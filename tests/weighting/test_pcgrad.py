"""PCGrad in coefficients against TorchJD's, and its properties."""

import time

import numpy as np
import pytest
import torch

from mtlcore.testing import StandInGradients, plugin_manager, stand_in_run
from mtlcore_plugins.weighting.pcgrad import PCGrad, pcgrad_weights


def jacobian(tasks, spread, seed=0, size=12):
    """J [T, size] in conflict, with norms between 1 and `spread`."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(tasks, size, generator=draw, dtype=torch.float64)
    rows -= 0.9 * rows.mean(0)
    norms = spread ** torch.rand(tasks, generator=draw, dtype=torch.float64)
    return rows / rows.norm(dim=1, keepdim=True) * norms[:, None]


def torchjd_order(tasks, seed):
    """The order that TorchJD's loop would draw: a permutation per task, the task itself skipped."""
    torch.manual_seed(seed)
    orders = [torch.randperm(tasks).tolist() for _ in range(tasks)]
    return np.array([[j for j in order if j != i] for i, order in enumerate(orders)])


def projected(rows, order):
    """The paper's loop, on explicit gradients: the update [P]."""
    total = torch.zeros(rows.shape[1], dtype=torch.float64)
    for task, others in enumerate(order):
        gradient = rows[task].clone()
        for other in others:
            product = gradient @ rows[other]
            if product < 0:
                gradient -= product / (rows[other] @ rows[other]) * rows[other]
        total += gradient
    return total


def weigh(rows, seed=0, **options):
    run = stand_in_run({str(index): 5 for index in range(len(rows))}, seed=seed)
    hook = plugin_manager(PCGrad(**options)).hook.mtlcore_weigh_tasks
    return hook(run=run, losses=None, gradients=StandInGradients(rows))


def order_of(tasks):
    """Every task meets the others in rising order."""
    return np.array([[j for j in range(tasks) if j != i] for i in range(tasks)]).reshape(tasks, -1)


@pytest.mark.parametrize("tasks", [2, 3, 8, 16])
@pytest.mark.parametrize("spread", [1, 3, 30])
@pytest.mark.parametrize("seed", range(3))
def test_weights_equal_torchjd_with_the_same_order(tasks, spread, seed):
    aggregation = pytest.importorskip("torchjd.aggregation")
    rows = jacobian(tasks, spread, seed)
    order = torchjd_order(tasks, seed)
    torch.manual_seed(seed)
    expected = aggregation.PCGradWeighting()(rows @ rows.T)
    found = torch.from_numpy(pcgrad_weights((rows @ rows.T).numpy(), order))
    assert (found - expected).norm() <= 1e-12 * expected.norm()
    if spread < 30:
        update = projected(rows, order)
        assert (rows.T @ found - update).norm() <= 1e-10 * update.norm()


def test_the_example_of_torchjd_is_met():
    rows = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]], dtype=torch.float64)
    update = rows.T @ weigh(rows)
    assert update.tolist() == pytest.approx([0.5848, 3.8012, 3.8012], abs=1e-4)


def test_without_conflicts_the_update_is_the_sum():
    rows = torch.rand(5, 7, dtype=torch.float64)
    assert weigh(rows).tolist() == [1.0] * 5


def test_one_task_keeps_its_gradient():
    assert weigh(torch.randn(1, 4, dtype=torch.float64)).tolist() == [1.0]


def test_two_projected_tasks_do_not_conflict_with_each_other():
    rows = jacobian(2, 3)
    assert (rows @ rows.T)[0, 1] < 0
    assert (rows @ (rows.T @ weigh(rows)) >= -1e-12).all()


def test_zero_gradients_change_nothing_for_the_others():
    rows = jacobian(3, 3)
    padded = torch.cat([rows[:1], torch.zeros(1, 12, dtype=torch.float64), rows[1:]])
    order = np.array([[1, 2, 3], [0, 2, 3], [1, 0, 3], [1, 0, 2]])
    without = np.array([[1, 2], [0, 2], [0, 1]])
    found = pcgrad_weights((padded @ padded.T).numpy(), order)
    expected = pcgrad_weights((rows @ rows.T).numpy(), without)
    assert np.allclose(found[[0, 2, 3]], expected, rtol=1e-12)
    assert weigh(torch.zeros(4, 3, dtype=torch.float64)).tolist() == [1.0] * 4


@pytest.mark.parametrize("scale", [1e-10, 1e10])
def test_weights_do_not_depend_on_the_scale_of_the_gradients(scale):
    rows = jacobian(8, 30)
    torch.testing.assert_close(weigh(rows * scale), weigh(rows), rtol=1e-10, atol=0)


def test_permuted_tasks_have_permuted_weights():
    rows = jacobian(7, 3)
    new = np.random.default_rng(0).permutation(7)  # task k of the new numbering was new[k]
    order = np.stack(
        [np.random.default_rng(i).permutation(row) for i, row in enumerate(order_of(7))]
    )
    number = np.argsort(new)
    gramian = (rows @ rows.T).numpy()
    found = pcgrad_weights(gramian[np.ix_(new, new)], number[order[new]])
    assert np.allclose(found, pcgrad_weights(gramian, order)[new], rtol=1e-12)


def test_scopes_are_weighed_each_by_itself():
    rows = jacobian(4, 3, size=5)
    weights = weigh(rows, scope="layer")  # the stand-in's layers are the columns
    assert weights.shape == (5, 4)
    for column in range(5):
        alone = weigh(rows[:, column : column + 1])
        torch.testing.assert_close(weights[column], alone, rtol=1e-12, atol=0)


def test_the_order_depends_on_seed_and_step():
    rows = jacobian(8, 30)
    assert torch.equal(weigh(rows, seed=1), weigh(rows, seed=1))
    assert not torch.equal(weigh(rows, seed=1), weigh(rows, seed=2))


def test_every_order_of_the_others_is_drawn():
    run = stand_in_run(dict.fromkeys("abc", 5))
    rows, seen = jacobian(3, 30, seed=4), set()
    for run.step in range(200):
        weights = PCGrad().mtlcore_weigh_tasks(run, StandInGradients(rows))
        seen.add(tuple(weights.numpy().round(9).tolist()))
    gramian = (rows @ rows.T).numpy()
    possible = set()
    for bits in range(8):
        flips = [order[:: -1 if bits >> i & 1 else 1] for i, order in enumerate(order_of(3))]
        possible.add(tuple(pcgrad_weights(gramian, np.array(flips)).round(9).tolist()))
    assert seen == possible
    assert len(possible) > 1


def test_eight_tasks_take_well_under_a_millisecond():
    run = stand_in_run(dict.fromkeys("abcdefgh", 5))
    gradients, weighting = StandInGradients(jacobian(8, 3)), PCGrad()
    times = []
    for _ in range(200):
        start = time.perf_counter()
        weighting.mtlcore_weigh_tasks(run, gradients)
        times.append(time.perf_counter() - start)
    assert min(times) < 1e-3  # 0.09 ms measured; wide, for busy machines
