"""Plots of the searched parameters: importance, all together, one by one, in pairs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.interpolate import griddata

from results.analysis import zero_stages
from results.analysis.importance import ENOUGH, is_log, is_number
from results.analysis.study_analysis import StudyAnalysis
from results.data import format
from results.data.naming import capitalize, short_name
from results.page.axes import number_axis
from results.page.chart import (
    Axis,
    Chart,
    Series,
    Surface,
    Thinning,
    Tone,
    beyond,
    notes,
    outside,
    plain,
    robust_limits,
)

MOST_SLICES = 8
MOST_CONTOURS = 3
LATTICE = 36


# Importance


def importance_chart(analysis: StudyAnalysis) -> Chart | None:
    """Importance of each parameter by fANOVA and, with enough trials, by PED-ANOVA."""
    shares = analysis.importance
    if shares is None:
        return None
    places = list(range(len(shares.names)))[::-1]
    both = [("fANOVA", shares.fanova, 0.0 if shares.few else 0.2)]
    if not shares.few:
        both.append(("PED-ANOVA", shares.ped_anova, -0.2))
    series = tuple(
        Series(f"{name}", list(values), [place + lift for place in places], kind="both",
               index=index, hover=[f"{name}<br>{short_name(key)}: {format.percent(value, 1)}"
                                   for key, value in zip(shares.names, values, strict=True)])
        for index, (name, values, lift) in enumerate(both)
    )  # fmt: skip
    few = (
        f"Only {shares.trials} complete trials: too few to trust, read it as a hint. PED-ANOVA is "
        f"left out, its best tenth would be a trial or two (it needs {ENOUGH} trials)."
        if shares.few
        else f"From {shares.trials:,} complete trials."
    )
    left = ", ".join(map(short_name, shares.left_out))
    return Chart(
        "importance", "Which parameter matters",
        "fANOVA: share of the variance over all that was tried. PED-ANOVA: what sets the best "
        "tenth apart from the rest.",
        Axis("share", limits=(0.0, 1.02)),
        Axis("", labels=tuple((float(p), short_name(n)) for p, n in zip(places, shares.names,
                                                                  strict=True))),
        tuple(_as_bar(item) for item in series),
        notes(few, f"Conditional and therefore left out: {left}." if left else ""),
        horizontal=True, height=max(220, 120 + 56 * len(places)),
    )  # fmt: skip


def _as_bar(series: Series) -> Series:
    return Series(
        series.name, series.x, series.y, kind="bar", index=series.index, hover=series.hover,
        thick=0.38,
    )  # fmt: skip


# Parameters together


def scaled(column: pd.Series) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """A parameter's values scaled to 0..1 (log scale where suitable), and its ticks."""
    if not is_number(column):
        names = sorted({format.number(value) for value in column.dropna()})
        place = {name: i / max(1, len(names) - 1) for i, name in enumerate(names)}
        values = [place.get(format.number(value), np.nan) for value in column]
        return np.array(values, dtype=float), [(place[name], name) for name in names[:12]]
    log = is_log(column)
    numbers = column.astype(float).to_numpy()
    at = np.log10(numbers) if log else numbers
    low, high = np.nanmin(at), np.nanmax(at)
    span = (high - low) or 1.0
    different = np.unique(numbers[np.isfinite(numbers)])
    if len(different) > 7:
        ticks = np.linspace(low, high, 5)
        shown = [(float((t - low) / span), format.number(float(10**t if log else t), 2))
                 for t in ticks]  # fmt: skip
    else:
        shown = [
            (float(((np.log10(v) if log else v) - low) / span), format.number(float(v)))
            for v in different
        ]
    return (at - low) / span, shown


