"""The solvers on the Gramian: conditions of each minimum restated, other people's solvers, and the
reference, over gradients of all kinds.

Gaps of 50,000 random `families`: below 1e-12, `balance` (which stops there) below 1e-11.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.optimize
import torch

from mtlcore.ops import (
    SolverError,
    active_backend,
    backend,
    balance,
    cagrad_minimum,
    cone_minimum,
    equal_projections,
    gradvac,
    pcgrad,
    simplex_minimum,
    use_backend,
)
from tests.weighting.helpers import keys_of

SOLVERS = ("simplex_minimum", "cone_minimum", "cagrad_minimum", "balance", "equal_projections")
OPS = (*SOLVERS, "pcgrad", "gradvac")
BACKENDS = ("cpp", "reference")


def families(seed, sizes=(1, 2, 3, 5, 8, 16)):
    """J [T, P] of all kinds: duplicates, opposites, zeros, low ranks, spreads, scales."""
    draw = np.random.default_rng(seed)
    tasks, size = draw.choice(sizes), draw.choice([1, 2, 3, 8, 40])
    rows = draw.standard_normal((tasks, size))
    rows -= draw.random() * rows.mean(0)
    rows *= np.exp(draw.choice([0, 1, 4, 8]) * draw.random() * draw.standard_normal((tasks, 1)))
    kind = seed % 11
    if kind == 1:
        rows[-1] = rows[0]
    elif kind == 2 and tasks > 1:
        rows[-1] = -3 * rows[0]
    elif kind == 3:
        rows[0] = 0
    elif kind == 4 and tasks > 2:
        rows[1] = -rows[0] + 1e-6 * abs(rows[0]).max() * draw.standard_normal(size)
    elif kind == 5:
        rows *= 10.0 ** draw.integers(-15, 16)
    elif kind == 6:
        rows = np.outer(draw.standard_normal(tasks), rows[0])
    elif kind == 7:
        rows *= 10.0 ** (8 * draw.random((tasks, 1)) - 4)
    elif kind == 8:
        rows[draw.random(tasks) < 0.5] = 0
    elif kind == 9:
        rows = draw.integers(-1, 2, (tasks, size)).astype(float)
    elif kind == 10:
        rows = rows[draw.integers(0, tasks, tasks)] * draw.choice([1, -1, 2, -0.5], (tasks, 1))
    return torch.from_numpy(rows)


def gramian_of(rows):
    """G, symmetric to the bit."""
    gramian = rows @ rows.mT
    return (gramian + gramian.mT) / 2


def order_of(tasks, seed=0):
    draw = np.random.default_rng(seed)
    others = [[j for j in range(tasks) if j != i] for i in range(tasks)]
    rows = [draw.permutation(row).tolist() for row in others]
    return torch.tensor(rows, dtype=torch.int64).reshape(tasks, max(tasks - 1, 0))


def call(op, G, seed=0):
    """Any of the ops, with arguments that fit G [..., T, T]."""
    tasks = G.shape[-1]
    if op == "simplex_minimum":
        return simplex_minimum(G)
    if op == "cone_minimum":
        eye = torch.eye(tasks, dtype=torch.float64)
        return cone_minimum(G, eye.expand(*G.shape[:-2], tasks, tasks))
    if op == "cagrad_minimum":
        return cagrad_minimum(G, 0.4)[0]
    if op == "balance":
        return balance(G, 0.5)
    if op == "equal_projections":
        return equal_projections(G)
    keys = keys_of(order_of(tasks, seed))
    if op == "pcgrad":
        return pcgrad(G, keys)
    targets = 0.3 * torch.ones_like(G)
    weights, new = gradvac(G, targets, keys, 0.5)
    return torch.cat([weights[..., None, :], new], dim=-2)


def in_units(gramian, weights):
    """C, and the weights of the unit gradients, of the tasks whose gradient is not 0; the norms."""
    norms = gramian.diagonal().sqrt()
    there = norms > 0
    norms = norms[there]
    cosines = gramian[there][:, there] / norms[:, None] / norms
    return cosines, weights[..., there] * norms, norms


# -- each problem, its conditions restated -------------------------------------------------------


@pytest.mark.parametrize("name", BACKENDS)
def test_the_shortest_mix_is_met_by_every_gradient_as_far_out(name):
    """Gw >= w'Gw, in units of the norms: nothing is shorter (the problem is convex)."""
    for seed in range(300):
        rows = families(seed)
        with use_backend(name):
            w = simplex_minimum(gramian_of(rows))
        assert (w >= 0).all()
        assert w.sum().item() == pytest.approx(1, rel=1e-12)
        cosines, y, norms = in_units(gramian_of(rows), w)
        if len(norms):
            slopes = cosines @ y - (w @ gramian_of(rows) @ w) / norms
            assert slopes.min() >= -1e-10 * y.max(), seed


