"""Plots about the search: curves, history, parameters together and one by one, rungs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.interpolate import griddata

from results.analysis import zero_stages
from results.analysis.importance import ENOUGH, is_log, is_number
from results.analysis.pareto import Front, Member
from results.analysis.study_analysis import StudyAnalysis, axis_title, settings
from results.data import format
from results.data.folders import TrialRead
from results.data.naming import ranked, sentence, short
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

BEST_CURVES = 12
"""Curves drawn in colour."""
MOST_CURVES = 150
MOST_STEPS = 60
MOST_SLICES = 8
MOST_CONTOURS = 3
LATTICE = 36


def study_charts(found: StudyAnalysis) -> list[Chart]:
    """Every plot that the study has something to show in."""
    made = [
        _curves(found),
        _history(found),
        *_objectives(found),
        _importance(found),
        _rungs(found),
        _parallel(found),
        *_slices(found),
        *_contours(found),
    ]
    return [chart for chart in made if chart]


# Learning curves


def _curves(found: StudyAnalysis) -> Chart | None:
    trials = [trial for trial in found.study.trials if len(trial.curve)]
    if not trials:
        return None
    order = {int(n): place for place, n in enumerate(found.complete["number"])}
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
        for row in found.complete.to_dict("records")
        if row["number"] in shown
    }
    series = [_others(drawn[best:]), *_ends(drawn[best:], limits)]
    series += [
        _curve(trial, index, settings(rows[trial.number], found.telling))
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
    """From the lowest loss up to the start of an ordinary trial."""
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
    """All grey curves as one series, broken between them."""
    x: list[float] = []
    y: list[float] = []
    for trial in trials:
        at = _steps(trial)
        x += [*trial.curve.step[at], np.nan]
        y += [*trial.curve.eval_loss[at], np.nan]
    return Series("other trials", x, y, kind="line", tone="muted")


def _ends(trials: Sequence[TrialRead], limits: tuple[float, float] | None) -> list[Series]:
    """Where pruned and failed trials stopped, and why; far-off ends stand at the axis' top."""
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


def _history(found: StudyAnalysis) -> Chart | None:
    rows = found.complete.sort_values("number")
    if rows.empty:
        return None
    again, rows = rows[rows["confirms"].notna()], rows[rows["confirms"].isna()]
    values = rows["value"].to_numpy()
    limits = robust_limits(values)
    best = np.minimum.accumulate(found.sign * values) * found.sign
    pruned = ranked(found.table, "pruned").dropna(subset="value").sort_values("number")
    thinning = Thinning(what="trials")
    dots, grey = (part.iloc[thinning.indices(len(part))] for part in (rows, pruned))
    series = (
        Series("pruned", list(grey["number"]), list(grey["value"]), tone="muted",
               hover=found.hover(grey)),
        Series("complete", list(dots["number"]), list(dots["value"]), hover=found.hover(dots)),
        Series("repeats over seeds", list(again["number"]), list(again["value"]), index=1,
               hover=found.hover(again)),
        Series("best so far", *_corners(rows["number"].to_numpy(float), best), kind="step",
               tone="best"),
    )  # fmt: skip
    far = outside(values, limits) + outside(pruned["value"].to_numpy(), limits)
    return Chart(
        "history", "Optimization history",
        "Trials in the order they were proposed; the line is the best so far. A line that has "
        "long run flat says that more trials of the same kind will hardly help.",
        Axis("trial number"), Axis(found.metric_axis, limits=limits),
        tuple(item for item in series if len(item.x)),
        notes(thinning.note, beyond(far)), wide=True,
    )  # fmt: skip


def _corners(x: np.ndarray, y: np.ndarray) -> tuple[list[float], list[float]]:
    """The points at which a step line moves, and its end."""
    moves = np.flatnonzero(np.diff(y, prepend=np.nan) != 0)
    kept = np.unique(np.append(moves, len(y) - 1))
    return list(x[kept]), list(y[kept])


def _objectives(found: StudyAnalysis) -> list[Chart]:
    """The first objective against each of the others."""
    front = found.front
    if front is None or not front.members:
        return []
    return [_against_first(found, front, place) for place in range(1, len(front.goals))]


