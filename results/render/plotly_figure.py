"""Render charts as Plotly figures in JSON.

Colours are written as `$name`; the page's script replaces them by the light or dark theme's colour.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from results.page.chart import Axis, Chart, Series

COLOURS = 8

_LEGEND_RANKS = {"best": 1900, "muted": 2000, "bad": 2000}
"""First legend rank of a tone; other series have 1000 and more, in the order of their index."""
_MODES = {"points": "markers", "line": "lines", "both": "lines+markers", "step": "lines"}


def figure(chart: Chart) -> dict[str, Any]:
    """`data` and `layout` for `Plotly.newPlot`."""
    named = [item for item in chart.series if item.named and not len(item.colour)]
    layout: dict[str, Any] = {
        "height": chart.height,
        "xaxis": _axis(chart.x),
        "yaxis": _axis(chart.y),
        "barmode": "stack" if chart.stacked else "overlay",
        "showlegend": len(named) > 1,
    }
    if chart.brush:
        layout["meta"] = "brush"
    data = [_trace(chart, series) for series in chart.series]
    if chart.surface is not None:
        data.insert(0, _contour(chart))
    if chart.texts:
        data.append(_words(chart))
    _one_scale(data)
    return {"data": data, "layout": layout}


def figure_json(chart: Chart) -> str:
    """The figure as JSON that may stand inside a script element."""
    text = json.dumps(figure(chart), separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _axis(axis: Axis) -> dict[str, Any]:
    made: dict[str, Any] = {"title": {"text": escape(axis.title)}}
    if axis.labels is not None:
        made |= {
            "tickmode": "array",
            "tickvals": [place for place, _ in axis.labels],
            "ticktext": [escape(text) for _, text in axis.labels],
        }
    if axis.log:
        made |= {"type": "log", "exponentformat": "power"}
    if axis.log and axis.labels is None:
        made |= {"dtick": 1, "minor": {"ticks": "outside", "dtick": "D1"}}
    if axis.prefixed and axis.labels is None:
        made["tickformat"] = "~s"
    if axis.limits is not None:
        low, high = axis.limits
        made["range"] = [math.log10(low), math.log10(high)] if axis.log else [low, high]
    return made


def colour_of(series: Series) -> str:
    """Theme colour name of a series."""
    return f"${series.tone}" if series.tone != "series" else f"$c{series.index % COLOURS}"


def _trace(chart: Chart, series: Series) -> dict[str, Any]:
    trace: dict[str, Any] = {
        "type": "bar" if series.kind == "bar" else "scatter",
        "name": escape(series.name),
        "x": numbers(series.x),
        "y": numbers(series.y),
        "showlegend": series.named,
        "legendrank": _LEGEND_RANKS.get(series.tone, 1000) + series.index,
    }
    if len(series.hover):
        trace |= {"text": [escape(text) for text in series.hover], "hoverinfo": "text"}
    elif not series.named:
        trace["hoverinfo"] = "skip"
    if len(series.low):
        trace["error_y"] = _errors(series)
    return trace | (_bar(chart, series) if series.kind == "bar" else _marks(chart, series))


def _bar(chart: Chart, series: Series) -> dict[str, Any]:
    made: dict[str, Any] = {
        "orientation": "h" if chart.horizontal else "v",
        "marker": {"color": colour_of(series)},
        "textposition": "none",
        "width": series.thick,
    }
    return made | ({"base": numbers(series.base)} if len(series.base) else {})


def _marks(chart: Chart, series: Series) -> dict[str, Any]:
    best, muted = series.tone == "best" and not series.crossed, series.tone == "muted"
    symbol = "x" if series.crossed else "diamond" if best else "circle"
    marker: dict[str, Any] = {
        "size": 12 if best else 7,
        "symbol": symbol,
        "color": colour_of(series),
    }
    if len(series.colour):
        low, high = chart.colour_limits or (None, None)
        marker |= {
            "color": numbers(series.colour), "colorscale": "Viridis", "reversescale": True,
            "showscale": True, "cmin": low, "cmax": high,
            "colorbar": {"title": {"text": escape(chart.colour), "side": "right"}, "thickness": 12},
        }  # fmt: skip
    line: dict[str, Any] = {"color": colour_of(series), "width": 1 if muted else 2.2}
    line |= {"shape": "hv"} if series.kind == "step" else {}
    line |= {"dash": "dash"} if series.dashed else {}
    return {
        "mode": _MODES[series.kind], "marker": marker, "line": line, "connectgaps": False,
        "opacity": 0.7 if muted and series.kind != "points" else 1.0,
    }  # fmt: skip


def _errors(series: Series) -> dict[str, Any]:
    y = np.asarray(series.y, dtype=float)
    return {
        "type": "data", "symmetric": False, "color": colour_of(series), "thickness": 1.4,
        "array": numbers(np.asarray(series.high) - y),
        "arrayminus": numbers(y - np.asarray(series.low)),
    }  # fmt: skip


def _contour(chart: Chart) -> dict[str, Any]:
    plane = chart.surface
    if plane is None:
        return {}
    low, high = chart.colour_limits or (float(np.nanmin(plane.z)), float(np.nanmax(plane.z)))
    return {
        "type": "contour", "x": numbers(plane.x), "y": numbers(plane.y),
        "z": [numbers(row) for row in plane.z], "colorscale": "Viridis", "reversescale": True,
        "opacity": 0.6, "zmin": low, "zmax": high, "showscale": False, "hoverinfo": "skip",
        "contours": {"coloring": "fill", "showlines": False}, "line": {"width": 0},
    }  # fmt: skip


def _words(chart: Chart) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "text", "showlegend": False, "hoverinfo": "skip",
        "x": numbers([x for x, _, _ in chart.texts]), "y": numbers([y for _, y, _ in chart.texts]),
        "text": [escape(text) for _, _, text in chart.texts], "textposition": "top right",
        "cliponaxis": False,
    }  # fmt: skip


def _one_scale(data: list[dict[str, Any]]) -> None:
    """Only the first coloured trace carries the colour bar."""
    for trace in [item for item in data if item.get("marker", {}).get("showscale")][1:]:
        trace["marker"]["showscale"] = False


def numbers(values: Sequence[float] | np.ndarray) -> list[float | None]:
    """Numbers with six digits, null where there is none: JSON knows no NaN."""
    return [
        None if value is None or not math.isfinite(value) else _rounded(float(value))
        for value in values
    ]


def _rounded(value: float) -> float:
    short = float(f"{value:.6g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def escape(text: str) -> str:
    """Plotly reads a few HTML tags in its texts: names are shown as they are, `<br>` breaks."""
    safe = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return safe.replace("&lt;br&gt;", "<br>")
