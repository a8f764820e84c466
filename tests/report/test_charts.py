"""Charts and colours: nothing overlaps or leaves its frame, and everything can be read."""

from __future__ import annotations

import itertools
import math
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mtlcore.report import charts, palette
from mtlcore.report.charts import Spot
from mtlcore.report.svg import ticks
from mtlcore.report.text import clean, clip, duration, fit, fixed, number, percent, span, width_of

FLOATS = st.floats(allow_nan=True, allow_infinity=True)


# -- numbers and texts -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "\N{EN DASH}"),
        (True, "yes"),
        (1234567, "1,234,567"),
        (0.0, "0"),
        (0.0099999999, "0.010"),
        (0.1234, "0.123"),
        (12.345, "12.35"),
        (123.45, "123.5"),
        (1234.5, "1,234"),
        (4.56e-6, "4.6e-06"),
        (-0.5, "\N{MINUS SIGN}0.500"),
        (math.nan, "NaN"),
        (-math.inf, "\N{MINUS SIGN}\N{INFINITY}"),
    ],
)
def test_numbers_have_about_three_digits(value: object, shown: str) -> None:
    assert number(value) == shown


def test_signs_units_and_intervals_are_written_alike() -> None:
    assert number(0.5, signed=True) == "+0.500"
    assert percent(-3.14159, signed=True) == "\N{MINUS SIGN}3.1%"
    assert span(-0.077, 0.004) == "\N{MINUS SIGN}0.077 to 0.004"
    assert span(None, 0.004) == ""
    assert fixed(-0.001, 2) == "0.00"
    assert [duration(s) for s in (3.21, 24.0, 245, 11_520)] == [
        "3.21 s",
        "24 s",
        "4 min 05 s",
        "3 h 12 min",
    ]


@given(st.text())
def test_clean_text_can_be_written_and_stays_clean(text: str) -> None:
    found = clean(text + "\x00\ud800\x1b")
    found.encode("utf-8")
    assert clean(found) == found
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", found)


def test_long_text_is_cut_with_the_number_of_signs_left_out() -> None:
    assert clip("a" * 30, 10) == "a" * 10 + " … (20 more characters)"


@given(st.text(min_size=1), st.floats(30, 200))
def test_a_fitted_name_is_no_wider_than_asked_for(text: str, width: float) -> None:
    found = fit(text, width)
    assert width_of(found) <= max(width, 4 * 12 + 7) + 24


# -- axes ------------------------------------------------------------------------------------------


@given(
    st.floats(-1e12, 1e12).filter(lambda x: x == 0 or abs(x) > 1e-12),
    st.floats(1e-9, 1e12),
    st.booleans(),
)
def test_ticks_are_round_few_and_within_the_axis(low: float, width: float, whole: bool) -> None:
    high = low + width
    if high - low < 1e-9 * max(abs(low), abs(high)) or (whole and width < 1):
        return
    found = ticks(low, high, 5, whole=whole)
    slack = 1e-6 * width
    assert all(low - slack <= tick <= high + slack for tick in found)
    assert len(found) <= 7
    if whole:
        assert all(tick.is_integer() for tick in found)


@settings(max_examples=50)
@given(
    st.lists(st.floats(0, 200), min_size=1, max_size=12),
)
def test_names_at_the_ends_of_lines_do_not_overlap(heights: list[float]) -> None:
    found = charts._apart(sorted(heights), 14.0, 0.0, 200.0)
    assert all(b - a >= 14 - 1e-6 for a, b in itertools.pairwise(found))
    assert max(found) <= 200 + 1e-6
    assert min(found) >= -1e-6 or 14 * (len(found) - 1) > 200


def test_thinned_points_keep_the_mean() -> None:
    points = [(float(i), float(i % 7)) for i in range(1000)]
    found, size = charts.thinned(points, 100)
    assert (len(found), size) == (100, 10)
    assert sum(y for _, y in found) / 100 == pytest.approx(sum(y for _, y in points) / 1000)
    assert charts.thinned(points[:100], 100) == (points[:100], 1)
    assert charts.thinned([], 100) == ([], 1)


# -- charts ----------------------------------------------------------------------------------------


def coordinates(svg: str) -> list[float]:
    drawn = re.sub(r"<(title|desc)>.*?</\1>|<text.*?</text>|aria-label=\"[^\"]*\"", "", svg)
    return [float(x) for x in re.findall(r"(?<=[\" ML])-?\d+\.?\d*(?=[\" L])", drawn)]