def parallel_chart(analysis: StudyAnalysis) -> Chart | None:
    """Parallel coordinates: one line a trial through all searched parameters."""
    rows = analysis.complete
    names = [name for name in analysis.searched if rows[name].nunique(dropna=False) > 1]
    if len(names) < 2 or len(rows) < 3:
        return None
    thinning = Thinning(what="trials")
    rows = rows.iloc[thinning.indices(len(rows), 300, always=60)]
    names = names[:8]
    places = [scaled(rows[name])[0] for name in names] + [_by_rank_of_value(rows)]
    paths = np.column_stack(places)
    groups = np.minimum((np.arange(len(rows)) * 4) // max(1, len(rows)), 3)
    texts = ("best quarter", "second quarter", "third quarter", "worst quarter")
    hover = np.array(analysis.hover(rows), dtype=object)
    series = [
        _bundle(paths[groups == g], texts[g], g, list(hover[groups == g])) for g in (3, 2, 1, 0)
    ]
    labels = [(float(i), short_name(name)) for i, name in enumerate(names)]
    labels.append((float(len(names)), analysis.metric))
    return Chart(
        "parallel", "Parameters together",
        "One line a trial through all its parameters; the last axis orders trials by value, the "
        "best lowest. Where the lines of the best quarter run together, the parameter matters.",
        Axis("", labels=tuple(labels), limits=(-0.15, len(names) * 1.08)),
        Axis("low to high on each axis", labels=()),
        tuple(series), thinning.note, wide=True, height=430, texts=_ticks(rows, names), brush=True,
    )  # fmt: skip


def _by_rank_of_value(rows: pd.DataFrame) -> np.ndarray:
    return np.linspace(0, 1, len(rows))


def _bundle(paths: np.ndarray, name: str, group: int, hover: Sequence[str]) -> Series:
    """Lines of one quarter of the trials as one series, with gaps between trials."""
    count, width = paths.shape if len(paths) else (0, 0)
    broken = np.column_stack([paths, np.full(count, np.nan)]) if count else paths
    x = np.tile([*range(width), np.nan], count)
    tone: Tone = "series" if group < 2 else "muted"
    labels = [text for text in hover for _ in range(width + 1)]
    return Series(
        name, list(x), list(broken.ravel()), kind="line", index=group, tone=tone, hover=labels
    )


def _ticks(rows: pd.DataFrame, names: Sequence[str]) -> tuple[tuple[float, float, str], ...]:
    """Tick labels beside every axis."""
    return tuple(
        (float(index), place, text)
        for index, name in enumerate(names)
        for place, text in scaled(rows[name])[1]
    )


# One by one


def slice_charts(analysis: StudyAnalysis) -> list[Chart]:
    """The objective over each searched parameter."""
    rows = analysis.complete
    ranking = analysis.importance.names if analysis.importance else ()
    names = [n for n in analysis.searched if rows[n].nunique(dropna=n != zero_stages.STAGE) > 1]
    names.sort(key=lambda name: ranking.index(name) if name in ranking else len(ranking))
    return [_slice(analysis, name) for name in names[:MOST_SLICES]]


def _slice(analysis: StudyAnalysis, name: str) -> Chart:
    rows, thinning = analysis.complete, Thinning(what="trials")
    rows = rows if name == zero_stages.STAGE else rows.dropna(subset=name)
    rows = rows.iloc[thinning.indices(len(rows), 800, always=50)]
    limits = robust_limits(rows["value"].to_numpy())
    if name == zero_stages.STAGE:
        rows = rows.assign(**{name: rows[name].map(zero_stages.stage_name)})
    if is_number(rows[name]):
        x, axis = rows[name].astype(float).to_numpy(), number_axis(short_name(name), rows[name])
    else:
        kinds = sorted({format.number(value) for value in rows[name]})
        x = np.array([kinds.index(format.number(value)) for value in rows[name]], dtype=float)
        axis = Axis(
            short_name(name), labels=tuple((float(i), text) for i, text in enumerate(kinds))
        )
    series = Series("trials", list(x), list(rows["value"]), hover=analysis.hover(rows),
                    colour=list(rows["number"].astype(float)))  # fmt: skip
    return Chart(
        f"slice_{plain(name)}", f"{capitalize(analysis.metric)} over {short_name(name)}",
        "Later trials are darker: a cloud of dark dots is where the sampler settled. Other "
        "parameters vary too, so read the lower edge.",
        axis, Axis(analysis.metric_axis, limits=limits), (series,),
        notes(thinning.note, beyond(outside(rows["value"].to_numpy(), limits))),
        colour="trial number",
    )  # fmt: skip


def contour_charts(analysis: StudyAnalysis) -> list[Chart]:
    """The objective over pairs of searched parameters, interpolated."""
    rows = analysis.complete
    ordered = analysis.importance.names if analysis.importance else tuple(analysis.searched)
    names = [n for n in ordered if n in rows and is_number(rows[n]) and rows[n].nunique() > 2]
    pairs = list(itertools.combinations(names[:3], 2))[:MOST_CONTOURS]
    return [chart for pair in pairs if (chart := _contour(analysis, *pair))]


def _contour(analysis: StudyAnalysis, one: str, two: str) -> Chart | None:
    rows, thinning = analysis.complete.dropna(subset=[one, two]), Thinning(what="trials")
    rows = rows.iloc[thinning.indices(len(rows), 600, always=50)]
    if len(rows) < 8:
        return None
    limits = robust_limits(rows["value"].to_numpy(), margin=0)
    logs = [is_log(rows[name]) for name in (one, two)]
    series = Series("trials", list(rows[one].astype(float)), list(rows[two].astype(float)),
                    hover=analysis.hover(rows), colour=list(rows["value"]))  # fmt: skip
    return Chart(
        f"contour_{plain(one)}_{plain(two)}",
        capitalize(f"{short_name(one)} and {short_name(two)} together"),
        "Colour is the value, interpolated between the trials (dots); nothing is drawn where "
        "nothing was tried.",
        number_axis(short_name(one), rows[one]), number_axis(short_name(two), rows[two]), (series,),
        thinning.note,
        colour=analysis.metric, colour_limits=limits, surface=_plane(rows, one, two, logs),
    )  # fmt: skip


def _plane(rows: pd.DataFrame, one: str, two: str, logs: Sequence[bool]) -> Surface | None:
    """Linear interpolation inside the convex hull of the trials, on the drawn (log) axes."""
    at = [rows[name].astype(float).to_numpy() for name in (one, two)]
    at = [np.log10(values) if log else values for values, log in zip(at, logs, strict=True)]
    lines = [np.linspace(values.min(), values.max(), LATTICE) for values in at]
    unit = [(v - v.min()) / (np.ptp(v) or 1.0) for v in at]
    grid = np.meshgrid(np.linspace(0, 1, LATTICE), np.linspace(0, 1, LATTICE))
    try:
        z = griddata(np.column_stack(unit), rows["value"].to_numpy(), tuple(grid))
    except (ValueError, RuntimeError):
        return None
    x, y = (10**line if log else line for line, log in zip(lines, logs, strict=True))
    return Surface(x, y, z) if np.isfinite(z).any() else None
