"""Colours of the page, light and dark, and the CSS made of them.

The series colours start from those of Okabe and Ito (Color Universal Design, 2008,
https://jfly.uni-koeln.de/color/), which people with colour blindness tell apart; on each ground
they are darkened or lightened until they stand out from it by 3:1. Text stands out by 4.5:1. A
third line of defence: charts name their lines at the lines, and dashes tell a second round apart.
"""

from __future__ import annotations

STEPS = 10
"""Steps of a scale on each side of its middle."""

LIGHT = {
    "ground": "#f5f6f8",
    "card": "#ffffff",
    "soft": "#f0f2f5",
    "ink": "#1b1f24",
    "muted": "#555d68",
    "line": "#dcdfe5",
    "grid": "#e9ebef",
    "accent": "#0a5ea8",
    "good": "#0b6b3a",
    "good-soft": "#e2f3e9",
    "bad": "#a8321a",
    "bad-soft": "#fbe8e3",
    "warn": "#7a5200",
    "warn-soft": "#fdf1d6",
}
DARK = {
    "ground": "#121519",
    "card": "#1a1e24",
    "soft": "#232931",
    "ink": "#e6e9ed",
    "muted": "#a6aeb9",
    "line": "#363d47",
    "grid": "#2a3038",
    "accent": "#7fbcf5",
    "good": "#6fd39b",
    "good-soft": "#15342a",
    "bad": "#ff9d85",
    "bad-soft": "#41221c",
    "warn": "#f2c462",
    "warn-soft": "#3a2f16",
}
SERIES_LIGHT = (
    "#0072b2", "#d55e00", "#008a64", "#b9538c", "#a87400", "#3190c4", "#5a5a5a", "#7d4e24",
)  # fmt: skip
SERIES_DARK = (
    "#4aa8e8", "#f28444", "#2cc397", "#e59bc6", "#e6a817", "#9bd6f7", "#c4c4c4", "#c79c6f",
)  # fmt: skip

MIDDLE = ("#f4f4f2", "#262b33")  # of a scale, light and dark
MORE = ("#08468c", "#79c0ff")
LESS = ("#a63a00", "#ff9a5c")


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def mix(low: str, high: str, share: float) -> str:
    """The colour at a share of the way from one to the other."""
    pairs = zip(_rgb(low), _rgb(high), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2.2 defines it."""
    parts = [part / 255 for part in _rgb(colour)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Contrast ratio as WCAG 2.2 defines it, 1 to 21."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def text_on(colour: str) -> str:
    """Black or white, whichever is easier to read; one of them always has 4.5:1."""
    return max(("#000000", "#ffffff"), key=lambda text: contrast(text, colour))


def scale(dark: bool) -> dict[str, str]:
    """The steps of the scales by class name: z, p1 .. p10 (more), n1 .. n10 (less)."""
    middle = MIDDLE[dark]
    colours = {"z": middle}
    for name, end in (("p", MORE[dark]), ("n", LESS[dark])):
        for step in range(1, STEPS + 1):
            colours[f"{name}{step}"] = mix(middle, end, step / STEPS)
    return colours


def css() -> str:
    """Custom properties for both schemes, and the classes that read them. Paper is light."""
    classes = [f".{n}{{background:var(--{n});color:var(--on-{n})}}" for n in scale(False)]
    classes += [
        f"rect.{n}{{fill:var(--{n})}}text.on-{n}{{fill:var(--on-{n})}}" for n in scale(False)
    ]
    classes += [f".s{i}{{--c:var(--s{i})}}" for i in range(len(SERIES_LIGHT))]
    return (
        f":root{{{_properties(dark=False)}}}\n"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{_properties(dark=True)}}}}}\n"
        + "\n".join(classes)
    )


def _properties(*, dark: bool) -> str:
    values = dict(DARK if dark else LIGHT)
    values |= {f"s{i}": c for i, c in enumerate(SERIES_DARK if dark else SERIES_LIGHT)}
    steps = scale(dark)
    values |= steps | {f"on-{name}": text_on(colour) for name, colour in steps.items()}
    return ";".join(f"--{name}:{value}" for name, value in values.items())


def step_class(value: float, limit: float) -> str:
    """The class of a value on the scale from -limit to limit."""
    share = 0.0 if limit <= 0 else max(-1.0, min(1.0, value / limit))
    step = round(abs(share) * STEPS)
    return "z" if step == 0 else f"{'p' if share > 0 else 'n'}{step}"
