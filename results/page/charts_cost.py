"""Charts of device time: by use, by trial, timeline of workers, ZeRO stages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from results.analysis import cost, zero_stages
from results.analysis.study_analysis import CPU_MEMORY, StudyAnalysis
from results.analysis.worker_time import Span, Worker, covered_seconds, lanes
from results.data import format
from results.page import tables
from results.page.chart import Axis, Chart, Series, Thinning, Tone

MOST_BARS = 40
MOST_SPANS = 1_000
THICK = 0.8
_PACKED = " (thin bars side by side are trials that shared it)"
STATES = ("complete", "pruned", "failed", "unfinished")


def cost_charts(analysis: StudyAnalysis) -> list[Chart]:
    """Charts of device time for which the study has data."""
    made = [_time_by_use(analysis), _per_trial(analysis), _timeline(analysis)]
    return [chart for chart in made if chart]


def _unit(seconds: float) -> tuple[float, str]:
    """A readable time unit for a duration, and its seconds."""
    if seconds >= 2 * 3600:
        return 3600.0, "hours"
    return (60.0, "minutes") if seconds >= 120 else (1.0, "seconds")


def _time_by_use(analysis: StudyAnalysis) -> Chart | None:
    total = sum(analysis.spent.values())
    if not total:
        return None
    unit, name = _unit(total)
    lanes = list(range(len(cost.USES)))[::-1]
    amounts = [analysis.spent[what] / unit for what in cost.USES]
    spent = analysis.spent
    hover = [
        f"{what}: {format.seconds(spent[what])} ({format.percent(spent[what], total)})"
        for what in cost.USES
    ]
    series = Series("device time", amounts, lanes, kind="bar", hover=hover)
    labels = tuple((float(p), what) for p, what in zip(lanes, cost.USES, strict=True))
    return Chart(
        "bought", "Device time by what it bought",
        "All devices together. What was pruned bought the answer that those settings lose; what "
        "failed or was retried bought nothing.",
        Axis(f"device {name}"), Axis("", labels=labels), (series,), horizontal=True,
        height=300, wide=True,
    )  # fmt: skip


def _per_trial(analysis: StudyAnalysis) -> Chart | None:
    spent = cost.seconds_by_use(analysis.table)
    total = spent.sum(axis=1)
    if (total > 0).sum() < 2:
        return None
    thinning = Thinning(what="trials")
    costly = total[total > 0].sort_values(ascending=False, kind="stable").head(MOST_BARS)
    thinning.there, thinning.drawn = int((total > 0).sum()), len(costly)
    unit, name = _unit(float(total.max()))
    lanes, base = list(range(len(costly))), np.zeros(len(costly))
    series = []
    for index, what in enumerate(cost.USES):
        amounts = spent.loc[costly.index, what].to_numpy() / unit
        if amounts.any():
            series.append(Series(what, lanes, list(amounts), kind="bar", index=index,
                                 base=list(base)))  # fmt: skip
        base = base + amounts
    step = max(1, len(lanes) // 20)
    labels = tuple(
        (float(p), str(analysis.table.loc[i, "number"]))
        for p, i in list(zip(lanes, costly.index, strict=True))[::step]
    )
    return Chart(
        "per_trial", "Device time of each trial",
        "The costliest first; colours say what the time went to.",
        Axis("trial", labels=labels), Axis(f"device {name}"), tuple(series), thinning.note,
        wide=True,
    )  # fmt: skip


# Timeline


def _timeline(analysis: StudyAnalysis) -> Chart | None:
    workers = analysis.worker_time.workers if analysis.worker_time else ()
    if not workers:
        return None
    lanes, thick = _lanes(workers)
    every = sorted(lanes, key=lambda item: item[0].start)
    thinning = Thinning(what="attempts")
    kept = [every[int(i)] for i in thinning.indices(len(every), MOST_SPANS)]
    zero_time = every[0][0].start
    unit, name = _unit(max(span.end for span, _ in every) - zero_time)
    series = []
    for index, state in enumerate(STATES):
        mine = [(span, lane) for span, lane in kept if span.trial.state == state]
        series.append(_span_bars(state, index, mine, zero_time, unit, thick))
    labels = tuple((float(lane), name) for lane, name in enumerate(tables.worker_names(workers)))
    return Chart(
        "timeline", "Timeline",
        f"One bar an attempt, one row a worker{_PACKED if thick < THICK else ''}; {_busy(workers)} "
        "of their time was used. Gaps are devices that waited.",
        Axis(f"{name} since the first start"), Axis("", labels=labels if len(labels) <= 40 else ()),
        tuple(item for item in series if len(item.x)), thinning.note, horizontal=True, wide=True,
        height=min(700, 170 + 26 * len(workers)),
    )  # fmt: skip


def _lanes(workers: Sequence[Worker]) -> tuple[list[tuple[Span, float]], float]:
    """Attempts with their row (worker) and bar height; packed trials share a worker's row."""
    rows = [lanes(worker.spans) for worker in workers]
    most = 1 + max(max(own) for own in rows)
    thick = THICK / most
    return [
        (span, lane + thick * (row - (most - 1) / 2 if max(own) else 0.0))
        for lane, (worker, own) in enumerate(zip(workers, rows, strict=True))
        for span, row in zip(worker.spans, own, strict=True)
    ], thick


