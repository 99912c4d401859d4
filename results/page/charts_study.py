"""Charts of the search: learning curves, history, objectives, rungs; and those of parameters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from results.analysis.pareto import Front, Member
from results.analysis.study_analysis import StudyAnalysis, axis_title, settings
from results.data import format
from results.data.folders import TrialRead
from results.data.naming import capitalize, ranked_trials
from results.page.chart import (
    Axis,
    Chart,
    Series,
    Thinning,
    Tone,
    beyond,
    notes,
    outside,
    plain,
    robust_limits,
)
from results.page.charts_parameters import (
    contour_charts,
    importance_chart,
    parallel_chart,
    slice_charts,
)

BEST_CURVES = 12
"""Number of best curves drawn in colour."""
MOST_CURVES = 150
MOST_STEPS = 60


def study_charts(analysis: StudyAnalysis) -> list[Chart]:
    """Charts of the search for which the study has data, in the page's order."""
    made = [
        _curves(analysis),
        _history(analysis),
        *_objectives(analysis),
        importance_chart(analysis),
        _rungs(analysis),
        parallel_chart(analysis),
        *slice_charts(analysis),
        *contour_charts(analysis),
    ]
    return [chart for chart in made if chart]


# Learning curves


def _curves(analysis: StudyAnalysis) -> Chart | None:
    alike = set(analysis.alike["number"])
    trials = [t for t in analysis.study.trials if len(t.curve) and t.number in alike]
    if not trials:
        return None
    order = {int(n): place for place, n in enumerate(analysis.complete["number"])}
    trials.sort(key=lambda trial: (order.get(trial.number, len(order)), trial.number))
    # A complete trial may have lost its curve: only what can be drawn counts as the best.
    best = min(BEST_CURVES, sum(trial.number in order for trial in trials))
    thinning = Thinning(what="curves")
    kept = thinning.indices(len(trials), MOST_CURVES, always=best)
    drawn = [trials[int(place)] for place in kept]
    limits = _curve_limits(drawn)
    shown = {trial.number for trial in drawn[:best]}
    rows = {
        row["number"]: {str(name): value for name, value in row.items()}
        for row in analysis.complete.to_dict("records")
        if row["number"] in shown
    }
    series = [_others(drawn[best:]), *_ends(drawn[best:], limits)]
    series += [
        _curve(trial, index, settings(rows[trial.number], analysis.naming_parameters))
        for index, trial in enumerate(drawn[:best])
    ]
    highest = max(np.nanmax(trial.curve.eval_loss, initial=-np.inf) for trial in drawn)
    above = limits is not None and bool(highest > limits[1])
    return Chart(
        "curves", "Learning curves", _curve_words(best, len(drawn)),
        Axis("optimizer step"), Axis("eval loss (nats per token)", limits=limits),
        tuple(item for item in series if len(item.x)),
        notes(thinning.note, "The axis leaves out losses far above the rest." * above), wide=True,
        height=440,
    )  # fmt: skip


def _curve_words(best: int, drawn: int) -> str:
    late = "Falling curves that cross late are worth more steps."
    if best == drawn:
        return f"Each curve is a complete trial. {late}"
    return (
        f"The {best} best trials in colour, the others grey; a cross is where a trial was pruned "
        f"or failed (point at it to see why). {late}"
    )


def _curve_limits(trials: Sequence[TrialRead]) -> tuple[float, float] | None:
    """Axis limits from the lowest loss to the first loss of a median trial."""
    losses = np.concatenate([trial.curve.eval_loss for trial in trials])
    losses = losses[np.isfinite(losses)]
    if not len(losses):
        return None
    firsts = np.array([trial.curve.eval_loss[0] for trial in trials])
    firsts = firsts[np.isfinite(firsts)]
    low, high = float(losses.min()), float(np.median(firsts) if len(firsts) else losses.max())
    high = max(high, float(np.quantile(losses, 0.75)))
    pad = 0.05 * (high - low) or 0.01
    return low - pad, high + pad