def _against_first(found: StudyAnalysis, front: Front, place: int) -> Chart:
    goal = front.goals[place]
    rows, thinning = found.complete.dropna(subset=goal.column), Thinning(what="trials")
    rows = rows.iloc[thinning.indices(len(rows), always=20)]
    members = sorted(front.members, key=lambda member: member.values[place])
    x, y = [m.values[place] for m in members], [m.values[0] for m in members]
    hover = [_front_words(found, front, member) for member in members]
    series: tuple[Series, ...] = (
        Series("trials", list(rows[goal.column]), list(rows["value"]), tone="muted",
               hover=found.hover(rows)),
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
        sentence(f"{found.metric} against {goal.name}"),
        "Coloured configurations are the Pareto front: none is better in one objective and as "
        "good in the others. Which of them is best is a question of price; the diamond is the "
        "most even.",
        Axis(axis_title(goal.metric)), Axis(found.metric_axis), series, thinning.note, wide=True,
    )  # fmt: skip


def _front_words(found: StudyAnalysis, front: Front, member: Member) -> str:
    trials = ", ".join(map(str, member.group.trials[:5]))
    values = zip(front.goals, member.values, strict=True)
    told = [f"{goal.name} {goal.text(value)}" for goal, value in values]
    return "<br>".join([f"trial {trials}", settings(member.group.row, found.searched), *told])


# Importance


