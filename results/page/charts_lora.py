"""Charts of LoRA settings: learning rate by rank, rank, scale, dropout, loss against cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from results.analysis.importance import is_number
from results.analysis.study_analysis import CPU_MEMORY, RANK, RATE, StudyAnalysis, best_of_each
from results.data.naming import ranked_trials
from results.page.axes import number_axis
from results.page.chart import Axis, Chart, Series, Thinning, beyond, notes, outside, robust_limits

SERIES = 8
"""Largest number of ranks with a colour of their own."""
FEW_RATES = 12
CLOSE = 0.05
"""Share of the range of log rates: rates closer than this were drawn, not listed in a grid."""
CURVE_POINTS = 5
CURVE_FEWEST = 3
"""Fewest trials that a fitted line is drawn through."""


_NO_LINE = (np.empty(0), np.empty(0))


def lora_charts(analysis: StudyAnalysis) -> list[Chart]:
    """Charts of LoRA settings for which the study has data."""
    if analysis.systems:
        return []
    made = [
        _rates(analysis),
        _ranks(analysis),
        _scales(analysis),
        _dropout(analysis),
        *(_front(analysis, *axis) for axis in _COSTS),
    ]
    return [chart for chart in made if chart]


def _has(analysis: StudyAnalysis, *names: str) -> bool:
    rows = analysis.complete
    return all(name in rows and is_number(rows[name]) and rows[name].nunique() > 1
               for name in names)  # fmt: skip


def _by_rank(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Trials by rank; ranks beyond the palette are grouped."""
    if RANK not in rows or not is_number(rows[RANK]) or rows[RANK].nunique() < 2:
        return [("trials", rows)]
    ranks = sorted(rows[RANK].dropna().unique())
    parts = [(f"r {rank}", rows[rows[RANK] == rank]) for rank in ranks[: SERIES - 1]]
    rest = rows[rows[RANK].isin(ranks[SERIES - 1 :])]
    return parts + ([("higher ranks", rest)] if len(rest) else [])


def _rates(analysis: StudyAnalysis) -> Chart | None:
    if not _has(analysis, RATE):
        return None
    rows, thinning = analysis.complete, Thinning(what="trials")
    limits = robust_limits(rows["value"].to_numpy())
    series = []
    for index, (name, part) in enumerate(_by_rank(rows)):
        series += _rate_series(analysis, name, part, index, thinning)
    best = best_of_each(analysis, RANK) if _has(analysis, RANK) else analysis.configurations.head(1)
    pruned = ranked_trials(analysis.alike, "pruned").dropna(subset=["value", RATE])
    pruned = pruned.iloc[thinning.indices(len(pruned), 400, always=20)]
    series.append(
        Series("pruned, last value", list(pruned[RATE]), list(pruned["value"]), tone="muted",
               crossed=True, hover=analysis.hover(pruned))
    )  # fmt: skip
    series.append(
        Series(
            "best", list(best[RATE]), list(best["value"]), tone="best", hover=analysis.hover(best)
        )
    )
    each = " of each rank" if _has(analysis, RANK) else ""
    return Chart(
        "rates", "Loss over learning rate, rank by rank" if each else "Loss over learning rate",
        f"Each dot is a complete trial, a diamond the best{each}; the lower, the better. "
        "Compare the lowest points of the curves, not the curves at one rate. A pruned trial's "
        "cross would have come down further.",
        number_axis("learning rate", analysis.table[RATE].dropna()),
        Axis(analysis.metric_axis, limits=limits),
        tuple(series), notes(thinning.note, beyond(outside(rows["value"].to_numpy(), limits))),
        wide=True,
    )  # fmt: skip


def _rate_series(
    analysis: StudyAnalysis, name: str, part: pd.DataFrame, index: int, thinning: Thinning
) -> list[Series]:
    kept = part.iloc[thinning.indices(len(part), 400, always=20)]
    dots = Series(
        name, list(kept[RATE]), list(kept["value"]), index=index, hover=analysis.hover(kept)
    )
    x, y = _curve(part, _few(analysis.complete[RATE]))
    line = Series(name, list(x), list(y), kind="line", index=index, named=False)
    return [dots, line] if len(x) else [dots]


def _few(rates: pd.Series) -> bool:
    """Whether the study tried few distinct rates, so that means per rate can be drawn."""
    known = np.unique(rates.dropna().to_numpy(float))
    if len(known) < 2 or known[0] <= 0:
        return len(known) <= FEW_RATES
    at = np.log10(known)
    return len(known) <= FEW_RATES and bool(np.diff(at).min() >= CLOSE * np.ptp(at))


def _curve(part: pd.DataFrame, few: bool) -> tuple[np.ndarray, np.ndarray]:
    """Line through the means of few distinct rates, else a parabola over log learning rate.

    The parabola is fitted to the trials inside the axis limits, of at least CURVE_POINTS rates.
    """
    means = part.groupby(RATE)["value"].mean()
    if few:
        lined = len(means) >= CURVE_FEWEST
        return (means.index.to_numpy(float), means.to_numpy()) if lined else _NO_LINE
    limits = robust_limits(part["value"].to_numpy(), margin=0)
    good = part[part["value"].between(*limits)] if limits else part
    good = good[good[RATE] > 0]
    if good[RATE].nunique() < CURVE_POINTS:
        return _NO_LINE
    at = np.log10(good[RATE].to_numpy(float))
    fit = np.polynomial.Polynomial.fit(at, good["value"].to_numpy(), 2)
    x = np.linspace(at.min(), at.max(), 60)
    return 10**x, fit(x)