@pytest.mark.parametrize("tasks", [1, 2, 3, 4])
def test_the_shortest_mix_is_the_best_over_all_sets_of_tasks(tasks):
    for seed in range(30):
        rows = torch.from_numpy(np.random.default_rng(seed).standard_normal((tasks, 4)))
        rows -= 0.5 * rows.mean(0)
        G = gramian_of(rows)
        best = np.inf
        for size in range(1, tasks + 1):
            for chosen in itertools.combinations(range(tasks), size):
                part = torch.linalg.solve(G[chosen, :][:, chosen], torch.ones(size).double())
                if (part > 0).all():
                    best = min(best, 1 / part.sum().item())
        w = simplex_minimum(G)
        assert (w @ G @ w).item() == pytest.approx(best, rel=1e-10)


def kkt_violation(gramian, V, U):
    """How far V [R, T] is from minimal above U, in units of the norms; 0 is exact.

    With x = v - u the conditions are x >= 0, G v >= 0 and x * (G v) = 0.
    """
    cosines, y, norms = in_units(gramian, V)
    if not len(norms):
        return 0.0
    bounds = in_units(gramian, U)[1]
    x, slopes = y - bounds, y @ cosines
    size = torch.maximum(y.abs(), bounds.abs()).amax(1, keepdim=True).clamp(min=1e-100)
    worst = torch.stack([-x / size, -slopes / size, (x * slopes).abs() / size**2])
    return worst.max().item()


@pytest.mark.parametrize("name", BACKENDS)
def test_projections_onto_the_cone_meet_their_conditions(name):
    for seed in range(300):
        rows = families(seed)
        tasks, draw = len(rows), torch.Generator().manual_seed(seed)
        random = torch.randn(2, tasks, generator=draw, dtype=torch.float64)
        eye = torch.eye(tasks, dtype=torch.float64)
        U = torch.cat([eye, torch.full((1, tasks), 1 / tasks).double(), random])
        with use_backend(name):
            V = cone_minimum(gramian_of(rows), U)
        assert kkt_violation(gramian_of(rows), V, U) <= 1e-10, seed


@pytest.mark.parametrize("tasks", [1, 2, 7, 16])
@pytest.mark.parametrize("spread", [1, 3, 30])
@pytest.mark.parametrize("seed", range(3))
def test_coefficients_equal_those_of_scipy_on_the_gradients_themselves(tasks, spread, seed):
    draw = np.random.default_rng(seed)
    rows = draw.standard_normal((tasks, 40))
    rows = (rows - 0.9 * rows.mean(0)) * spread ** draw.random((tasks, 1))
    eye = torch.eye(tasks, dtype=torch.float64)
    found = cone_minimum(torch.from_numpy(rows @ rows.T), eye).numpy()
    for task in range(tasks):
        x, _ = scipy.optimize.nnls(rows.T, -rows[task])
        expected = x + np.eye(tasks)[task]
        assert np.linalg.norm(found[task] - expected) <= 1e-9 * np.linalg.norm(expected)


