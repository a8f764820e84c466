"""What the tests of weightings share: losses and gradients, a call with them, and a tiny run."""

import functools
from types import SimpleNamespace

import torch

import mtlcore
from mtlcore.gradients import Direction
from mtlcore.testing import StandInGradients, plugin_manager, stand_in_run
from tests.recipes import metrics, training_part, write_tiny_recipe

EXAMPLE = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]], dtype=torch.float64)
"""J of the documentation of TorchJD, for which its updates are known."""


def jacobian(tasks, spread, seed=0, size=40):
    """J [T, size] in conflict, with norms between 1 and `spread`."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(tasks, size, generator=draw, dtype=torch.float64)
    rows -= 0.9 * rows.mean(0)
    norms = spread ** torch.rand(tasks, generator=draw, dtype=torch.float64)
    return rows / rows.norm(dim=1, keepdim=True) * norms[:, None]


def tasks(count, **attributes):
    """A run of so many tasks."""
    return stand_in_run({str(index): 5 for index in range(count)}, **attributes)


@functools.cache
def hook_of(weighting):
    """The hook as the trainer calls it, with the arguments that the method takes."""
    return plugin_manager(weighting).hook.mtlcore_weigh_tasks


def weigh(weighting, rows, losses=None, present=None, run=None, **options):
    """The weights, or the direction, of a class with these options, or of one made before."""
    if isinstance(weighting, type):
        weighting = weighting(**options)
    run = run or tasks(len(rows))
    losses = torch.as_tensor([1.0] * len(rows) if losses is None else losses, dtype=torch.float64)
    gradients = StandInGradients(rows, present)
    found = hook_of(weighting)(run=run, losses=losses, gradients=gradients)
    return found.vector if isinstance(found, Direction) else found


def weigh_by(weighting, run, losses, present=None):
    """The weights [T'] of a weighting that reads losses [T']."""
    return weigh(weighting, torch.eye(len(losses)), losses, present, run)


def slopes(scalarizer, losses):
    """d scalarizer / d losses [T]: the weights that a scalarization of TorchJD implies."""
    leaf = torch.tensor(losses, dtype=torch.float64, requires_grad=True)
    scalarizer(leaf).backward()
    return leaf.grad


def random_losses(count, scale, seed):
    """Losses in 0.1 .. 5, times a scale."""
    draw = torch.Generator().manual_seed(seed)
    values = 0.1 + 4.9 * torch.rand(count, generator=draw, dtype=torch.float64)
    return [float(value) * scale for value in values]


def torchjd_projection(cls, rows, reg_eps):
    """The weights of TorchJD's class; its solver is an extra of it that ours asks for."""
    from torchjd.linalg import QuadprogProjector

    projector = QuadprogProjector(norm_eps=0, reg_eps=reg_eps)
    return cls(projector=projector)(rows @ rows.T)


def assert_close(found, expected, relative):
    """Two vectors, by the norm of their difference."""
    assert found.shape == expected.shape
    assert (found - expected).norm() <= relative * expected.norm()


def keys_of(order):
    """Keys [T, T-1] with which each task meets the others in a given order: their places in it."""
    return order.argsort(dim=1).double()


def assert_permutes(cls, relative=1e-10, **options):
    """Permuted tasks have permuted weights."""
    rows, new = jacobian(7, 3), torch.tensor([3, 0, 6, 1, 5, 2, 4])
    losses = torch.linspace(0.5, 4, 7)
    found = weigh(cls, rows[new], losses[new], **options)
    assert_close(found, weigh(cls, rows, losses, **options)[new], relative)


def assert_scopes_are_apart(cls, **options):
    """With scope "layer", which the stand-in takes for columns, each is weighed by itself."""
    rows, losses = jacobian(3, 3, size=5), torch.tensor([1.0, 2.0, 3.0])
    weights = weigh(cls, rows, losses, scope="layer", **options)
    assert weights.shape == (5, 3)
    for column in range(5):
        alone = weigh(cls, rows[:, column : column + 1], losses, **options)
        torch.testing.assert_close(weights[column], alone, rtol=1e-9, atol=1e-12)


def create(cls, **options):
    """One as a recipe makes it, with its options checked."""
    spec = SimpleNamespace(name=cls.name, options=options)
    return plugin_manager(cls).create("weighting", spec, "weighting")


def trained_run(folder, model, weighting, **training):
    """A tiny run of three tasks."""
    part = training_part(folder, **{"max_steps": 4, "save_steps": 4, **training})
    return mtlcore.train(write_tiny_recipe(folder, model, weighting=weighting, training=part))


def trained(folder, model, weighting, **training):
    """The steps' records of such a run."""
    return metrics(trained_run(folder, model, weighting, **training).folder)


def weights_of_run(model, folder, weighting, steps=3):
    """Such a run, and the weights of each of its steps by task name."""
    run = trained_run(folder, model, weighting, max_steps=steps, save_steps=steps)
    return run, [line["weights"] for line in metrics(run.folder)]


def degenerate_jacobians():
    """J of all kinds that leave a Gramian without an inverse, or nearly so, each with its name."""
    rows = jacobian(5, 3)
    yield "zero", 0 * rows
    yield "one zero", torch.cat([0 * rows[:1], rows])
    yield "of rank one", rows[:, :1] @ rows[:1]
    yield "equal", rows[:1].expand(4, -1)
    yield "twice", torch.cat([rows, rows])
    yield "opposed", torch.cat([rows[:1], -3 * rows[:1]])
    yield "opposed beside others", torch.cat([rows, -rows[:1]])
    yield "nearly opposed", torch.cat([rows[:1], -rows[:1] + 1e-9 * rows[1:2]])
    yield "more than there are elements", jacobian(8, 30, size=3)
    yield "of norms 1 and 1e8", rows * torch.tensor([[1e8], [1.0], [1.0], [1e-8], [1.0]])
    yield "tiny", 1e-30 * rows
    yield "huge", 1e30 * rows
    yield "one", rows[:1]
    yield "rounded to float32", torch.cat([rows, 0.1 * rows]).float().double()


def assert_degenerate_gradients_are_weighed(cls, **options):
    """Gradients of every kind, at losses of 0, too, get finite weights."""
    for name, rows in degenerate_jacobians():
        for losses in (torch.ones(len(rows)), torch.zeros(len(rows))):
            weights = weigh(cls, rows, losses, **options)
            assert weights.dtype == torch.float64
            assert torch.isfinite(weights).all(), name
            assert torch.isfinite(rows.T @ weights).all(), name


def weighted_losses(line):
    """The losses of a step of the tiny run as its weighting reads them: times `loss_weight`."""
    return {name: loss * (2 if name == "spelling" else 1) for name, loss in line["losses"].items()}
