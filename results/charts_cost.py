"""Plots about devices: what their time bought, when they worked, ZeRO stages."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
import pandas as pd

from results import cost, units, zero
from results.chart import Axis, Chart, Series, Thinning, Tone
from results.findings import Findings
from results.reading import TrialRead

MOST_BARS = 40
MOST_SPANS = 1_000
STATES = ("complete", "pruned", "failed", "unfinished")


def cost_charts(found: Findings) -> list[Chart]:
    """Every plot that the study has something to show in."""
    made = [_bought(found), _per_trial(found), _timeline(found)]
    return [chart for chart in made if chart]


def _unit(seconds: float) -> tuple[float, str]:
    """A unit in which a duration is a handy number."""
    if seconds >= 2 * 3600:
        return 3600.0, "hours"
    return (60.0, "minutes") if seconds >= 120 else (1.0, "seconds")


def _bought(found: Findings) -> Chart | None:
    total = sum(found.spent.values())
    if not total:
        return None
    unit, name = _unit(total)
    places = list(range(len(cost.BOUGHT)))[::-1]
    amounts = [found.spent[what] / unit for what in cost.BOUGHT]
    hover = [
        f"{what}: {units.seconds(found.spent[what])} ({units.percent(found.spent[what], total)})"
        for what in cost.BOUGHT
    ]
    series = Series("device time", amounts, places, kind="bar", hover=hover)
    labels = tuple((float(p), what) for p, what in zip(places, cost.BOUGHT, strict=True))
    return Chart(
        "bought", "Device time by what it bought",
        "All devices together. What was pruned bought the answer that those settings lose; what "
        "failed or was retried bought nothing.",
        Axis(f"device {name}"), Axis("", labels=labels), (series,), horizontal=True,
        height=300, wide=True,
    )  # fmt: skip


def _per_trial(found: Findings) -> Chart | None:
    spent = cost.bought(found.table)
    total = spent.sum(axis=1)
    if (total > 0).sum() < 2:
        return None
    thinning = Thinning(what="trials")
    costly = total[total > 0].sort_values(ascending=False, kind="stable").head(MOST_BARS)
    thinning.there, thinning.drawn = int((total > 0).sum()), len(costly)
    unit, name = _unit(float(total.max()))
    places, base = list(range(len(costly))), np.zeros(len(costly))
    series = []
    for index, what in enumerate(cost.BOUGHT):
        amounts = spent.loc[costly.index, what].to_numpy() / unit
        if amounts.any():
            series.append(Series(what, places, list(amounts), kind="bar", index=index,
                                 base=list(base)))  # fmt: skip
        base = base + amounts
    step = max(1, len(places) // 20)
    labels = tuple(
        (float(p), str(found.table.loc[i, "number"]))
        for p, i in list(zip(places, costly.index, strict=True))[::step]
    )
    return Chart(
        "per_trial", "Device time of each trial",
        "The costliest first; colours say what the time went to.",
        Axis("trial", labels=labels), Axis(f"device {name}"), tuple(series), thinning.note,
        wide=True,
    )  # fmt: skip


# Timeline


def spans(trials: Sequence[TrialRead]) -> list[tuple[float, float, str, TrialRead]]:
    """Every attempt as start, end, host and trial; an end nobody saw is its last evaluation."""
    found = []
    for trial in trials:
        starts = [attempt.started for attempt in trial.attempts]
        for index, attempt in enumerate(trial.attempts):
            until = starts[index + 1] if index + 1 < len(starts) else np.inf
            end = _end(trial, attempt.started, until)
            found.append((attempt.started, max(end, attempt.started), attempt.host, trial))
    return sorted(found, key=lambda span: (span[0], span[3].number))


def _end(trial: TrialRead, start: float, until: float) -> float:
    if trial.result and np.isinf(until):
        return trial.result.finished
    times = trial.curve.time
    seen = times[(times >= start) & (times <= until)] if len(times) else times
    return float(seen.max()) if len(seen) else start


def lanes(found: Sequence[tuple[float, float, str, TrialRead]]) -> list[int]:
    """A lane for each span so that none overlap: the fewest lanes a host needs."""
    free: dict[str, list[tuple[float, int]]] = {}
    placed, count = [], 0
    for start, end, host, _ in found:
        heap = free.setdefault(host, [])
        if heap and heap[0][0] <= start:
            lane = heapq.heappop(heap)[1]
        else:
            lane, count = count, count + 1
        heapq.heappush(heap, (end, lane))
        placed.append(lane)
    return placed


def _timeline(found: Findings) -> Chart | None:
    every = spans(found.study.trials)
    if not every:
        return None
    thinning = Thinning(what="attempts")
    places = lanes(every)
    kept = [int(i) for i in thinning.indices(len(every), MOST_SPANS)]
    zero_time = every[0][0]
    unit, name = _unit(max(end for _, end, _, _ in every) - zero_time)
    series = []
    for index, state in enumerate(STATES):
        mine = [i for i in kept if every[i][3].state == state]
        series.append(_span_bars(state, index, mine, every, places, zero_time, unit))
    hosts = {lane: every[i][2] for i, lane in reversed(list(enumerate(places)))}
    labels = tuple((float(lane), f"{hosts[lane]} {lane}") for lane in sorted(hosts))
    return Chart(
        "timeline", "Timeline",
        f"One bar an attempt, one row a place that trials ran in; {_busy(every, places)} of the "
        "rows' time was used. Gaps are devices that waited.",
        Axis(f"{name} since the first start"), Axis("", labels=labels if len(labels) <= 40 else ()),
        tuple(item for item in series if len(item.x)), thinning.note, horizontal=True, wide=True,
        height=min(700, 170 + 26 * len(hosts)),
    )  # fmt: skip


def _span_bars(
    state: str,
    index: int,
    mine: Sequence[int],
    every: Sequence[tuple[float, float, str, TrialRead]],
    places: Sequence[int],
    zero_time: float,
    unit: float,
) -> Series:
    tones: dict[str, Tone] = {"pruned": "muted", "failed": "bad"}
    return Series(
        state, [(every[i][1] - every[i][0]) / unit for i in mine], [places[i] for i in mine],
        kind="bar", index=index, base=[(every[i][0] - zero_time) / unit for i in mine],
        tone=tones.get(state, "series"),
        hover=[f"trial {every[i][3].number}, {state}<br>{units.seconds(every[i][1] - every[i][0])}"
               for i in mine],
    )  # fmt: skip


def _busy(every: Sequence[tuple[float, float, str, TrialRead]], places: Sequence[int]) -> str:
    used = sum(end - start for start, end, _, _ in every)
    whole = max(end for _, end, _, _ in every) - every[0][0]
    return units.percent(used, whole * (max(places) + 1))


# ZeRO


def zero_charts(found: Findings) -> list[Chart]:
    """Cost of each stage and the audit's differences."""
    if not zero.is_searched(found.table):
        return []
    stages = zero.stages(found.table)
    made = [
        _stage_bars(stages, "seconds_per_step", "Seconds per step", "seconds per step", 1.0),
        _stage_bars(stages, "tokens_per_second", "Tokens per second", "tokens per second", 1.0),
        _stage_bars(stages, "peak_memory_bytes", "Peak memory", "peak memory (GB)", 1e-9),
        _parity(found),
    ]
    return [chart for chart in made if chart]


