"""UPGrad: its problems solved exactly (KKT), against TorchJD's, and its properties."""

import time

import numpy as np
import pytest
import scipy.optimize
import torch

import mtlcore
from mtlcore.testing import StandInGradients, plugin_manager, stand_in_run
from mtlcore_plugins.weighting.upgrad import UPGrad, upgrad_coefficients
from tests.recipes import metrics, training_part, write_tiny_recipe


def jacobian(tasks, spread, seed=0, size=40):
    """J [T, size] in conflict, with norms between 1 and `spread`."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(tasks, size, generator=draw, dtype=torch.float64)
    rows -= 0.9 * rows.mean(0)
    norms = spread ** torch.rand(tasks, generator=draw, dtype=torch.float64)
    return rows / rows.norm(dim=1, keepdim=True) * norms[:, None]


def weigh(rows, present=None, tasks=None, **options):
    run = stand_in_run({str(index): 5 for index in range(tasks or len(rows))})
    hook = plugin_manager(UPGrad(**options)).hook.mtlcore_weigh_tasks
    return hook(run=run, losses=None, gradients=StandInGradients(rows, present))


def kkt_violation(gramian, coefficients):
    """How far v_i is from optimal, in units of the gradients' norms; 0 is exact.

    With x = v_i - e_i the conditions are x >= 0, G v_i >= 0 and x * (G v_i) = 0.
    """
    norms = np.sqrt(np.diagonal(gramian))
    norms = np.where(norms > 0, norms, 1)
    cosines = gramian / norms[:, None] / norms
    worst = 0.0
    for task, row in enumerate(coefficients):
        v = row * norms / norms[task]
        x, slopes = v - np.eye(len(v))[task], cosines @ v
        size = 1 + x.max()
        worst = max(worst, -x.min(), -slopes.min() / size, abs(x * slopes).max() / size**2)
    return worst


def families(seed):
    """Random J of very different kinds: conflicts, spreads, duplicates, opposites, zeros, ranks."""
    draw = np.random.default_rng(seed)
    tasks, size = draw.choice([1, 2, 7, 16]), draw.choice([1, 2, 3, 8, 40])
    rows = draw.standard_normal((tasks, size))
    rows -= draw.random() * rows.mean(0)
    rows *= np.exp(8 * draw.random() * draw.standard_normal((tasks, 1)))
    kind = seed % 6
    if kind == 1:
        rows[-1] = rows[0]
    elif kind == 2 and tasks > 1:
        rows[-1] = -3 * rows[0]
    elif kind == 3:
        rows[0] = 0
    elif kind == 4 and tasks > 2:
        rows[1] = -rows[0] + 1e-6 * abs(rows[0]).max() * draw.standard_normal(size)
    elif kind == 5:
        rows *= 10.0 ** draw.integers(-10, 11)
    return rows


def test_every_problem_is_solved_exactly():
    # 2e-13 measured over 3000 of these
    for seed in range(600):
        rows = families(seed)
        gramian = rows @ rows.T
        assert kkt_violation(gramian, upgrad_coefficients(gramian)) <= 1e-10, seed


@pytest.mark.parametrize("tasks", [1, 2, 7, 16])
@pytest.mark.parametrize("spread", [1, 3, 30])
@pytest.mark.parametrize("seed", range(3))
def test_coefficients_equal_those_of_scipy_on_the_gradients_themselves(tasks, spread, seed):
    rows = jacobian(tasks, spread, seed).numpy()
    found = upgrad_coefficients(rows @ rows.T)
    for task in range(tasks):
        x, _ = scipy.optimize.nnls(rows.T, -rows[task])
        expected = x + np.eye(tasks)[task]
        assert np.linalg.norm(found[task] - expected) <= 1e-9 * np.linalg.norm(expected)


def torchjd_weights(rows, reg_eps):
    """TorchJD's weights; its solver is an optional dependency of it, which our extra asks for."""
    from torchjd.aggregation import UPGradWeighting
    from torchjd.linalg import QuadprogProjector

    projector = QuadprogProjector(norm_eps=0, reg_eps=reg_eps)
    return UPGradWeighting(projector=projector)(rows @ rows.T)


@pytest.mark.parametrize("tasks", [1, 2, 7, 16])
@pytest.mark.parametrize("spread", [1, 3, 30])
def test_updates_equal_torchjd_without_its_regularization(tasks, spread):
    rows = jacobian(tasks, spread)
    expected = rows.T @ torchjd_weights(rows, 1e-12)
    # 1.3e-8 measured at 16 tasks: what its reg_eps changes
    assert (rows.T @ weigh(rows) - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("tasks", [2, 8])
def test_weights_equal_torchjd_with_the_same_regularization(tasks):
    rows = jacobian(tasks, 30)
    expected = torchjd_weights(rows, 1e-4)
    torch.testing.assert_close(weigh(rows, reg_eps=1e-4), expected, rtol=1e-9, atol=0)


def test_the_example_of_torchjd_is_met_with_its_regularization():
    rows = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]], dtype=torch.float64)
    update = rows.T @ weigh(rows, reg_eps=1e-4)
    assert update.tolist() == pytest.approx([0.2929, 1.9004, 1.9004], abs=1e-4)
    # By hand: v_1 = (1, 22/38) and v_2 = (22/18, 1), which leave each other's gradient at 0.
    exact = rows.T @ torch.tensor([(1 + 22 / 18) / 2, (22 / 38 + 1) / 2], dtype=torch.float64)
    assert (rows.T @ weigh(rows)).tolist() == pytest.approx(exact.tolist(), rel=1e-12)