@pytest.mark.parametrize("tasks", [2, 7, 16])
def test_projections_equal_quadprog(tasks):
    quadprog = pytest.importorskip("quadprog")
    rows = families(11 * tasks, (tasks,))
    rows = torch.cat([rows, 0.3 * torch.eye(tasks, dtype=torch.float64)], dim=1)  # full rank
    G, u = gramian_of(rows), np.full(tasks, 1 / tasks)
    expected = quadprog.solve_qp(G.numpy(), np.zeros(tasks), np.eye(tasks), u)[0]
    found = cone_minimum(G, torch.from_numpy(u)[None])[0].numpy()
    assert np.linalg.norm(found - expected) <= 1e-9 * np.linalg.norm(expected)


def cagrad_objective(G, c, w):
    mean = G.mean(0)
    return w @ mean + c * (mean.mean() * (w @ G @ w)).clamp(min=0).sqrt()


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("c", [0.05, 0.4, 0.9, 3.0])
def test_the_objective_of_cagrad_is_below_that_of_scipy(name, c):
    for seed in range(0, 66, 1 if name == "cpp" else 3):
        rows = families(seed, (2, 3, 5, 8))
        if rows.norm() > 0:
            rows = rows / rows.norm(dim=1).max()
        G = gramian_of(rows)
        there = G.diagonal() > 0

        def value(w, G=G):
            return cagrad_objective(G, c, torch.from_numpy(w)).item()

        with use_backend(name):
            found = value(cagrad_minimum(G, c)[0].numpy())
        if not there.any():
            continue
        start = (there / there.sum()).numpy()
        other = scipy.optimize.minimize(
            value,
            start,
            method="SLSQP",
            bounds=[(0, 1 if one else 0) for one in there],
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            options={"maxiter": 500, "ftol": 1e-14},
        )
        reached = np.clip(other.x, 0, 1) / np.clip(other.x, 0, 1).sum()
        # G gives |J'w| to 1e-8 only: w'Gw is rounded.
        assert found <= value(reached) + 1e-9 + 1e-8 * c * rows.mean(0).norm(), seed


@pytest.mark.parametrize("c", [0.05, 0.4, 0.9])
def test_shares_of_cagrad_meet_the_conditions_of_its_minimum(c):
    """All slopes equal where w > 0 and no smaller elsewhere; where J'w is not 0."""
    met = 0
    for seed in range(300):
        rows = families(seed)
        G = gramian_of(rows)
        w, _ = cagrad_minimum(G, c)
        cosines, y, norms = in_units(G, w)
        if not len(norms) or (length := (y @ cosines @ y).sqrt()) < 1e-4 * y.max():
            continue  # J'w cancels: what is left changes with the floor of the eigenvalues
        mean, unit = G.mean(0), G.mean().clamp(min=0).sqrt()
        if unit < 1e-6 * norms.mean():
            continue
        slopes = mean + c * unit * (G @ w) / length
        level = cagrad_objective(G, c, w)
        # A slope is a sum of |g_i| |g_j| terms, of which rounding leaves a share.
        allowed = 1e-9 * norms * (norms.mean() + unit * y.max() / length)
        inside = (slopes - level)[G.diagonal() > 0]
        heard = norms > 1e-10 * norms.max()
        assert (inside >= -allowed)[heard].all(), seed
        assert ((w[G.diagonal() > 0] * inside).abs() <= allowed).all(), seed
        met += 1
    assert met > 150


@pytest.mark.parametrize("name", BACKENDS)
def test_lengths_of_cagrad_are_those_of_the_gradients_themselves(name):
    counts = {True: 0, False: 0}  # by whether J'w is told to be 0
    for seed in range(300):
        rows = families(seed)
        with use_backend(name):
            w, (mixed, mean) = cagrad_minimum(gramian_of(rows), 0.4)
        norms = rows.norm(dim=1)
        # G gives a length to 1e-8 of the norms that it is made of.
        assert abs(mean - rows.mean(0).norm()) <= 1e-7 * norms.mean(), seed
        assert abs(mixed - (rows.T @ w).norm()) <= 1e-7 * (w @ norms), seed
        counts[mixed.item() == 0] += 1
    assert min(counts.values()) > 5, counts


