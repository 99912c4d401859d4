"""Format numbers, durations, sizes and shares for tables and sentences."""

from __future__ import annotations

import math
from typing import Any

MISSING = "–"  # noqa: RUF001


def number(value: Any, digits: int = 4) -> str:
    """A number in few characters: 4 significant digits, 1e-4 style when very small or large."""
    if is_missing(value):
        return MISSING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if float(value).is_integer() and abs(value) < 1e6:
        return str(int(value))
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        mantissa, _, exponent = f"{value:.{max(1, digits - 2)}e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.{digits}g}"


def loss(value: Any) -> str:
    """A loss with four decimals; in scientific notation below 1e-3 and from 1e4 on."""
    if is_missing(value) or not isinstance(value, int | float):
        return MISSING
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.3e}"


def seconds(value: Any) -> str:
    """A duration: `0.8 s`, `12 s`, `3 min 20 s`, `2 h 05 min`, `3 d 4 h`."""
    if is_missing(value):
        return MISSING
    if value == 0:
        return "0 s"
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(value / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(value / 3600)
    return f"{hours // 24} d {hours % 24} h"


def hours(value: Any) -> str:
    """Seconds as hours, with three significant digits."""
    return MISSING if is_missing(value) else f"{value / 3600:.3g} h"


def size(value: Any) -> str:
    """Bytes: `350 MB`, `1.2 GB` (powers of 1000)."""
    return _scaled(value, ("B", "kB", "MB", "GB", "TB"))


def count(value: Any) -> str:
    """A count: `512`, `86.0 k`, `7.2 M`."""
    return _scaled(value, ("", "k", "M", "G", "T"))


def percent(part: float, whole: float) -> str:
    """A share of a whole."""
    return f"{100 * part / whole:.0f}%" if whole else MISSING


def is_missing(value: Any) -> bool:
    """None, NaN and pandas' NA."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    return type(value).__name__ in ("NAType", "NaTType")


def _scaled(value: Any, names: tuple[str, ...]) -> str:
    if is_missing(value):
        return MISSING
    step = 0
    while abs(value) >= 999.5 and step < len(names) - 1:
        value, step = value / 1000, step + 1
    text = f"{value:.0f}" if step == 0 or abs(value) >= 99.5 else f"{value:.3g}"
    return f"{text} {names[step]}".rstrip()