@pytest.mark.parametrize("tasks", [1, 2, 7, 16])
@pytest.mark.parametrize("spread", [1, 30, 1e4])
def test_the_update_harms_no_task(tasks, spread):
    rows = jacobian(tasks, spread)
    update = rows.T @ weigh(rows)
    assert (rows @ update / rows.norm(dim=1) / update.norm() >= -1e-10).all()


def test_without_conflicts_the_update_is_the_mean():
    rows = torch.rand(5, 7, dtype=torch.float64)
    assert weigh(rows).tolist() == pytest.approx([0.2] * 5, rel=1e-15)


def test_tasks_that_are_present_keep_the_share_they_have_of_the_run():
    rows = torch.rand(2, 7, dtype=torch.float64)
    assert weigh(rows, present=[0, 3], tasks=4).tolist() == [0.25, 0.25]


def test_one_task_keeps_its_gradient():
    assert weigh(torch.randn(1, 4, dtype=torch.float64)).tolist() == [1.0]


def test_zero_gradients_change_nothing_for_the_others():
    rows = jacobian(3, 3)
    padded = torch.cat([rows[:1], torch.zeros(1, 40, dtype=torch.float64), rows[1:]])
    found, expected = weigh(padded), weigh(rows)
    torch.testing.assert_close(found[[0, 2, 3]] * 4, expected * 3, rtol=1e-10, atol=0)
    assert found[1] == 0.25
    assert weigh(torch.zeros(4, 3, dtype=torch.float64)).tolist() == [0.25] * 4


def test_a_task_twice_gives_the_update_that_counts_it_twice():
    rows = jacobian(4, 3)
    twice = torch.cat([rows, rows[:1]])
    coefficients = torch.from_numpy(upgrad_coefficients((rows @ rows.T).numpy()))
    expected = rows.T @ (coefficients.sum(0) + coefficients[0]) / 5
    torch.testing.assert_close(twice.T @ weigh(twice), expected, rtol=1e-9, atol=1e-12)


def test_two_opposite_tasks_stand_still():
    rows = torch.tensor([[1.0, 2.0], [-3.0, -6.0]], dtype=torch.float64)
    assert (rows.T @ weigh(rows)).norm() <= 1e-12


@pytest.mark.parametrize("scale", [1e-10, 1e10])
def test_weights_do_not_depend_on_the_scale_of_the_gradients(scale):
    rows = jacobian(8, 30)
    torch.testing.assert_close(weigh(rows * scale), weigh(rows), rtol=1e-10, atol=0)


def test_a_task_far_smaller_than_the_others_is_protected_too():
    rows = jacobian(4, 3)
    rows[2] *= 1e-9
    update = rows.T @ weigh(rows)
    assert (rows @ update / rows.norm(dim=1) / update.norm() >= -1e-10).all()


def test_permuted_tasks_have_permuted_weights():
    rows = jacobian(7, 3)
    new = np.random.default_rng(0).permutation(7)
    torch.testing.assert_close(weigh(rows[new]), weigh(rows)[new], rtol=1e-10, atol=0)


def test_the_rounding_of_float32_gradients_leaves_weights_bounded():
    rows = jacobian(3, 1)
    rows[1] = -rows[0]
    gramian = rows @ rows.T
    gramian[0, 1] = gramian[1, 0] = gramian[0, 1] * (1 + 1e-7)  # no longer semidefinite
    assert torch.linalg.eigvalsh(gramian)[0] < 0
    coefficients = upgrad_coefficients(gramian.numpy())
    assert np.isfinite(coefficients).all()
    assert coefficients.max() < 10
    assert coefficients.min() > -1e-12


def test_scopes_are_weighed_each_by_itself():
    rows = jacobian(4, 3, size=5)
    weights = weigh(rows, scope="layer")  # the stand-in's layers are the columns
    assert weights.shape == (5, 4)
    for column in range(5):
        alone = weigh(rows[:, column : column + 1])
        torch.testing.assert_close(weights[column], alone, rtol=1e-9, atol=1e-12)


def test_eight_tasks_take_well_under_a_millisecond():
    run = stand_in_run(dict.fromkeys("abcdefgh", 5))
    gradients, weighting = StandInGradients(jacobian(8, 3)), UPGrad()
    times = []
    for _ in range(200):
        start = time.perf_counter()
        weighting.mtlcore_weigh_tasks(run, gradients)
        times.append(time.perf_counter() - start)
    assert min(times) < 2e-3  # 0.4 ms measured; wide, for busy machines


@pytest.mark.parametrize("scope", ["model", "layer"])
def test_a_run_trains_with_it(scope, tiny_model, tmp_path):
    recipe = write_tiny_recipe(
        tmp_path,
        tiny_model,
        weighting=f"{{name: upgrad, scope: {scope}}}",
        training=training_part(tmp_path, max_steps=3, save_steps=3),
    )
    weights = [line["weights"] for line in metrics(mtlcore.train(recipe).folder)]
    assert all(weight >= 1 / 3 - 1e-12 for line in weights for weight in line.values())
    assert any(weight > 1 / 3 + 1e-6 for line in weights for weight in line.values())
