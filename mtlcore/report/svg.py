"""A small writer of SVG: what it is given is text, never markup."""

from __future__ import annotations

import math

from markupsafe import Markup, escape

from mtlcore.report.text import clean


class Svg:
    """Collects shapes; `markup()` is the element with its title and description."""

    def __init__(self, width: float, height: float, title: str, description: str) -> None:
        self.width, self.height = width, height
        self.title, self.description = title, description
        self.parts: list[Markup] = []

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        """A straight line of a CSS class."""
        self.parts.append(
            Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>').format(
                _n(x1), _n(y1), _n(x2), _n(y2), kind
            )
        )

    def path(self, points: list[tuple[float, float]], kind: str) -> None:
        """A line through points."""
        steps = "L".join(f"{_n(x)} {_n(y)}" for x, y in points)
        self.parts.append(Markup('<path d="M{}" class="{}"/>').format(steps, kind))

    def rect(
        self, x: float, y: float, width: float, height: float, kind: str, tip: str = ""
    ) -> None:
        """A rectangle; `tip` is shown when one points at it."""
        self.parts.append(
            Markup('<rect x="{}" y="{}" width="{}" height="{}" class="{}">{}</rect>').format(
                _n(x), _n(y), _n(width), _n(height), kind, _tip(tip)
            )
        )

    def dot(self, x: float, y: float, kind: str, tip: str = "", shape: int = 0) -> None:
        """A mark: a circle, square, diamond or triangle."""
        r = 3.4
        outlines = (
            None,
            [(x - r, y - r), (x + r, y - r), (x + r, y + r), (x - r, y + r)],
            [(x, y - r * 1.35), (x + r * 1.35, y), (x, y + r * 1.35), (x - r * 1.35, y)],
            [(x, y - r * 1.25), (x + r * 1.25, y + r), (x - r * 1.25, y + r)],
        )
        outline = outlines[shape % len(outlines)]
        if outline is None:
            shown = Markup('<circle cx="{}" cy="{}" r="{}" class="{}">{}</circle>').format(
                _n(x), _n(y), r, kind, _tip(tip)
            )
        else:
            points = " ".join(f"{_n(px)},{_n(py)}" for px, py in outline)
            shown = Markup('<polygon points="{}" class="{}">{}</polygon>').format(
                points, kind, _tip(tip)
            )
        self.parts.append(shown)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        kind: str = "",
        *,
        anchor: str = "start",
        tip: str = "",
        turn: float | None = None,
    ) -> None:
        """A line of text; `anchor` start, middle or end; `turn` in degrees about its start."""
        place = (
            Markup("")
            if turn is None
            else Markup(' transform="rotate({} {} {})"').format(turn, _n(x), _n(y))
        )
        self.parts.append(
            Markup('<text x="{}" y="{}" text-anchor="{}" class="{}"{}>{}{}</text>').format(
                _n(x), _n(y), anchor, kind, place, escape(clean(text)), _tip(tip)
            )
        )

    def markup(self) -> Markup:
        """The `<svg>` element."""
        title, description = clean(self.title), clean(self.description)
        return Markup(
            '<svg role="img" viewBox="0 0 {} {}" style="max-width:{}px" aria-label="{}">'
            "<title>{}</title><desc>{}</desc>{}</svg>"
        ).format(
            _n(self.width),
            _n(self.height),
            _n(self.width * 1.35),
            f"{title}. {description}",
            title,
            description,
            Markup("").join(self.parts),
        )


def _tip(text: str) -> Markup:
    return Markup("<title>{}</title>").format(clean(text)) if text else Markup("")


def _n(value: float) -> str:
    """A coordinate with at most one decimal."""
    return f"{value:.1f}".removesuffix(".0")


def ticks(low: float, high: float, count: int = 5, *, whole: bool = False) -> list[float]:
    """About `count` round numbers between low and high, which are finite and low < high."""
    step = 10.0 ** math.floor(math.log10((high - low) / count))
    for factor in (1, 2, 2.5, 5, 10):
        if (high - low) / (step * factor) <= count + 0.5:
            step *= factor
            break
    if whole:
        step = max(1.0, float(math.ceil(step)))
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]