def _steps(trial: TrialRead) -> np.ndarray:
    count = len(trial.curve)
    return np.unique(np.linspace(0, count - 1, min(count, MOST_STEPS)).round().astype(int))


def _curve(trial: TrialRead, index: int, words: str) -> Series:
    at = _steps(trial)
    text = f"trial {trial.number}: {words}"
    hover = [f"{text}<br>eval loss {format.loss(float(y))}" for y in trial.curve.eval_loss[at]]
    return Series(
        text, list(trial.curve.step[at]), list(trial.curve.eval_loss[at]), kind="line",
        index=index, hover=hover, dashed=index >= 8,
    )  # fmt: skip


def _others(trials: Sequence[TrialRead]) -> Series:
    """All grey curves as one series with gaps between trials."""
    x: list[float] = []
    y: list[float] = []
    for trial in trials:
        at = _steps(trial)
        x += [*trial.curve.step[at], np.nan]
        y += [*trial.curve.eval_loss[at], np.nan]
    return Series("other trials", x, y, kind="line", tone="muted")


def _ends(trials: Sequence[TrialRead], limits: tuple[float, float] | None) -> list[Series]:
    """Ends of pruned and failed trials; ends above the axis are drawn at its top."""
    made = []
    tones: dict[str, Tone] = {"pruned": "muted", "failed": "bad"}
    for state, tone in tones.items():
        stopped = [trial for trial in trials if trial.state == state]
        y = np.array([trial.curve.eval_loss[-1] for trial in stopped], dtype=float)
        if limits and len(y):
            top = limits[1] - 0.02 * (limits[1] - limits[0])
            y = np.clip(np.nan_to_num(y, nan=top, posinf=top), limits[0], top)
        x = [float(trial.curve.step[-1]) for trial in stopped]
        hover = [_end_words(trial) for trial in stopped]
        made.append(Series(state, x, list(y), tone=tone, hover=hover, crossed=True))
    return made


def _end_words(trial: TrialRead) -> str:
    step, loss = int(trial.curve.step[-1]), format.loss(float(trial.curve.eval_loss[-1]))
    cause = trial.result.cause if trial.result else None
    why = f"<br>{cause.kind}: {cause.message.splitlines()[0][:120]}" if cause else ""
    return f"trial {trial.number} {trial.state} at step {step}<br>eval loss {loss}{why}"


# History


def _history(analysis: StudyAnalysis) -> Chart | None:
    rows = analysis.complete.sort_values("number")
    if rows.empty:
        return None
    again, rows = rows[rows["confirms"].notna()], rows[rows["confirms"].isna()]
    values = rows["value"].to_numpy()
    limits = robust_limits(values)
    best = np.minimum.accumulate(analysis.sign * values) * analysis.sign
    pruned = ranked_trials(analysis.alike, "pruned").dropna(subset="value").sort_values("number")
    thinning = Thinning(what="trials")
    dots, grey = (part.iloc[thinning.indices(len(part))] for part in (rows, pruned))
    series = (
        Series("pruned", list(grey["number"]), list(grey["value"]), tone="muted",
               hover=analysis.hover(grey)),
        Series("complete", list(dots["number"]), list(dots["value"]), hover=analysis.hover(dots)),
        Series("repeats over seeds", list(again["number"]), list(again["value"]), index=1,
               hover=analysis.hover(again)),
        Series("best so far", *_corners(rows["number"].to_numpy(float), best), kind="step",
               tone="best"),
    )  # fmt: skip
    far = outside(values, limits) + outside(pruned["value"].to_numpy(), limits)
    return Chart(
        "history", "Optimization history",
        "Trials in the order they were proposed; the line is the best so far. A line that has "
        "long run flat says that more trials of the same kind will hardly help.",
        Axis("trial number"), Axis(analysis.metric_axis, limits=limits),
        tuple(item for item in series if len(item.x)),
        notes(thinning.note, beyond(far)), wide=True,
    )  # fmt: skip