@pytest.mark.parametrize("name", BACKENDS)
def test_lengths_of_cagrad_come_by_problem(name):
    rows = torch.stack([families(seed, (5,))[:, :2] for seed in range(6)]).view(2, 3, 5, 2)
    with use_backend(name):
        w, lengths = cagrad_minimum(gramian_of(rows), 0.4)
        single = cagrad_minimum(gramian_of(rows[1, 2]), 0.4)
    assert w.shape == (2, 3, 5)
    assert lengths.shape == (2, 3, 2)
    torch.testing.assert_close(w[1, 2], single[0])
    torch.testing.assert_close(lengths[1, 2], single[1])


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("exponent", [0.25, 0.5, 1.0, 2.0])
def test_balanced_weights_meet_their_equation(name, exponent):
    """To 1e-10 of its two sides where nothing cancels, and of the terms they are made of."""
    strict = 0
    for seed in range(300 if name == "cpp" else 100):
        G = gramian_of(families(seed))
        with use_backend(name):
            a = balance(G, exponent)
        there = G.diagonal() > 0
        assert (a[there] > 0).all()
        assert (a[~there] == 0).all()
        cosines, _, norms = in_units(G, a)
        G, a = G[there][:, there], a[there]
        if not len(a) or torch.linalg.eigvalsh(cosines)[0] < 1e-3:
            continue
        found, expected = G @ a, a**-exponent
        assert ((found - expected).abs() <= 1e-10 * (G.abs() @ a + expected)).all(), seed
        if norms.max() / norms.min() < 1e4:
            assert (found / expected - 1).abs().max() < 1e-10, seed
            strict += 1
    assert strict > 15


def test_gradients_that_cancel_have_bounded_balanced_weights():
    rows = torch.tensor([[1.0, 2.0], [-3.0, -6.0]], dtype=torch.float64)
    a = balance(gramian_of(rows), 1.0)
    assert 1e4 < (a * rows.norm(dim=1)).max() < 2e5
    assert (rows.T @ a).norm() <= 1e-9


@pytest.mark.parametrize("name", BACKENDS)
def test_equal_projections_are_those_of_the_pseudo_inverse_of_the_unit_gradients(name):
    compared = {True: 0, False: 0}  # by whether the gradients are independent
    for seed in range(300):
        rows = families(seed)
        with use_backend(name):
            a = equal_projections(gramian_of(rows))
        norms = rows.norm(dim=1)
        there = norms > 0
        assert (a[~there] == 0).all()
        if not there.any():
            continue
        units = rows[there] / norms[there, None]
        singular = torch.linalg.svdvals(units)
        if ((singular > 1e-9 * singular[0]) & (singular < 1e-3 * singular[0])).any():
            continue  # near the limit, or the Gramian's rounding is felt
        expected = torch.linalg.pinv(units, rtol=1e-6) @ torch.ones(len(units)).double()
        if expected.norm() < 1e-6:  # opposed gradients: nothing is nearer to 1 than 0 is
            assert (a == 0).all(), seed
        else:
            assert (rows.T @ a - expected).norm() <= 1e-9 * expected.norm(), seed
        compared[torch.linalg.matrix_rank(units, rtol=1e-6).item() == len(units)] += 1
    assert min(compared.values()) > 80, compared


def explicit_pcgrad(rows, order):
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


def explicit_gradvac(rows, targets, order, beta):
    """The paper's loop, on explicit gradients: the update [P] and the targets."""
    targets = targets.clone()
    total = torch.zeros(rows.shape[1], dtype=torch.float64)
    for task, others in enumerate(order):
        gradient = rows[task].clone()
        for other in others.tolist():
            target = targets[task, other].clone()
            cosine = torch.cosine_similarity(gradient, rows[other], dim=0, eps=0)
            if cosine < target:
                sines = (1 - cosine**2).sqrt(), (1 - target**2).sqrt()
                factor = gradient.norm() * (target * sines[0] - cosine * sines[1])
                gradient = gradient + factor / (rows[other].norm() * sines[1]) * rows[other]
            targets[task, other] = (1 - beta) * target + beta * cosine
        total += gradient
    return total, targets


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("tasks", [2, 3, 8, 16])
@pytest.mark.parametrize("seed", range(3))
def test_surgery_on_coefficients_equals_surgery_on_gradients(name, tasks, seed):
    rows = torch.from_numpy(np.random.default_rng(seed).standard_normal((tasks, 40)))
    rows -= 0.9 * rows.mean(0)
    order, targets = order_of(tasks, seed), 0.5 * torch.rand(tasks, tasks).double()
    with use_backend(name):
        weights = pcgrad(gramian_of(rows), keys_of(order))
        vaccinated, new = gradvac(gramian_of(rows), targets, keys_of(order), 0.1)
    update = explicit_pcgrad(rows, order)
    assert (rows.T @ weights - update).norm() <= 1e-10 * update.norm()
    update, expected = explicit_gradvac(rows, targets, order, 0.1)
    assert (rows.T @ vaccinated - update).norm() <= 1e-9 * update.norm()
    torch.testing.assert_close(new, expected, rtol=1e-9, atol=1e-12)


