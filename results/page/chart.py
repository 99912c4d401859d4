"""A plot as data: what is drawn, before anybody decides with which library.

The HTML report and the pictures of `report.md` draw the same charts, so they say the same.
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
"""Points drawn of one series; more are thinned evenly and the chart says so."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis: what it shows, with its unit."""

    title: str
    log: bool = False
    limits: tuple[float, float] | None = None
    """What is shown at first; None for all."""
    labels: tuple[tuple[float, str], ...] | None = None
    """Ticks of our own: place and text."""

    @property
    def prefixed(self) -> bool:
        """Whether its numbers are so large that ticks are better written with k, M and G."""
        return self.title.endswith("(bytes)")


@dataclass(frozen=True, slots=True)
class Series:
    """One set of marks."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    kind: Kind = "points"
    tone: Tone = "series"
    index: int = 0
    """Which colour of the palette."""
    hover: Sequence[str] = ()
    low: Sequence[float] = ()
    """Lower ends of error bars along y."""
    high: Sequence[float] = ()
    base: Sequence[float] = ()
    """Where bars begin."""
    colour: Sequence[float] = ()
    """Values that colour the points, on the chart's colour scale."""
    dashed: bool = False
    crossed: bool = False
    """Points are crosses."""
    thick: float = 0.8
    """Thickness of bars, in units of the axis they stand on."""
    named: bool = True
    """Whether it stands in the legend."""


@dataclass(frozen=True, slots=True)
class Surface:
    """A coloured plane under the points: values on a rectangular lattice, NaN where unknown."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray


@dataclass(frozen=True, slots=True)
class Chart:
    """A plot with a title, a sentence on how to read it, and its axes."""

    key: str
    title: str
    read: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    note: str = ""
    """What was left out or thinned."""
    horizontal: bool = False
    """Bars lie."""
    stacked: bool = False
    colour: str = ""
    """What the colour scale shows."""
    colour_limits: tuple[float, float] | None = None
    surface: Surface | None = None
    texts: tuple[tuple[float, float, str], ...] = ()
    """Words in the plot: x, y and text."""
    height: int = 380
    brush: bool = False
    """Lines across parallel axes, on which ranges can be held: ticks of x are the axes."""
    wide: bool = False
    """Takes the whole width of the page."""


@dataclass(slots=True)
class Thinning:
    """Counts what is drawn of what there is, to say so."""

    drawn: int = 0
    there: int = 0
    what: str = "points"

    def indices(self, count: int, most: int = MOST_POINTS, always: int = 0) -> np.ndarray:
        """Which of `count` ordered items to draw: the first `always`, the rest evenly."""
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
        """In words; empty when everything is drawn."""
        if self.drawn == self.there:
            return ""
        return f"{self.drawn:,} of {self.there:,} {self.what} are drawn."


def robust_limits(
    values: np.ndarray, log: bool = False, margin: float = 0.05
) -> tuple[float, float] | None:
    """Limits that a few far-off values cannot stretch; None when there is nothing to show.

    Values beyond three interquartile ranges from the middle half lie outside.
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
    """How many values lie beyond the limits."""
    if limits is None:
        return 0
    known = np.asarray(values, dtype=float)
    return int(np.sum((known < limits[0]) | (known > limits[1])))


def plain(name: str) -> str:
    """A name as a chart's key: any file system, link and element id takes it."""
    return re.sub(r"[^A-Za-z0-9]+", "_", name)


def notes(*parts: str) -> str:
    """Notes joined, the empty ones left out."""
    return " ".join(part for part in parts if part)


def beyond(count: int) -> str:
    """The note on what the first view leaves out."""
    what = "far-off point lies" if count == 1 else "far-off points lie"
    return f"{count:,} {what} outside the first view." if count else ""
