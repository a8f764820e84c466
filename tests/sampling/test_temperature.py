"""Temperature-scaled mixing."""

import pytest

from mtlcore.testing import stand_in_run
from mtlcore_plugins.sampling.proportional import Proportional
from mtlcore_plugins.sampling.temperature import Temperature

RUN = stand_in_run({"a": 100, "b": 2500, "c": 1})


def test_shares_are_powers_of_the_sizes():
    assert Temperature(temperature=2.0).shares(RUN, 0) == pytest.approx([10 / 61, 50 / 61, 1 / 61])


def test_one_is_proportional_and_a_high_temperature_is_even():
    assert Temperature(temperature=1.0).shares(RUN, 0) == pytest.approx(
        Proportional().shares(RUN, 0)
    )
    assert Temperature(temperature=1e9).shares(RUN, 0) == pytest.approx([1 / 3] * 3, rel=1e-6)


def test_a_low_temperature_does_not_overflow():
    assert Temperature(temperature=1e-3).shares(RUN, 0) == [0.0, 1.0, 0.0]


def test_the_cap_comes_before_the_temperature():
    shares = Temperature(temperature=2.0, cap=100).shares(RUN, 0)
    assert shares == pytest.approx([10 / 21, 10 / 21, 1 / 21])
