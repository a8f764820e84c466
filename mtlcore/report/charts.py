"""The charts of the page: lines, points, bars, heatmaps and intervals, as inline SVG.

Values that are None, NaN or infinite are left out: a line has a gap there. Every chart has a title
and a description for those who cannot see it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from markupsafe import Markup

from mtlcore.report.palette import SERIES_LIGHT, STEPS, step_class
from mtlcore.report.svg import Svg, ticks
from mtlcore.report.text import fit, fixed, number, percent, width_of

WIDTH = 460.0
MOST_POINTS = 240
"""Longer series are drawn as means of so many buckets."""
MOST_CELLS_WITH_TEXT = 200
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

Point = tuple[float, float]


@dataclass(frozen=True)
class Spot:
    """A value with its interval, as a dot with whiskers; `others` are small dots beside it."""

    value: float | None
    low: float | None = None
    high: float | None = None
    others: Sequence[float] = ()


def finite(value: Any) -> float | None:
    """The value as a float, or None for anything that cannot be drawn."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    # Beyond 1e300 the difference of two values is no float any more, below 1e-300 its parts.
    if abs(found) < 1e-300:
        return 0.0
    return found if math.isfinite(found) and abs(found) < 1e300 else None


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> tuple[list[Point], int]:
    """Means over buckets of so many points each, and that number; 1 if nothing was done."""
    size = -(-len(points) // most) if points else 1
    if size == 1:
        return list(points), 1
    chunks = [points[i : i + size] for i in range(0, len(points), size)]
    means = [(sum(x for x, _ in c) / len(c), sum(y for _, y in c) / len(c)) for c in chunks]
    return means, size


# -- lines and points ------------------------------------------------------------------------------


def lines(
    title: str,
    series: Mapping[str, Sequence[tuple[Any, Any]]],
    *,
    x_label: str = "",
    y_label: str = "",
    marks: Mapping[str, float] | None = None,
    strong: str | None = None,
    colours: Mapping[str, int] | None = None,
    joined: bool = True,
) -> Markup:
    """Curves (or, not `joined`, clouds of points), each with its name at its end.

    `marks` are vertical lines by name, `strong` names a series to be drawn in black, `colours`
    gives series their number, so that a task has the same colour in all charts.
    """
    drawn = {name: _drawable(points) for name, points in series.items()}
    shown = {name: points for name, points in drawn.items() if any(points)}
    if not shown:
        return nothing(title)
    known = [point for points in shown.values() for point in points if point is not None]
    x_low, x_high = _range([x for x, _ in known], 0.0)
    y_low, y_high = _range([y for _, y in known], 0.06)
    names_width = min(128.0, max(width_of(name, 11) for name in shown) + 22)
    height = max(270.0, 20.0 * len(shown) + 70)
    left, right, top, bottom = 52.0, WIDTH - names_width - 8, 18.0, height - 42
    svg = Svg(WIDTH, height, title, _describe(shown, x_label, y_label))

    def place(point: Point) -> Point:
        return (
            left + (point[0] - x_low) / (x_high - x_low) * (right - left),
            bottom - (point[1] - y_low) / (y_high - y_low) * (bottom - top),
        )

    _y_axis(svg, ticks(y_low, y_high), lambda y: place((x_low, y))[1], left, right)
    whole = all(float(x).is_integer() for x, _ in known)
    for x, label in _ticks(ticks(x_low, x_high, 6, whole=whole)):
        at = place((x, y_low))[0]
        svg.line(at, bottom, at, bottom + 4, "axis")
        svg.text(at, bottom + 16, label, "tick", anchor="middle")
    svg.line(left, bottom, right, bottom, "axis")
    svg.text((left + right) / 2, height - 6, x_label, "label", anchor="middle")
    svg.text(4, 10, y_label, "label")
    for name, x in (marks or {}).items():
        if x_low <= x <= x_high:
            at = place((x, y_low))[0]
            svg.line(at, top, at, bottom, "mark")
            svg.text(at + 3, top + 8, fit(name, 80, 10), "tick", tip=name)
    ends: dict[str, Point] = {}
    for number_, (name, points) in enumerate(shown.items()):
        kind = _kind(name, number_, colours, strong)
        placed = [place(point) if point is not None else None for point in points]
        _curve(svg, name, points, placed, kind, joined=joined, shape=number_)
        ends[name] = next(point for point in reversed(placed) if point is not None)
    if joined:
        _names_at_ends(svg, ends, right, (top, bottom), colours, strong)
    else:
        for number_, name in enumerate(shown):
            kind = _kind(name, number_, colours, strong)
            svg.dot(right + 14, top + 15 * number_, f"dot {kind}", shape=number_)
            text = fit(name, WIDTH - right - 24, 11)
            svg.text(right + 22, top + 15 * number_ + 4, text, "name", tip=name)
    return svg.markup()


def _drawable(points: Sequence[tuple[Any, Any]]) -> list[Point | None]:
    """Finite points; None where a line must not be joined."""
    found: list[Point | None] = []
    for x, y in points:
        across, up = finite(x), finite(y)
        if across is not None:
            found.append(None if up is None else (across, up))
    return found


def _curve(
    svg: Svg,
    name: str,
    points: Sequence[Point | None],
    placed: Sequence[Point | None],
    kind: str,
    *,
    joined: bool,
    shape: int,
) -> None:
    """One series: its pieces between gaps, and a mark at each point where there are few."""
    pieces: list[list[Point]] = [[]]
    for point in placed:
        if point is None:
            pieces.append([])
        else:
            pieces[-1].append(point)
    few = not joined or len(points) <= 25
    for piece in pieces if joined else ():
        if len(piece) > 1:
            svg.path(piece, f"curve {kind}")
    alone = {piece[0] for piece in pieces if len(piece) == 1}
    for point, at in zip(points, placed, strict=True):
        if at is not None and point is not None and (few or at in alone):
            tip = f"{name}: {number(point[1])} at {number(point[0])}"
            svg.dot(*at, f"dot {kind}", tip, shape)


def _names_at_ends(
    svg: Svg,
    ends: Mapping[str, Point],
    right: float,
    bounds: tuple[float, float],
    colours: Mapping[str, int] | None,
    strong: str | None,
) -> None:
    """The names beside the last points, moved apart where they would overlap."""
    order = sorted(ends, key=lambda name: ends[name][1])
    numbers = {name: index for index, name in enumerate(ends)}
    heights = _apart([ends[name][1] for name in order], 14.0, *bounds)
    for name, height in zip(order, heights, strict=True):
        kind = _kind(name, numbers[name], colours, strong)
        svg.line(ends[name][0] + 2, ends[name][1], right + 8, height, f"leader {kind}")
        svg.line(right + 8, height, right + 18, height, f"curve {kind}")
        svg.text(right + 22, height + 4, fit(name, WIDTH - right - 24, 11), "name", tip=name)


def _apart(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Sorted positions, moved as little as needed so that neighbours are `gap` apart."""
    found: list[float] = []
    for height in heights:
        found.append(max(height, found[-1] + gap) if found else max(height, low))
    limit = high
    for index in range(len(found) - 1, -1, -1):
        found[index] = min(found[index], limit)
        limit = found[index] - gap
    return found


def _kind(name: str, index: int, colours: Mapping[str, int] | None, strong: str | None) -> str:
    if name == strong:
        return "strong"
    known = colours or {}
    at = known.get(name, len(known) + index)
    return f"s{at % len(SERIES_LIGHT)} dash{min(2, at // len(SERIES_LIGHT))}"


def _describe(shown: Mapping[str, Sequence[Point | None]], x_label: str, y_label: str) -> str:
    parts = []
    for name, points in shown.items():
        known = [point for point in points if point is not None]
        first, last = known[0], known[-1]
        parts.append(
            f"{name} {number(first[1])} at {number(first[0])}, {number(last[1])} at "
            f"{number(last[0])}"
        )
    return f"{y_label or 'value'} over {x_label or 'x'}: " + "; ".join(parts)


def _range(values: Sequence[float], margin: float) -> tuple[float, float]:
    """The lowest and highest value with a margin; never empty."""
    low, high = min(values), max(values)
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-300):
        pad = abs(low) * 0.1 or 1.0
        return low - pad, high + pad
    return low - margin * (high - low), high + margin * (high - low)


def _ticks(values: Sequence[float]) -> list[tuple[float, str]]:
    """Each tick with its label, all with as many digits as their step needs."""
    step = abs(values[1] - values[0]) if len(values) > 1 else abs(values[0]) if values else 1.0
    top = max(map(abs, values), default=0.0)
    if top >= 1e6 or (0 < step < 1e-5):
        return [(value, number(value)) for value in values]
    digits = next((d for d in range(4) if abs(step * 10**d - round(step * 10**d)) < 1e-6), None)
    if digits is None:  # 0.00025, or no round numbers at all
        digits = max(0, 1 - math.floor(math.log10(step))) if step else 2
    return [(value, fixed(value, digits)) for value in values]


def _y_axis(svg: Svg, values: Sequence[float], place: Any, left: float, right: float) -> None:
    for value, label in _ticks(values):
        at = place(value)
        svg.line(left, at, right, at, "grid")
        svg.text(left - 6, at + 4, label, "tick", anchor="end")


def nothing(title: str) -> Markup:
    """A frame that says that there is no value to draw."""
    svg = Svg(WIDTH, 60, title, "No finite values.")
    svg.text(WIDTH / 2, 34, "no finite values to draw", "label", anchor="middle")
    return svg.markup()


# -- bars and intervals ----------------------------------------------------------------------------


def bars(
    title: str,
    labels: Sequence[str],
    series: Mapping[str, Sequence[Any]],
    *,
    x_label: str = "",
    signed: bool = False,
    unit: Literal["", "%"] = "",
) -> Markup:
    """Bars to the right (negative: to the left) of zero, a group of them for each label.

    `signed` colours a single series by its sign and writes the sign at its values.
    """
    values = {name: [finite(value) for value in column] for name, column in series.items()}
    known = [value for column in values.values() for value in column if value is not None]
    if not known or not labels:
        return nothing(title)
    counted = all(value.is_integer() for value in known)
    low, high = min(0.0, *known), max(0.0, *known)
    low, high = (low, high) if high > low else (0.0, 1.0)
    thick = 17.0 if len(values) == 1 else 12.0
    group = thick * len(values) + 9
    head = 24.0 if len(values) > 1 else 6.0
    height = head + group * len(labels) + 40
    left = min(150.0, max(width_of(label) for label in labels) + 14)
    value_room = 52.0
    start = left + (value_room if low < 0 else 0)
    stop = WIDTH - value_room
    svg = Svg(WIDTH, height, title, _list_values(labels, values, unit))

    def place(value: float) -> float:
        return start + (value - low) / (high - low) * (stop - start)

    bottom = height - 40
    for value, label in _ticks(ticks(low, high)):
        svg.line(place(value), head, place(value), bottom, "grid")
        svg.text(place(value), bottom + 15, label, "tick", anchor="middle")
    for row, label in enumerate(labels):
        y = head + group * row + 4
        svg.text(left - 8, y + (group - 9) / 2 + 4, fit(label, left - 8), "name", anchor="end")
        for at, (name, column) in enumerate(values.items()):
            found = column[row] if row < len(column) else None
            middle = y + thick * at + thick / 2
            if found is None:
                svg.text(place(0) + 4, middle + 4, number(None), "tick")
                continue
            x, end = sorted((place(0), place(found)))
            sign = "more" if found >= 0 else "less"
            kind = f"bar {sign if signed else _kind(name, at, None, None)}"
            exact = int(found) if counted and abs(found) < 1e15 else found
            shown = percent(found, signed=signed) if unit else number(exact, signed=signed)
            tip = f"{label}, {name}: {shown}"
            svg.rect(x, middle - thick / 2 + 1, max(0.8, end - x), thick - 2, kind, tip)
            if found < 0:
                svg.text(x - 4, middle + 4, shown, "value", anchor="end")
            else:
                svg.text(end + 4, middle + 4, shown, "value")
    svg.line(place(0), head, place(0), bottom, "axis")
    svg.text((start + stop) / 2, height - 6, x_label, "label", anchor="middle")
    if len(values) > 1:
        _legend(svg, list(values), left)
    return svg.markup()


def intervals(
    title: str,
    labels: Sequence[str],
    series: Mapping[str, Sequence[Spot]],
    *,
    x_label: str = "",
) -> Markup:
    """A dot with whiskers for each label and series: a score and its interval."""
    spots = [spot for column in series.values() for spot in column]
    ends = [
        end
        for spot in spots
        for value in (spot.value, spot.low, spot.high, *spot.others)
        if (end := finite(value)) is not None
    ]
    if not ends or not labels:
        return nothing(title)
    low, high = _range(ends, 0.08)
    if min(ends) >= 0 and max(ends) <= 1:
        low, high = max(0.0, low), min(1.0, high)
    line = 16.0 if len(series) > 1 else 22.0
    group = line * len(series) + 10
    head = 24.0 if len(series) > 1 else 6.0
    height = head + group * len(labels) + 40
    left = min(150.0, max(width_of(label) for label in labels) + 14)
    start, stop, bottom = left + 6, WIDTH - 58.0, height - 40
    values = {name: [finite(spot.value) for spot in column] for name, column in series.items()}
    svg = Svg(WIDTH, height, title, _list_values(labels, values, ""))

    def place(value: float) -> float:
        return start + (value - low) / (high - low) * (stop - start)

    for value, label in _ticks(ticks(low, high)):
        svg.line(place(value), head, place(value), bottom, "grid")
        svg.text(place(value), bottom + 15, label, "tick", anchor="middle")
    for row, label in enumerate(labels):
        y = head + group * row
        if row:
            svg.line(8, y, WIDTH - 8, y, "grid")
        svg.text(left - 8, y + group / 2 + 4, fit(label, left - 8), "name", anchor="end", tip=label)
        for at, (name, column) in enumerate(series.items()):
            middle = y + 5 + line * at + line / 2
            _spot(svg, column[row] if row < len(column) else Spot(None), at, middle, place, name)
    svg.line(start, bottom, stop, bottom, "axis")
    svg.text((start + stop) / 2, height - 6, x_label, "label", anchor="middle")
    if len(series) > 1:
        _legend(svg, list(series), left, dots=True)
    return svg.markup()


def _spot(svg: Svg, spot: Spot, at: int, y: float, place: Any, name: str) -> None:
    kind = _kind(name, at, None, None)
    low, high, value = finite(spot.low), finite(spot.high), finite(spot.value)
    for other in spot.others:
        if (found := finite(other)) is not None:
            svg.dot(place(found), y, f"faint {kind}", number(found))
    if low is not None and high is not None:
        svg.line(place(low), y, place(high), y, f"whisker {kind}")
        for end in (low, high):
            svg.line(place(end), y - 4, place(end), y + 4, f"whisker {kind}")
    if value is None:
        svg.text(WIDTH - 50, y + 4, number(None), "value")
        return
    inside = f", {number(low)} to {number(high)}" if low is not None else ""
    svg.dot(place(value), y, f"dot {kind}", f"{name}: {number(value)}{inside}", at)
    svg.text(WIDTH - 50, y + 4, number(value), "value")


def _legend(svg: Svg, names: Sequence[str], left: float, *, dots: bool = False) -> None:
    room = (WIDTH - left) / len(names)
    x = left
    for at, name in enumerate(names):
        if dots:
            svg.dot(x + 5, 9, f"dot {_kind(name, at, None, None)}", shape=at)
        else:
            svg.rect(x, 4, 10, 10, f"bar {_kind(name, at, None, None)}")
        shown = fit(name, room - 24, 11)
        svg.text(x + 15, 13, shown, "name", tip=name)
        x += min(room, width_of(shown, 11) + 34)


def _list_values(
    labels: Sequence[str], values: Mapping[str, Sequence[float | None]], unit: str
) -> str:
    return "; ".join(
        f"{name}: "
        + ", ".join(
            f"{label} {number(value)}{unit}" for label, value in zip(labels, column, strict=False)
        )
        for name, column in values.items()
    )


# -- heatmaps --------------------------------------------------------------------------------------


def heatmap(
    title: str,
    labels: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[Any]],
    *,
    worse: bool = False,
    limit: float | None = None,
    x_label: str = "",
    y_label: str = "",
) -> Markup:
    """A coloured table: from orange (negative) over grey (0) to blue (positive).

    `worse`: values are not negative and more of them is worse, so they are orange. `limit` is the
    value with the strongest colour; default the largest one.
    """
    cells = [[finite(value) for value in row] for row in values]
    known = [value for row in cells for value in row if value is not None]
    if not known:
        return nothing(title)
    top = limit or max(map(abs, known)) or 1.0
    power = _power(top)
    top /= 10.0**power
    cells = [[None if value is None else value / 10.0**power for value in row] for row in cells]
    count = max(len(columns), *(len(row) for row in cells))
    head_width = min(140.0, max((width_of(label) for label in labels), default=0) + 12)
    side = max(30.0, min(64.0, (WIDTH - head_width - 8) / count))
    longest = max((width_of(column, 11) for column in columns), default=0)
    level = longest <= side - 4  # the names fit above their columns without being turned
    head = 30.0 if level else 22 + min(110.0, longest * 0.75)
    spare = 6.0 if level else min(60.0, longest * 0.68)
    width = max(WIDTH * 0.6, head_width + side * count + spare)
    tall = min(side, 40.0)
    height = head + tall * len(cells) + 54
    svg = Svg(width, height, title, _list_cells(labels, columns, cells))
    said = (y_label and f"rows: {y_label}", x_label and f"columns: {x_label}")
    unit = f"\N{MULTIPLICATION SIGN} 10{str(power).translate(RAISED)}" if power else ""
    svg.text(4, 11, " · ".join(filter(None, (*said, unit))), "label")
    for at, column in enumerate(columns):
        x = head_width + side * at + side / 2
        if level:
            svg.text(x, head - 6, column, "name", anchor="middle")
        else:
            svg.text(x, head - 5, fit(column, 145, 11), "name", turn=-42, tip=column)
    with_text = len(cells) * count <= MOST_CELLS_WITH_TEXT
    for row, line in enumerate(cells):
        y = head + tall * row
        label = labels[row] if row < len(labels) else ""
        name = fit(label, head_width - 8)
        svg.text(head_width - 7, y + tall / 2 + 4, name, "name", anchor="end", tip=label)
        for at, value in enumerate(line):
            x = head_width + side * at
            column = columns[at] if at < len(columns) else ""
            exact = None if value is None else value * 10.0**power
            tip = f"{label} → {column}: {number(exact)}"
            kind = "none" if value is None else step_class(-value if worse else value, top)
            svg.rect(x + 1, y + 1, side - 2, tall - 2, f"cell {kind}", tip)
            if with_text or value is None:
                text = _short(value)
                middle = (x + side / 2, y + tall / 2 + 4)
                svg.text(*middle, text, f"in-cell on-{kind}", anchor="middle", tip=tip)
    _colour_bar(svg, head_width, height - 30, top, min(known) < 0, worse)
    return svg.markup()


def _colour_bar(svg: Svg, x: float, y: float, top: float, both_signs: bool, worse: bool) -> None:
    steps = range(-STEPS if both_signs and not worse else 0, STEPS + 1)
    wide = 150.0 / len(steps)
    for at, step in enumerate(steps):
        svg.rect(x + wide * at, y, wide + 0.3, 9, step_class(-step if worse else step, STEPS))
    shown = _ticks([top * step / STEPS for step in (steps[0], (steps[0] + STEPS) / 2, STEPS)])
    for at, (_, label) in enumerate(shown):
        place = x + wide / 2 + (150 - wide) * at / 2
        svg.text(place, y + 22, label, "tick", anchor="middle")


def _power(top: float) -> int:
    """The power of ten that is taken out of the cells, so that each fits in a few signs."""
    if 0.05 <= top < 1000:
        return 0
    return 3 * math.floor(math.log10(top) / 3)


def _short(value: float | None) -> str:
    """At most five signs: they must fit into a cell."""
    if value is None:
        return number(None)
    size = abs(value)
    return fixed(value, 2 if size < 9.995 else 1 if size < 99.95 else 0)


def _list_cells(
    labels: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[float | None]]
) -> str:
    return "; ".join(
        f"{label}: "
        + ", ".join(f"{column} {number(v)}" for column, v in zip(columns, row, strict=False))
        for label, row in zip(labels, cells, strict=False)
    )