@settings(max_examples=60)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=30),
        st.lists(st.tuples(FLOATS, FLOATS), max_size=12),
        max_size=9,
    ),
    st.booleans(),
)
def test_lines_and_points_of_any_values_stay_in_their_frame(
    series: dict[str, list[tuple[float, float]]], joined: bool
) -> None:
    svg = charts.lines("t", series, joined=joined, marks={"stage": 1.0})
    assert all(-5 <= x <= 500 for x in coordinates(svg))
    assert not re.search(r'="[^"]*(nan|inf)[^"]*"', re.sub(r"aria-label=\"[^\"]*\"", "", svg))


@settings(max_examples=60)
@example(values=[5e-324], signed=False)
@given(st.lists(st.one_of(st.none(), FLOATS), max_size=8), st.booleans())
def test_bars_and_intervals_of_any_values_stay_in_their_frame(
    values: list[float | None], signed: bool
) -> None:
    labels = [f"task {i}" for i in range(len(values))]
    svg = charts.bars("t", labels, {"a": values, "b": values[:-1]}, signed=signed)
    assert all(-5 <= x <= 500 for x in coordinates(svg))
    spots = [Spot(value, value, value) for value in values]
    svg = charts.intervals("t", labels, {"a": spots, "b": spots[:1]})
    assert all(-5 <= x <= 500 for x in coordinates(svg))


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.one_of(st.none(), FLOATS), max_size=13), max_size=13),
    st.integers(0, 13),
)
def test_heatmaps_of_any_shape_are_drawn(values: list[list[float | None]], names: int) -> None:
    labels = [f"a task with a long name {i}" for i in range(names)]
    svg = charts.heatmap("t", labels, labels, values)
    assert svg.startswith("<svg")
    assert svg.endswith("</svg>")


def test_a_gap_in_a_line_is_not_joined() -> None:
    points = [(x, math.nan if x == 5 else 1.0 + x) for x in range(10)]
    assert charts.lines("t", {"a": points}).count('class="curve s0 dash0"') == 2 + 1  # and its name


def test_a_chart_without_finite_values_says_so() -> None:
    for svg in (
        charts.lines("t", {"a": [(1, math.nan)]}),
        charts.bars("t", ["a"], {"x": [None]}),
        charts.intervals("t", ["a"], {"x": [Spot(math.inf)]}),
        charts.heatmap("t", ["a"], ["a"], [[None]]),
    ):
        assert "no finite values to draw" in svg


def test_small_cells_share_a_power_of_ten() -> None:
    svg = charts.heatmap("t", ["a"], ["b", "c"], [[0.00123, -0.002]])
    assert "10⁻³" in svg
    assert ">1.23<" in svg
    assert ">\N{MINUS SIGN}2.00<" in svg


def test_positive_values_are_blue_negative_ones_orange_and_bad_shares_orange() -> None:
    assert palette.step_class(1.0, 1.0) == "p10"
    assert palette.step_class(-0.5, 1.0) == "n5"
    assert palette.step_class(0.001, 1.0) == "z"
    assert palette.step_class(7.0, 0.0) == "z"
    assert "cell n10" in charts.heatmap("t", ["a"], ["b"], [[1.0]], worse=True)


# -- colours ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("colours", [palette.LIGHT, palette.DARK], ids=["light", "dark"])
def test_text_stands_out_from_every_ground_it_is_on(colours: dict[str, str]) -> None:
    for ground in ("ground", "card", "soft"):
        for text in ("ink", "muted", "accent"):
            assert palette.contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for tone in ("good", "bad", "warn"):
        assert palette.contrast(colours[tone], colours["card"]) >= 4.5
        assert palette.contrast(colours[tone], colours[f"{tone}-soft"]) >= 4.5
        assert palette.contrast(colours["ink"], colours[f"{tone}-soft"]) >= 4.5


@pytest.mark.parametrize("dark", [False, True])
def test_text_on_every_step_of_the_scale_can_be_read(dark: bool) -> None:
    for colour in palette.scale(dark).values():
        assert palette.contrast(palette.text_on(colour), colour) >= 4.5


def test_lines_stand_out_from_the_card() -> None:
    for colours, card in (
        (palette.SERIES_LIGHT, palette.LIGHT["card"]),
        (palette.SERIES_DARK, palette.DARK["card"]),
    ):
        assert len(set(colours)) == 8
        assert all(palette.contrast(colour, card) >= 3 for colour in colours)


def test_every_colour_that_the_page_uses_is_defined_in_both_schemes() -> None:
    css = palette.css()
    sheet = (charts.__file__.rpartition("charts")[0]) + "templates/page.css"
    with open(sheet, encoding="utf-8") as file:
        used = set(re.findall(r"var\(--([\w-]+)\)", css + file.read()))
    light, dark = css.split("@media", 1)
    for part in (light, dark):
        assert used - set(re.findall(r"--([\w-]+):", part)) <= {"c"}