def _ranks(analysis: StudyAnalysis) -> Chart | None:
    if not _has(analysis, RANK):
        return None
    best = best_of_each(analysis, RANK)
    known, leader = best["low"].notna().any(), analysis.board.leader
    words = (
        "Bars are 95% intervals of the distance to the best of all (dashed): a rank whose bar ends "
        "short of that line is outside its noise. Many ranks want a little more distance (Holm)."
        if known
        else "Single runs, or the only one that was repeated: nobody knows their noise."
    )
    series = Series(
        "best", list(range(len(best))), list(best["value"]), kind="both",
        hover=analysis.hover(best),
        low=list(best["low"]) if known else (), high=list(best["high"]) if known else (),
    )  # fmt: skip
    every: tuple[Series, ...] = (series,)
    if known and leader:
        line = Series("best of all", [0, len(best) - 1], [leader.mean] * 2, kind="line",
                      tone="best", dashed=True)  # fmt: skip
        every = (series, line)
    labels = tuple((float(i), str(rank)) for i, rank in enumerate(best[RANK]))
    return Chart(
        "ranks", "Best of each rank", f"Each rank at its own best settings. {words}",
        Axis("rank r", labels=labels), Axis(analysis.metric_axis), every,
    )  # fmt: skip


def _scales(analysis: StudyAnalysis) -> Chart | None:
    if not _has(analysis, "scale"):
        return None
    return _scatter(
        analysis, "scale", "scale", "Loss over effective scale",
        "The factor on the adapter's update: alpha / r, or alpha / sqrt(r) with rsLoRA. Trials "
        "of one scale stand in one column whatever their rank.",
        "effective scale",
    )  # fmt: skip


def _dropout(analysis: StudyAnalysis) -> Chart | None:
    if not _has(analysis, "lora.lora_dropout"):
        return None
    return _scatter(
        analysis, "dropout", "lora.lora_dropout", "Loss over LoRA dropout",
        "Look at the lowest trials at each dropout: the others have other settings to blame.",
        "LoRA dropout",
    )  # fmt: skip


def _scatter(
    analysis: StudyAnalysis, key: str, column: str, title: str, read: str, axis: str
) -> Chart:
    rows, thinning = analysis.complete.dropna(subset=column), Thinning(what="trials")
    limits = robust_limits(rows["value"].to_numpy())
    series = [
        _dots(analysis, name, part.iloc[thinning.indices(len(part), 400, 20)], column, index)
        for index, (name, part) in enumerate(_by_rank(rows))
    ]
    best = best_of_each(analysis, column)
    series.append(
        Series("best at each", list(best[column]), list(best["value"]), kind="line", tone="best",
               dashed=True)
    )  # fmt: skip
    return Chart(
        key, title, read, number_axis(axis, rows[column]),
        Axis(analysis.metric_axis, limits=limits), tuple(series),
        notes(thinning.note, beyond(outside(rows["value"].to_numpy(), limits))),
    )  # fmt: skip


def _dots(
    analysis: StudyAnalysis, name: str, part: pd.DataFrame, column: str, index: int
) -> Series:
    return Series(
        name, list(part[column].astype(float)), list(part["value"]), index=index,
        hover=analysis.hover(part),
    )  # fmt: skip


_COSTS = (
    ("trainable_parameters", "trained parameters", 1.0),
    ("peak_memory_bytes", "peak memory (GB)", 1e-9),
    ("warm_device_seconds", "device time without start-up (s)", 1.0),
)


def _front(analysis: StudyAnalysis, column: str, axis: str, unit: float) -> Chart | None:
    if not _has(analysis, column):
        return None
    rows = analysis.configurations.dropna(subset=column)
    rows, thinning = rows.sort_values("value", kind="stable"), Thinning(what="configurations")
    limits = robust_limits(rows["value"].to_numpy())
    costs = rows[column].to_numpy(float) * unit
    kept = thinning.indices(len(rows), always=20)
    on_front = pareto(costs, analysis.sign * rows["value"].to_numpy())
    front = rows.iloc[on_front]
    series = (
        Series("configurations", list(costs[kept]), list(rows["value"].iloc[kept]), tone="muted",
               hover=analysis.hover(rows.iloc[kept])),
        Series("front", list(costs[on_front]), list(front["value"]), kind="step", index=0,
               named=False),
        Series("Pareto front", list(costs[on_front]), list(front["value"]),
               index=0, hover=analysis.hover(front)),
    )  # fmt: skip
    return Chart(
        f"front_{column}", f"Loss against {axis.partition(' (')[0]}",
        "Coloured configurations are the Pareto front: whatever is cheaper is worse. "
        f"{_front_words(analysis, column)}",
        number_axis(axis, rows[column] * unit), Axis(analysis.metric_axis, limits=limits), series,
        notes(thinning.note, beyond(outside(rows["value"].to_numpy(), limits))),
    )  # fmt: skip


def _front_words(analysis: StudyAnalysis, column: str) -> str:
    """How to read the front; empty where the measured cost is an artefact of the machine."""
    if analysis.same_work:
        return "But nothing searched here moves this cost: how it differs is the machine's doing."
    if column == "peak_memory_bytes" and analysis.on_cpu:
        return f"But take no memory from it: {CPU_MEMORY}."
    return "Take the first one after which the line runs flat."


def pareto(costs: Sequence[float] | np.ndarray, losses: Sequence[float] | np.ndarray) -> np.ndarray:
    """Indices of the Pareto-optimal points (cost and objective minimised), sorted by cost."""
    cost, loss = np.asarray(costs, dtype=float), np.asarray(losses, dtype=float)
    order = np.lexsort((loss, cost))
    best = np.concatenate([[np.inf], np.minimum.accumulate(loss[order])[:-1]])
    return order[loss[order] < best]
