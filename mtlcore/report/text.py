"""Numbers with sensible digits, and text that no page or terminal can mistake for anything else."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

LONGEST = 1200
"""Longer texts of rows and outputs are cut on the page; the files have them whole."""
NOTHING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"

# Control characters (HTML forbids most), lone surrogates (UTF-8 cannot hold them), non-characters.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def clean(text: str) -> str:
    """The text with every character that HTML or UTF-8 cannot hold shown by a visible sign."""
    return _UNPRINTABLE.sub(_visible, text.replace("\r\n", "\n").replace("\r", "\n"))


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    return chr(0x2400 + code) if code < 0x20 else "\N{REPLACEMENT CHARACTER}"


def clip(value: Any, longest: int = LONGEST) -> str:
    """A text for display: cut when long, with the number of characters that were left out."""
    text = value if isinstance(value, str) else plain(value)
    if len(text) <= longest:
        return text
    return f"{text[:longest]} … ({len(text) - longest:,} more characters)"


def plain(value: Any) -> str:
    """Any JSON value in words: `a 1, b 0.25` instead of braces and quotes."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(inner)}" for key, inner in value.items()) or NOTHING
    if isinstance(value, list | tuple):
        return ", ".join(plain(inner) for inner in value) or NOTHING
    return number(value)


def number(value: Any, *, signed: bool = False) -> str:
    """About three significant digits: 1,234 · 56.7 · 0.123 · 4.5e-06; None is a dash."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return _with_sign(f"{value:,}", value, signed)
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    value = float(f"{value:.6g}")  # 0.0099999999 is 0.01
    size = abs(value)
    if size == 0:
        text = "0"
    elif size >= 1e7 or size < 0.01:
        text = f"{value:.2g}"
    elif size >= 1000:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.{decimals(size)}f}"
    return _with_sign(text, value, signed)


def _with_sign(text: str, value: float, signed: bool) -> str:
    sign = "+" if signed and value > 0 else ""
    return sign + text.replace("-", MINUS, 1) if value < 0 else sign + text


def percent(value: Any, *, signed: bool = False) -> str:
    """A number that is in percent already."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return number(value)
    digits = 1 if abs(value) < 100 else 0
    return _with_sign(f"{value:.{digits}f}", round(value, digits), signed) + "%"


def duration(seconds: Any) -> str:
    """12.3 s · 4 min 05 s · 3 h 12 min."""
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return number(seconds)
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{number(float(seconds))} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60:,} h {minutes % 60:02} min"


def span(low: Any, high: Any, *, in_percent: bool = False) -> str:
    """An interval in words, both ends with the same digits; nothing if it is not known."""
    if not isinstance(low, int | float) or not isinstance(high, int | float):
        return ""
    if in_percent:
        return f"{percent(float(low))} to {percent(float(high))}"
    larger = max(abs(low), abs(high))
    if not 0.01 <= larger < 1000:
        return f"{number(float(low))} to {number(float(high))}"
    digits = decimals(larger)
    return f"{fixed(low, digits)} to {fixed(high, digits)}"


def decimals(size: float) -> int:
    """Digits after the point for numbers of 0.01 to 1000."""
    return 1 if size >= 100 else 2 if size >= 1 else 3


def fixed(value: float, digits: int) -> str:
    """A number with so many digits after the point, and a real minus."""
    text = f"{value:,.{digits}f}"
    return text.replace("-", MINUS if float(text.replace(",", "")) else "", 1)


def width_of(text: str, size: float = 12) -> float:
    """About how wide a text is drawn, in the unit of its font size."""
    wide = sum(unicodedata.east_asian_width(sign) in "WF" for sign in text)
    return size * (0.56 * (len(text) - wide) + wide)


def fit(text: str, width: float, size: float = 12) -> str:
    """The text, shortened in its middle to about so much width."""
    text = clean(text).replace("\n", " ")
    if width_of(text, size) <= width:
        return text
    keep = max(3, int(width / (0.56 * size)) - 1)
    while keep > 3 and width_of(text[:keep], size) > width:
        keep -= 1
    tail = keep // 3
    return f"{text[: keep - tail]}…{text[len(text) - tail :]}"