def _span_bars(
    state: str,
    index: int,
    mine: Sequence[tuple[Span, float]],
    zero_time: float,
    unit: float,
    thick: float,
) -> Series:
    tones: dict[str, Tone] = {"pruned": "muted", "failed": "bad"}
    lengths = [span.end - span.start for span, _ in mine]
    return Series(
        state, [length / unit for length in lengths], [lane for _, lane in mine],
        kind="bar", index=index, base=[(span.start - zero_time) / unit for span, _ in mine],
        tone=tones.get(state, "series"), thick=thick,
        hover=[f"trial {span.trial.number}, {state}<br>{format.seconds(length)}"
               for (span, _), length in zip(mine, lengths, strict=True)],
    )  # fmt: skip


def _busy(workers: Sequence[Worker]) -> str:
    used = sum(covered_seconds(worker.spans) for worker in workers)
    every = [span for worker in workers for span in worker.spans]
    whole = max(span.end for span in every) - min(span.start for span in every)
    return format.percent(used, whole * len(workers))


# ZeRO


def zero_charts(analysis: StudyAnalysis) -> list[Chart]:
    """Charts of time and memory by ZeRO stage, and of the parity audit."""
    if not zero_stages.is_searched(analysis.table):
        return []
    stages = zero_stages.stages(analysis.table)
    made = [
        _stage_bars(stages, "seconds_per_step", "Seconds per step", "seconds per step", 1.0),
        _stage_bars(stages, "tokens_per_second", "Tokens per second", "tokens per second", 1.0),
        _stage_bars(
            stages,
            "peak_memory_bytes",
            "Peak memory",
            "peak memory (GB)",
            1e-9,
            f" On the CPU the process's: {CPU_MEMORY}." if analysis.on_cpu else "",
        ),
        _parity(analysis),
    ]
    return [chart for chart in made if chart]


def _stage_bars(
    stages: pd.DataFrame, column: str, title: str, axis: str, unit: float, more: str = ""
) -> Chart | None:
    known = stages.dropna(subset=column)
    if known.empty:
        return None
    amounts = list(known[column].astype(float) * unit)
    hover = [f"{stage}: {format.number(value)}" for stage, value in zip(known["stage"], amounts,
                                                                      strict=True)]  # fmt: skip
    labels = tuple((float(i), stage) for i, stage in enumerate(known["stage"]))
    series = Series(title, list(range(len(known))), amounts, kind="bar", hover=hover)
    return Chart(
        f"stage_{column}", f"{title} by ZeRO stage",
        f"Medians over each stage's complete trials.{more}",
        Axis("", labels=labels), Axis(axis), (series,), height=320,
    )  # fmt: skip


def _parity(analysis: StudyAnalysis) -> Chart | None:
    if not analysis.parity:
        return None
    trials = {trial.number: trial for trial in analysis.study.trials}
    series = []
    for index, pair in enumerate(analysis.parity[:8]):
        mine, other = trials[pair.reference].curve, trials[pair.other].curve
        steps, at, its = np.intersect1d(mine.step, other.step, return_indices=True)
        apart = (other.eval_loss[its] - mine.eval_loss[at]) / np.abs(mine.eval_loss[at])
        name = f"{pair.stages[1]} against {pair.stages[0]} (trials {pair.other}, {pair.reference})"
        series.append(Series(name, list(steps), list(apart), kind="both", index=index))
    allowed = analysis.parity[0].allowed
    return Chart(
        "parity", "Loss parity between stages",
        f"Relative difference in eval loss at equal steps. Stages should train the same model: "
        f"beyond ±{format.number(allowed)} rounding no longer explains it.",
        Axis("optimizer step"), Axis("relative difference"), tuple(series), wide=True,
    )  # fmt: skip
