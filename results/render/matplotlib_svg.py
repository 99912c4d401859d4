"""Render charts as SVG with matplotlib, for `report.md` and print."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from results.page.chart import Axis, Chart, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#6B6B00")
"""Colour-blind safe palette after Okabe and Ito (2008), darkened for white paper."""
TONES = {"muted": "#b9bec5", "best": "#111111", "bad": "#b00020"}

PAD = 0.1
"""Padding around a picture, in inches."""

_STYLE: Any = {
    "text.parse_math": False,
    "svg.hashsalt": "gaudi-sweep",  # element ids are otherwise drawn at random
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica", "Arial", "DejaVu Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e8eb",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "path.simplify": True,
}


def svg(chart: Chart) -> str:
    """The chart as an SVG document; equal charts give equal bytes."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # Keep text as text: the reader's fonts may have glyphs that this machine's lack.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure = Figure(figsize=(8.5 if chart.wide else 6.5, chart.height / 100))
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        _fill(axes, chart)
        out = io.StringIO()
        # As `bbox_inches="tight"`, which would draw everything a second time.
        around = figure.get_tightbbox().padded(PAD)
        figure.savefig(out, format="svg", bbox_inches=around, metadata={"Date": None})
    return out.getvalue()


def _fill(axes: Axes, chart: Chart) -> None:
    if chart.surface is not None:
        _surface(axes, chart)
    for series in chart.series:
        _DRAW[series.kind](axes, chart, series)
    for x, y, text in chart.texts:
        axes.annotate(_short(text), (x, y), xytext=(3, 2), textcoords="offset points", fontsize=7)
    _axis(axes, "x", chart.x)
    _axis(axes, "y", chart.y)
    axes.set_title(chart.title, loc="left", fontweight="bold", fontsize=10)
    named = [item for item in chart.series if item.named and not len(item.colour)]
    if len(named) > 1:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    _colour_scale(axes, chart)


def _axis(axes: Axes, which: str, axis: Axis) -> None:
    from matplotlib.ticker import EngFormatter

    getattr(axes, f"set_{which}label")(axis.title)
    if axis.log:
        getattr(axes, f"set_{which}scale")("log")
    if axis.labels is not None:
        getattr(axes, f"set_{which}ticks")(
            [place for place, _ in axis.labels], [_short(text) for _, text in axis.labels]
        )
        axes.minorticks_off()
    if axis.prefixed and axis.labels is None:
        getattr(axes, f"{which}axis").set_major_formatter(EngFormatter(sep=""))
    if axis.limits is not None:
        getattr(axes, f"set_{which}lim")(*axis.limits)


def _short(text: str) -> str:
    return text if len(text) <= 28 else f"{text[:27]}…"


def colour_of(series: Series) -> str:
    """Colour of a series in print."""
    return TONES.get(series.tone) or PALETTE[series.index % len(PALETTE)]


def _label(series: Series) -> str:
    return _short(series.name) if series.named else "_"


def _points(axes: Axes, chart: Chart, series: Series) -> None:
    size = 46 if series.tone == "best" else 16
    marker = "X" if series.crossed else "D" if series.tone == "best" else "o"
    if len(series.colour):
        low, high = chart.colour_limits or (None, None)
        axes.scatter(series.x, series.y, c=series.colour, cmap="viridis_r", s=size, vmin=low,
                     vmax=high, linewidths=0.3, edgecolors="white", zorder=3)  # fmt: skip
    else:
        axes.scatter(series.x, series.y, color=colour_of(series), s=size, label=_label(series),
                     marker=marker, zorder=4 if series.tone == "best" else 3)  # fmt: skip
    _errors(axes, series)


def _line(axes: Axes, chart: Chart, series: Series) -> None:
    muted = series.tone == "muted"
    axes.plot(
        series.x, series.y, color=colour_of(series), label=_label(series),
        linewidth=0.7 if muted else 1.6, linestyle="--" if series.dashed else "-",
        drawstyle="steps-post" if series.kind == "step" else "default",
        marker="o" if series.kind == "both" else None, markersize=4, zorder=1 if muted else 2,
    )  # fmt: skip
    _errors(axes, series)


def _errors(axes: Axes, series: Series) -> None:
    if len(series.low):
        y = np.asarray(series.y, dtype=float)
        reach = [y - np.asarray(series.low), np.asarray(series.high) - y]
        axes.errorbar(series.x, y, yerr=np.maximum(reach, 0), fmt="none", capsize=3,
                      ecolor=colour_of(series), elinewidth=1.2)  # fmt: skip


def _bars(axes: Axes, chart: Chart, series: Series) -> None:
    base: Any = series.base if len(series.base) else None
    look: Any = {"color": colour_of(series), "label": _label(series)}
    if chart.horizontal:
        axes.barh(series.y, series.x, series.thick, left=base, **look)
    else:
        axes.bar(series.x, series.y, series.thick, bottom=base, **look)


def _surface(axes: Axes, chart: Chart) -> None:
    plane = chart.surface
    if plane is not None:
        low, high = chart.colour_limits or (np.nanmin(plane.z), np.nanmax(plane.z))
        axes.contourf(plane.x, plane.y, np.clip(plane.z, low, high), cmap="viridis_r", alpha=0.55,
                      levels=np.linspace(low, high, 13))  # fmt: skip


def _colour_scale(axes: Axes, chart: Chart) -> None:
    """A colour bar for points that are coloured by value."""
    if chart.colour and axes.collections and axes.figure is not None:
        coloured = [item for item in axes.collections if item.get_array() is not None]
        if coloured:
            axes.figure.colorbar(coloured[-1], ax=axes, label=chart.colour)


_DRAW = {"points": _points, "line": _line, "both": _line, "step": _line, "bar": _bars}
