"""Charts as data, independent of a plotting library.

The HTML report (Plotly) and the pictures of `report.md` (matplotlib) draw the same charts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["points", "line", "both", "bar", "step"]
Tone = Literal["series", "muted", "best", "bad"]

MOST_POINTS = 2_000
"""Largest number of points drawn of a series; more are thinned evenly, with a note."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis: title with unit, scale, limits, ticks."""

    title: str
    log: bool = False
    limits: tuple[float, float] | None = None
    """Initial range; None for all data."""
    labels: tuple[tuple[float, str], ...] | None = None
    """Explicit ticks: position and text."""

    @property
    def prefixed(self) -> bool:
        """Whether ticks use the SI prefixes k, M and G."""
        return self.title.endswith("(bytes)")


@dataclass(frozen=True, slots=True)
class Series:
    """One data series."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    kind: Kind = "points"
    tone: Tone = "series"
    index: int = 0
    """Index into the colour palette."""
    hover: Sequence[str] = ()
    low: Sequence[float] = ()
    """Lower ends of error bars along y."""
    high: Sequence[float] = ()
    base: Sequence[float] = ()
    """Start of each bar."""
    colour: Sequence[float] = ()
    """Values for the colour scale of the points."""
    dashed: bool = False
    crossed: bool = False
    """Draw points as crosses."""
    thick: float = 0.8
    """Thickness of bars in axis units."""
    named: bool = True
    """Whether the legend lists it."""


@dataclass(frozen=True, slots=True)
class Surface:
    """Coloured background: values on a rectangular grid [y, x], NaN where unknown."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart: title, a sentence on how to read it, axes, series."""

    key: str
    title: str
    read: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    note: str = ""
    """Note on what was left out or thinned."""
    horizontal: bool = False
    """Draw horizontal bars."""
    stacked: bool = False
    colour: str = ""
    """Title of the colour scale."""
    colour_limits: tuple[float, float] | None = None
    surface: Surface | None = None
    texts: tuple[tuple[float, float, str], ...] = ()
    """Annotations: x, y and text."""
    height: int = 380
    brush: bool = False
    """Parallel coordinates: ranges can be selected on the axes, which are the ticks of x."""
    wide: bool = False
    """Use the full width of the page."""


@dataclass(slots=True)
class Thinning:
    """Selects the items to draw and notes how many were left out."""

    drawn: int = 0
    there: int = 0
    what: str = "points"

    def indices(self, count: int, most: int = MOST_POINTS, always: int = 0) -> np.ndarray:
        """Indices of the items to draw: the first `always`, then evenly spaced ones."""
        self.there += count
        if count <= most:
            self.drawn += count
            return np.arange(count)
        rest = np.linspace(always, count - 1, most - always).round().astype(int)
        kept = np.unique(np.concatenate([np.arange(always), rest]))
        self.drawn += len(kept)
        return kept

    @property
    def note(self) -> str:
        """The note; empty when everything is drawn."""
        if self.drawn == self.there:
            return ""
        return f"{self.drawn:,} of {self.there:,} {self.what} are drawn."


def robust_limits(
    values: np.ndarray, log: bool = False, margin: float = 0.05
) -> tuple[float, float] | None:
    """Axis limits that ignore outliers; None without finite values.

    Outliers lie more than three interquartile ranges outside the quartiles (Tukey's outer fences).
    """
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known) & ((known > 0) | (not log))]
    if not len(known):
        return None
    scaled = np.log10(known) if log else known
    first, third = np.quantile(scaled, [0.25, 0.75])
    reach = 3 * (third - first) or np.inf
    inside = scaled[(scaled >= first - reach) & (scaled <= third + reach)]
    low, high = float(inside.min()), float(inside.max())
    pad = margin * (high - low) or max(abs(high) * 0.01, 1e-9)
    low, high = low - pad, high + pad
    return (10**low, 10**high) if log else (low, high)


def outside(values: np.ndarray, limits: tuple[float, float] | None) -> int:
    """Number of values outside the limits."""
    if limits is None:
        return 0
    known = np.asarray(values, dtype=float)
    return int(np.sum((known < limits[0]) | (known > limits[1])))


def plain(name: str) -> str:
    """A name as a chart key that is safe in file names, links and element ids."""
    return re.sub(r"[^A-Za-z0-9]+", "_", name)


def notes(*parts: str) -> str:
    """Join the non-empty notes."""
    return " ".join(part for part in parts if part)


def beyond(count: int) -> str:
    """Note on the number of points outside the initial range."""
    what = "far-off point lies" if count == 1 else "far-off points lie"
    return f"{count:,} {what} outside the first view." if count else ""