def _importance(found: StudyAnalysis) -> Chart | None:
    shares = found.importance
    if shares is None:
        return None
    places = list(range(len(shares.names)))[::-1]
    both = [("fANOVA", shares.fanova, 0.0 if shares.few else 0.2)]
    if not shares.few:
        both.append(("PED-ANOVA", shares.ped_anova, -0.2))
    series = tuple(
        Series(f"{name}", list(values), [place + lift for place in places], kind="both",
               index=index, hover=[f"{name}<br>{short(key)}: {format.percent(value, 1)}"
                                   for key, value in zip(shares.names, values, strict=True)])
        for index, (name, values, lift) in enumerate(both)
    )  # fmt: skip
    few = (
        f"Only {shares.trials} complete trials: too few to trust, read it as a hint. PED-ANOVA is "
        f"left out, its best tenth would be a trial or two (it needs {ENOUGH} trials)."
        if shares.few
        else f"From {shares.trials:,} complete trials."
    )
    left = ", ".join(map(short, shares.left_out))
    return Chart(
        "importance", "Which parameter matters",
        "fANOVA: share of the variance over all that was tried. PED-ANOVA: what sets the best "
        "tenth apart from the rest.",
        Axis("share", limits=(0.0, 1.02)),
        Axis("", labels=tuple((float(p), short(n)) for p, n in zip(places, shares.names,
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
    """A parameter's values on 0..1 in its own order, and ticks for them."""
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


def _parallel(found: StudyAnalysis) -> Chart | None:
    rows = found.complete
    names = [name for name in found.searched if rows[name].nunique(dropna=False) > 1]
    if len(names) < 2 or len(rows) < 3:
        return None
    thinning = Thinning(what="trials")
    rows = rows.iloc[thinning.indices(len(rows), 300, always=60)]
    names = names[:8]
    places = [scaled(rows[name])[0] for name in names] + [_by_rank_of_value(rows)]
    paths = np.column_stack(places)
    groups = np.minimum((np.arange(len(rows)) * 4) // max(1, len(rows)), 3)
    told = ("best quarter", "second quarter", "third quarter", "worst quarter")
    hover = np.array(found.hover(rows), dtype=object)
    series = [
        _bundle(paths[groups == g], told[g], g, list(hover[groups == g])) for g in (3, 2, 1, 0)
    ]
    labels = [(float(i), short(name)) for i, name in enumerate(names)]
    labels.append((float(len(names)), found.metric))
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
    """Lines of one quarter as one series, broken between trials."""
    count, width = paths.shape if len(paths) else (0, 0)
    broken = np.column_stack([paths, np.full(count, np.nan)]) if count else paths
    x = np.tile([*range(width), np.nan], count)
    tone: Tone = "series" if group < 2 else "muted"
    labels = [text for text in hover for _ in range(width + 1)]
    return Series(
        name, list(x), list(broken.ravel()), kind="line", index=group, tone=tone, hover=labels
    )


def _ticks(rows: pd.DataFrame, names: Sequence[str]) -> tuple[tuple[float, float, str], ...]:
    """What the ends and steps of every axis mean, as text beside it."""
    return tuple(
        (float(index), place, text)
        for index, name in enumerate(names)
        for place, text in scaled(rows[name])[1]
    )


# One by one


def _slices(found: StudyAnalysis) -> list[Chart]:
    rows = found.complete
    ranking = found.importance.names if found.importance else ()
    names = [n for n in found.searched if rows[n].nunique(dropna=n != zero_stages.STAGE) > 1]
    names.sort(key=lambda name: ranking.index(name) if name in ranking else len(ranking))
    return [_slice(found, name) for name in names[:MOST_SLICES]]


def _slice(found: StudyAnalysis, name: str) -> Chart:
    rows, thinning = found.complete, Thinning(what="trials")
    rows = rows if name == zero_stages.STAGE else rows.dropna(subset=name)
    rows = rows.iloc[thinning.indices(len(rows), 800, always=50)]
    limits = robust_limits(rows["value"].to_numpy())
    if name == zero_stages.STAGE:
        rows = rows.assign(**{name: rows[name].map(zero_stages.stage_name)})
    if is_number(rows[name]):
        x, axis = rows[name].astype(float).to_numpy(), number_axis(short(name), rows[name])
    else:
        kinds = sorted({format.number(value) for value in rows[name]})
        x = np.array([kinds.index(format.number(value)) for value in rows[name]], dtype=float)
        axis = Axis(short(name), labels=tuple((float(i), text) for i, text in enumerate(kinds)))
    series = Series("trials", list(x), list(rows["value"]), hover=found.hover(rows),
                    colour=list(rows["number"].astype(float)))  # fmt: skip
    return Chart(
        f"slice_{plain(name)}", f"{sentence(found.metric)} over {short(name)}",
        "Later trials are darker: a cloud of dark dots is where the sampler settled. Other "
        "parameters vary too, so read the lower edge.",
        axis, Axis(found.metric_axis, limits=limits), (series,),
        notes(thinning.note, beyond(outside(rows["value"].to_numpy(), limits))),
        colour="trial number",
    )  # fmt: skip


def _contours(found: StudyAnalysis) -> list[Chart]:
    rows = found.complete
    ordered = found.importance.names if found.importance else tuple(found.searched)
    names = [n for n in ordered if n in rows and is_number(rows[n]) and rows[n].nunique() > 2]
    pairs = list(itertools.combinations(names[:3], 2))[:MOST_CONTOURS]
    return [chart for pair in pairs if (chart := _contour(found, *pair))]


def _contour(found: StudyAnalysis, one: str, two: str) -> Chart | None:
    rows, thinning = found.complete.dropna(subset=[one, two]), Thinning(what="trials")
    rows = rows.iloc[thinning.indices(len(rows), 600, always=50)]
    if len(rows) < 8:
        return None
    limits = robust_limits(rows["value"].to_numpy(), margin=0)
    logs = [is_log(rows[name]) for name in (one, two)]
    series = Series("trials", list(rows[one].astype(float)), list(rows[two].astype(float)),
                    hover=found.hover(rows), colour=list(rows["value"]))  # fmt: skip
    return Chart(
        f"contour_{plain(one)}_{plain(two)}", sentence(f"{short(one)} and {short(two)} together"),
        "Colour is the value, interpolated between the trials (dots); nothing is drawn where "
        "nothing was tried.",
        number_axis(short(one), rows[one]), number_axis(short(two), rows[two]), (series,),
        thinning.note,
        colour=found.metric, colour_limits=limits, surface=_plane(rows, one, two, logs),
    )  # fmt: skip


def _plane(rows: pd.DataFrame, one: str, two: str, logs: Sequence[bool]) -> Surface | None:
    """Linear interpolation inside the hull of the trials, on axes as they are drawn."""
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


# Rungs


def _rungs(found: StudyAnalysis) -> Chart | None:
    """How many trials reached each evaluation step, and how they left."""
    trials = [t for t in found.study.trials if len(t.curve) and t.confirms is None]
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
    spec = found.spec.get("pruner")
    name = spec.get("name") if isinstance(spec, dict) else None
    return Chart(
        "rungs", "Survival over steps",
        f"How many trials the pruner{f' ({name})' if name else ''} let live to each evaluation. "
        "A steep early fall is where the budget was saved.",
        Axis("optimizer step"), Axis("trials"), tuple(series),
    )  # fmt: skip