def _stage_bars(
    stages: pd.DataFrame, column: str, title: str, axis: str, unit: float
) -> Chart | None:
    known = stages.dropna(subset=column)
    if known.empty:
        return None
    amounts = list(known[column].astype(float) * unit)
    hover = [f"{stage}: {units.number(value)}" for stage, value in zip(known["stage"], amounts,
                                                                      strict=True)]  # fmt: skip
    labels = tuple((float(i), stage) for i, stage in enumerate(known["stage"]))
    series = Series(title, list(range(len(known))), amounts, kind="bar", hover=hover)
    return Chart(
        f"stage_{column}", f"{title} by ZeRO stage",
        "Medians over each stage's complete trials. Memory is the device's; on CPU the process's.",
        Axis("", labels=labels), Axis(axis), (series,), height=320,
    )  # fmt: skip


def _parity(found: Findings) -> Chart | None:
    if not found.parity:
        return None
    trials = {trial.number: trial for trial in found.study.trials}
    series = []
    for index, pair in enumerate(found.parity[:8]):
        mine, other = trials[pair.reference].curve, trials[pair.other].curve
        steps, at, its = np.intersect1d(mine.step, other.step, return_indices=True)
        apart = (other.eval_loss[its] - mine.eval_loss[at]) / np.abs(mine.eval_loss[at])
        name = f"{pair.stages[1]} against {pair.stages[0]} (trials {pair.other}, {pair.reference})"
        series.append(Series(name, list(steps), list(apart), kind="both", index=index))
    allowed = found.parity[0].allowed
    return Chart(
        "parity", "Loss parity between stages",
        f"Relative difference in eval loss at equal steps. Stages should train the same model: "
        f"beyond ±{units.number(allowed)} rounding no longer explains it.",
        Axis("optimizer step"), Axis("relative difference"), tuple(series), wide=True,
    )  # fmt: skip
