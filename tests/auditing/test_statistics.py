"""Intervals and tests of auditors, against scipy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from mtlcore_plugins.auditing._statistics import p_value, paired_means, rate_interval, spreads


@pytest.mark.parametrize(("count", "n"), [(0, 1), (0, 20), (3, 17), (20, 20), (500, 1000)])
def test_the_interval_of_a_rate_is_wilsons(count: int, n: int) -> None:
    expected = stats.binomtest(count, n).proportion_ci(method="wilson")
    assert rate_interval(count, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e10])
def test_p_values_of_sign_flips_are_those_of_all_flips(scale: float) -> None:
    draw = np.random.default_rng(0)
    values = (draw.normal(0.4, 1.0, 13)) * scale
    zeros = np.zeros_like(values)
    exact = stats.permutation_test(
        (values, zeros), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=1e9
    ).pvalue
    [mean], p = paired_means(torch.tensor(values)[:, None], 20_000, "test")
    assert mean.value == pytest.approx(values.mean())
    assert mean.p == p
    # A share of 20,000 draws has a standard error of 0.0035 at most.
    assert mean.p == pytest.approx(exact, abs=0.012)


def test_the_interval_of_a_mean_is_about_that_of_the_normal_law() -> None:
    values = torch.randn(400, 1, generator=torch.Generator().manual_seed(1)).double()
    [mean], _ = paired_means(values, 4000, "test")
    half = 1.96 * float(values.std()) / 20
    assert mean.low == pytest.approx(mean.value - half, abs=0.1 * half)
    assert mean.high == pytest.approx(mean.value + half, abs=0.1 * half)


def test_the_p_value_of_many_columns_counts_the_farthest_of_all() -> None:
    values = torch.randn(30, 12, generator=torch.Generator().manual_seed(2)).double()
    means, p = paired_means(values, 2000, "test")
    assert p >= min(mean.p for mean in means)
    same, together = paired_means(values[:, :1].expand(-1, 3), 2000, "test")
    assert together == same[0].p


def test_no_difference_has_a_p_value_of_one() -> None:
    [mean], p = paired_means(torch.zeros(10, 1), 100, "test")
    assert (mean.value, mean.low, mean.high, mean.p, p) == (0.0, 0.0, 0.0, 1.0, 1.0)


def test_groups_by_lot_differ_as_much_as_by_scipy() -> None:
    draw = np.random.default_rng(1)
    values = np.concatenate([draw.normal(0.0, 1.0, 15), draw.normal(0.5, 1.0, 25)])
    exact = stats.permutation_test(
        (values[:15], values[15:]),
        lambda x, y: abs(np.mean(x) - np.mean(y)),
        permutation_type="independent",
        alternative="greater",
        n_resamples=20_000,
        rng=np.random.default_rng(2),
    ).pvalue
    groups = torch.tensor([0] * 15 + [1] * 25)
    found = p_value(*spreads(torch.tensor(values), groups, 20_000, "test"))
    assert found == pytest.approx(exact, abs=0.015)


def test_groups_that_are_alike_have_a_p_value_of_one() -> None:
    alike = spreads(torch.ones(10), torch.arange(10) % 3, 100, "test")
    assert p_value(*alike) == 1.0