def _corners(x: np.ndarray, y: np.ndarray) -> tuple[list[float], list[float]]:
    """Points at which a step line changes, and its end."""
    moves = np.flatnonzero(np.diff(y, prepend=np.nan) != 0)
    kept = np.unique(np.append(moves, len(y) - 1))
    return list(x[kept]), list(y[kept])


def _objectives(analysis: StudyAnalysis) -> list[Chart]:
    """Charts of the first objective against each other objective."""
    front = analysis.front
    if front is None or not front.members:
        return []
    return [_against_first(analysis, front, place) for place in range(1, len(front.goals))]


def _against_first(analysis: StudyAnalysis, front: Front, place: int) -> Chart:
    goal = front.goals[place]
    rows, thinning = analysis.complete.dropna(subset=goal.column), Thinning(what="trials")
    rows = rows.iloc[thinning.indices(len(rows), always=20)]
    members = sorted(front.members, key=lambda member: member.values[place])
    x, y = [m.values[place] for m in members], [m.values[0] for m in members]
    hover = [_front_words(analysis, front, member) for member in members]
    series: tuple[Series, ...] = (
        Series("trials", list(rows[goal.column]), list(rows["value"]), tone="muted",
               hover=analysis.hover(rows)),
        # With three objectives the front is a surface: a line through it would mean nothing.
        Series("Pareto front", x, y, kind="both" if len(front.goals) == 2 else "points",
               hover=hover),
    )  # fmt: skip
    best = front.compromise
    if best is not None:
        one = Series("most even", [best.values[place]], [best.values[0]], tone="best",
                     hover=[hover[members.index(best)]])  # fmt: skip
        series = (*series, one)
    return Chart(
        "objectives" if place == 1 else f"objectives_{plain(goal.metric)}",
        capitalize(f"{analysis.metric} against {goal.name}"),
        "Coloured configurations are the Pareto front: none is better in one objective and as "
        "good in the others. Which of them is best is a question of price; the diamond is the "
        "most even.",
        Axis(axis_title(goal.metric)), Axis(analysis.metric_axis), series, thinning.note, wide=True,
    )  # fmt: skip


def _front_words(analysis: StudyAnalysis, front: Front, member: Member) -> str:
    trials = ", ".join(map(str, member.group.trials[:5]))
    values = zip(front.goals, member.values, strict=True)
    texts = [f"{goal.name} {goal.text(value)}" for goal, value in values]
    return "<br>".join([f"trial {trials}", settings(member.group.row, analysis.searched), *texts])


# Rungs


def _rungs(analysis: StudyAnalysis) -> Chart | None:
    """Number of trials that reached each evaluation step, by how they ended."""
    trials = [t for t in analysis.study.trials if len(t.curve) and t.confirms is None]
    if not any(trial.state == "pruned" for trial in trials):
        return None
    last = np.array([trial.curve.step[-1] for trial in trials])
    steps = np.unique(np.concatenate([trial.curve.step for trial in trials]))
    steps = steps[np.unique(np.linspace(0, len(steps) - 1, min(len(steps), 80)).astype(int))]
    series = [
        Series("still training", list(steps), [int((last >= step).sum()) for step in steps],
               kind="step", index=0)
    ]  # fmt: skip
    for state, index in (("pruned", 1), ("failed", 3)):
        gone = np.array([trial.curve.step[-1] for trial in trials if trial.state == state])
        counts = [int((gone <= step).sum()) for step in steps]
        if len(gone):
            series.append(Series(f"{state} by then", list(steps), counts, kind="step",
                                 index=index, dashed=True))  # fmt: skip
    spec = analysis.spec.get("pruner")
    name = spec.get("name") if isinstance(spec, dict) else None
    return Chart(
        "rungs", "Survival over steps",
        f"How many trials the pruner{f' ({name})' if name else ''} let live to each evaluation. "
        "A steep early fall is where the budget was saved.",
        Axis("optimizer step"), Axis("trials"), tuple(series),
    )  # fmt: skip