def test_targets_of_0_make_gradvac_pcgrad():
    G = gramian_of(families(0, (8,)))
    keys = keys_of(order_of(8))
    weights, _ = gradvac(G, torch.zeros_like(G), keys, 0.0)
    torch.testing.assert_close(weights, pcgrad(G, keys), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", BACKENDS)
def test_of_equal_keys_the_first_task_is_met_first(name):
    G = gramian_of(families(0, (6,)))
    ties = torch.tensor([2.0, 1.0, 2.0, -0.0, 0.0]).double().expand(6, 5)
    order = torch.tensor([[j + (j >= i) for j in (3, 4, 1, 0, 2)] for i in range(6)])
    with use_backend(name):
        weights, new = gradvac(G, 0.3 * torch.ones_like(G), ties, 0.5)
        expected, targets = gradvac(G, 0.3 * torch.ones_like(G), keys_of(order), 0.5)
        assert torch.equal(pcgrad(G, ties), pcgrad(G, keys_of(order)))
        assert not torch.equal(pcgrad(G, ties), pcgrad(G, keys_of(order_of(6))))
    assert torch.equal(weights, expected)
    assert torch.equal(new, targets)


# -- both backends -------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("seed", range(8))
def test_the_compiled_solver_matches_the_reference(op, seed):
    """Where the solution is unique: independent gradients."""
    rows = families(11 * seed, (2, 5, 16))
    rows = torch.cat([rows, 0.3 * torch.eye(len(rows), dtype=torch.float64)], dim=1)
    found = call(op, gramian_of(rows), seed)
    with use_backend("reference"):
        expected = call(op, gramian_of(rows), seed)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10 * expected.abs().max().item())


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", BACKENDS)
def test_problems_side_by_side_are_solved_each_by_itself(op, name):
    G = torch.stack([gramian_of(families(seed, (5,))) for seed in range(22)])  # all kinds, twice
    with use_backend(name):
        together = call(op, G.view(2, 11, 5, 5))
        alone = torch.stack([call(op, one) for one in G])
        again = call(op, G.transpose(-1, -2).contiguous().view(2, 11, 5, 5))
    assert together.shape[:2] == (2, 11)
    assert torch.equal(together, again)  # the same bits in every run
    if name == "cpp":
        assert torch.equal(together.reshape(alone.shape), alone)
    else:  # a BLAS may sum a batch in another order; degenerate problems have many solutions
        torch.testing.assert_close(together.reshape(alone.shape)[0], alone[0])


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("tasks", [0, 1, 64])
def test_no_task_one_task_and_many(op, name, tasks):
    if tasks == 64 and name == "reference":
        tasks = 20
    rows = torch.from_numpy(np.random.default_rng(0).standard_normal((tasks, 80)))
    with use_backend(name):
        found = call(op, gramian_of(rows))
    assert torch.isfinite(found).all()
    if tasks == 1:
        exponent = {"balance": -1 / 1.5, "equal_projections": -1 / 2}.get(op, 0)
        expected = gramian_of(rows)[0, 0] ** exponent
        assert found.flatten()[0].item() == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_no_scale_is_too_small_or_large(op, scale):
    G = gramian_of(families(0, (8,)))
    found, expected = call(op, G * scale), call(op, G)
    # a^-exponent = G a; <J'a, g_i> = |g_i|
    found = found * scale ** {"balance": 1 / 1.5, "equal_projections": 1 / 2}.get(op, 0)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_threads_change_no_bit():
    rows = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 32, 40)))
    G = gramian_of(rows - 0.9 * rows.mean(1, keepdim=True))
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 4):
            torch.set_num_threads(count)
            with use_backend("cpp"):
                found.append(call("cone_minimum", G))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)
    with use_backend("reference"):
        torch.testing.assert_close(found[0], call("cone_minimum", G), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", BACKENDS)
def test_a_gradient_of_0_changes_nothing_for_the_others(op, name):
    rows = torch.from_numpy(np.random.default_rng(1).standard_normal((4, 9)))
    rows -= 0.9 * rows.mean(0)
    padded = torch.cat([rows[:2], torch.zeros(1, 9).double(), rows[2:]])
    keep = [0, 1, 3, 4]
    order = order_of(5)
    without = torch.tensor([[keep.index(j) for j in order[i] if j != 2] for i in keep])
    with use_backend(name):
        if op in ("pcgrad", "gradvac"):
            targets = 0.2 * torch.ones(5, 5).double()
            more, fewer = [keys_of(order)], [keys_of(without)]
            if op == "gradvac":
                more, fewer = [targets, *more, 0.5], [targets[:4, :4], *fewer, 0.5]
            function = {"pcgrad": pcgrad, "gradvac": gradvac}[op]
            found = function(gramian_of(padded), *more)
            expected = function(gramian_of(rows), *fewer)
            if op == "gradvac":
                (found, new), (expected, _) = found, expected
                assert (new[2, [0, 1, 3, 4]] == 0.2).all()
                assert (new[[0, 1, 3, 4], 2] == 0.2).all()
            assert found[2] == 1
        else:
            found, expected = call(op, gramian_of(padded)), call(op, gramian_of(rows))
            if op == "cone_minimum":
                assert found[2].tolist() == [0, 0, 1, 0, 0]
                found = found[keep]
            assert (found[..., 2] == 0).all()
    torch.testing.assert_close(found[..., keep], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", BACKENDS)
def test_only_zero_gradients_have_a_defined_result(op, name):
    with use_backend(name):
        found = call(op, torch.zeros(4, 4).double())
    uniform = torch.full((4,), 0.25).double()
    expected = {
        "simplex_minimum": uniform,
        "cagrad_minimum": uniform,
        "cone_minimum": torch.eye(4).double(),
        "balance": torch.zeros(4).double(),
        "equal_projections": torch.zeros(4).double(),
        "pcgrad": torch.ones(4).double(),
        "gradvac": torch.cat([torch.ones(1, 4), torch.full((4, 4), 0.3)]).double(),
    }[op]
    assert torch.allclose(found, expected, rtol=0, atol=1e-7)


def test_a_gradient_that_became_0_has_no_cosine():
    rows = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    keys = torch.tensor([[1, 2], [0, 2], [0, 1]]).double()
    weights, new = gradvac(gramian_of(rows), torch.zeros(3, 3).double(), keys, 0.5)
    assert weights.tolist() == [1 + 2, 1 + 0.5, 1]
    assert new.tolist() == [[0, -0.5, 0], [-0.5, 0, 0], [0, 0, 0]]


def test_an_update_without_conflict_is_not_touched():
    U = torch.rand(3, 5, dtype=torch.float64)
    rows = torch.rand(5, 7, dtype=torch.float64)
    assert torch.equal(cone_minimum(gramian_of(rows), U), U)


# -- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
def test_a_gramian_that_is_not_finite_is_refused(op, name, bad):
    G = torch.eye(3, dtype=torch.float64)
    G[1, 2] = float(bad)
    with use_backend(name), pytest.raises(ValueError, match=f"G must be finite, found {bad}"):
        call(op, G)


@pytest.mark.parametrize(
    ("argument", "error", "message"),
    [
        ([[1.0]], TypeError, "G must be a torch.Tensor, found list"),
        (torch.eye(2), TypeError, "G must be float64, found float32"),
        (torch.ones(2, 3).double(), ValueError, r"G must be square .* found \[2, 3\]"),
        (torch.ones(2).double(), ValueError, r"G must have 2 dimensions, found shape \[2\]"),
        (torch.eye(2).double().requires_grad_(), ValueError, "G must not require grad"),
        (torch.eye(2).double().to("meta"), ValueError, "G must be on cpu, found meta"),
    ],
)
def test_what_is_no_gramian_is_refused(argument, error, message):
    with pytest.raises(error, match=message):
        simplex_minimum(argument)


@pytest.mark.parametrize("name", BACKENDS)
def test_other_wrong_arguments_are_refused(name):
    G = torch.eye(3, dtype=torch.float64)
    keys = keys_of(order_of(3))
    wrong = {
        r"U must have shape \[..., R, T\] = \[3, 3\]": lambda: cone_minimum(G, G[:, :2]),
        "U must be finite": lambda: cone_minimum(G, G / 0),
        "c must be finite and greater than 0, found 0": lambda: cagrad_minimum(G, 0),
        "exponent must be finite .* found -1": lambda: balance(G, -1.0),
        "exponent must be finite .* found nan": lambda: balance(G, float("nan")),
        r"keys must have shape \[T, T-1\] = \[3, 2\]": lambda: pcgrad(G, keys[:2]),
        "keys must be finite, found nan": lambda: pcgrad(G, keys * float("nan")),
        r"beta must be in \[0, 1\], found 2": lambda: gradvac(G, G, keys, 2),
        r"targets must be cosines in \[-1, 1\]": lambda: gradvac(G, 2 * G, keys, 0.5),
        "targets must be cosines": lambda: gradvac(G, G / 0, keys, 0.5),
        r"targets must have shape": lambda: gradvac(G, G[:2], keys, 0.5),
    }  # fmt: skip
    for message, function in wrong.items():
        with use_backend(name), pytest.raises(ValueError, match=message):
            function()
    with pytest.raises(TypeError, match="keys must be float64"):
        pcgrad(G, keys.float())


@pytest.mark.parametrize("op", SOLVERS)
def test_what_is_no_solution_is_told(monkeypatch, op):
    def far(*arguments):
        *_, out, gaps = arguments
        out.zero_()
        gaps.copy_(torch.tensor([0.0, 0.25]))

    monkeypatch.setitem(backend._kernels, op, {"cpp": far})
    told = rf"op {op}: no solution for 3 tasks \(problem 1 of 2\): its gap is 0.25, at most 1e-09"
    with pytest.raises(SolverError, match=told) as caught:
        call(op, torch.eye(3, dtype=torch.float64).expand(2, 3, 3))
    assert isinstance(caught.value, ArithmeticError)


def test_a_gramian_of_no_gradients_is_solved_as_the_nearest_that_is_one():
    """Rounding leaves eigenvalues below 0; here one of -2 is there on purpose."""
    G = torch.tensor([[1.0, -3.0], [-3.0, 1.0]], dtype=torch.float64)
    assert simplex_minimum(G).tolist() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("name", BACKENDS)
def test_a_gramian_of_no_gradients_has_no_equal_projections(name):
    G = torch.tensor([[1.0, -3.0], [-3.0, 1.0]], dtype=torch.float64)
    told = r"op equal_projections: no solution for 2 tasks: its gap is 2, .*\n  fix: G must be"
    with use_backend(name), pytest.raises(SolverError, match=told):
        equal_projections(G)


@pytest.mark.parametrize("asked", ["cuda", "triton"])
def test_a_kernel_of_a_gpu_is_not_asked_of_what_runs_on_the_cpu_alone(asked):
    with use_backend(asked):
        assert active_backend("pcgrad", "cpu") == "cpp"


@pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")  # numpy tells of it too
@pytest.mark.parametrize("name", ["cpp", "reference"])
def test_a_solution_that_is_no_number_is_an_error(name):
    """Powers that overflow: the gap is no number then, and no number is not small."""
    J = torch.randn(4, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with use_backend(name), pytest.raises(SolverError, match="op balance: no solution"):
        balance(J @ J.T, 1e4)
