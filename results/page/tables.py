"""The tables of a page, made from the trials table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from results.analysis import cost, zero_stages
from results.analysis.leaderboard import Standing
from results.analysis.pareto import Front
from results.analysis.significance import Group, Interval
from results.analysis.study_analysis import StudyAnalysis, settings
from results.analysis.worker_time import KINDS, Worker, WorkerTimeBreakdown
from results.data import format
from results.data.naming import short_name
from results.data.trials_table import MEASURED_ON
from results.page.page import Cell, Grid, Head

MOST_ROWS = 1_000
"""Largest number of rows on the page; the CSV file has all."""

Text = Callable[[Any], str]

_TEXT: Mapping[str, Text] = {
    "best_step": str, "steps": str, "max_steps": str, "seed": str, "number": str,
    "runs": str, "trainable_parameters": format.count, "total_parameters": format.count,
    "tokens": format.count,
    "peak_memory_bytes": format.size, "seconds_total": format.seconds,
    "device_seconds": format.seconds, "warm_device_seconds": format.seconds,
}  # fmt: skip

_TITLES: Mapping[str, str] = {
    "number": "trial", "seconds_total": "time", "device_seconds": "device time",
    "warm_device_seconds": "device time a run",
    "peak_memory_bytes": "peak memory", "trainable_parameters": "trained parameters",
    "cause_kind": "kind", "cause": "first line of the cause", "duplicate_of": "same as trial",
    "seconds_per_step": "s per step", "tokens_per_second": "tokens/s",
}  # fmt: skip


def grid_of(
    analysis: StudyAnalysis,
    key: str,
    caption: str,
    rows: pd.DataFrame,
    names: Sequence[str],
    best: bool = False,
) -> Grid:
    """Table of the columns in `names` that are not empty."""
    kept = [name for name in names if name in rows and rows[name].notna().any()]
    texts: dict[str, Text] = {**_TEXT, "value": analysis.value}
    shown = rows.head(MOST_ROWS)
    cells = [
        [
            _cell(
                name,
                row[name],
                texts.get(name, format.number),
                format.is_missing(row["group"]),
            )
            for name in kept
        ]
        for row in shown.to_dict("records")
    ]
    titles = {**_TITLES, "value": analysis.metric}
    heads = [Head(titles.get(name) or short_name(name), _is_number(rows, name)) for name in kept]
    note = ""
    if len(rows) > len(shown):
        note = f"The first {len(shown):,} of {len(rows):,}; trials.csv holds all."
    return Grid(key, caption, heads, cells, frozenset({0} if best and cells else ()), note=note)


def _cell(name: str, value: Any, text: Text, unread: bool = False) -> Cell:
    if format.is_missing(value) and name == zero_stages.STAGE and not unread:
        return Cell("none", -1)
    if format.is_missing(value):
        return Cell(format.MISSING, "")
    link = f"../trials/{int(value):05d}/" if name == "number" else ""
    return Cell(text(value), value if isinstance(value, int | float) else str(value), link)


def _is_number(rows: pd.DataFrame, name: str) -> bool:
    return pd.api.types.is_numeric_dtype(rows[name]) and not pd.api.types.is_bool_dtype(rows[name])


def leaderboard(analysis: StudyAnalysis) -> Grid:
    """Configurations, best first, with intervals and tests."""
    board = analysis.board
    heads = [
        Head("place"), Head("verdict", False), Head("trials"),
        *(Head(short_name(n), _is_number(analysis.table, n)) for n in analysis.searched),
        Head(f"{analysis.metric} (mean)"), Head("95% interval"), Head("runs"),
        Head("behind the leader"), Head("p (Holm)"),
        Head("device time a run"), Head("trained parameters"),
    ]  # fmt: skip
    shown = board.standings[:MOST_ROWS]
    rows = [_standing(analysis, standing, place) for place, standing in enumerate(shown, 1)]
    kept = [i for i in range(len(heads)) if any(row[i].text != format.MISSING for row in rows)]
    marked = frozenset(i for i, item in enumerate(shown) if item.group is board.recommended)
    note = ""
    if len(board.standings) > len(shown):
        note = f"The first {len(shown):,} of {len(board.standings):,} configurations."
    by = f", by {analysis.metric} alone" if analysis.front else ""
    return Grid(
        "leaderboard", f"Configurations, best first{by}", [heads[i] for i in kept],
        [[row[i] for i in kept] for row in rows], marked, note=note,
    )  # fmt: skip


def groups(analysis: StudyAnalysis) -> Grid:
    """The best trial of every group that was measured on the same things."""
    names = list(dict.fromkeys(name for item in analysis.measured for name in item.names))
    heads = [Head("group", False), *(Head(short_name(name), False) for name in names),
             Head("complete trials"), Head("best trial"), Head(f"best {analysis.metric}"),
             Head("measured on", False)]  # fmt: skip
    rows = [
        [
            Cell(item.label),
            *(_cell(name, item.row[name] if name in item.names else None, format.number)
              for name in names),
            Cell(str(item.trials), item.trials), _cell("number", item.row["number"], str),
            Cell(analysis.value(item.row["value"]), item.row["value"]),
            Cell(item.row[MEASURED_ON]),
        ]
        for item in analysis.measured[:MOST_ROWS]
    ]  # fmt: skip
    return Grid("groups", "Best of each group; their values are not compared", heads, rows)


def _interval(analysis: StudyAnalysis, ends: Interval | None) -> str:
    if ends is None:
        return format.MISSING
    return f"{analysis.value(ends.low)} to {analysis.value(ends.high)}"


def _standing(analysis: StudyAnalysis, standing: Standing, place: int) -> list[Cell]:
    group, against = standing.group, standing.comparison
    alone = analysis.board.noise is None
    ends = group.interval
    behind = ""
    if against:
        reach = (
            f"{format.number(against.interval.low, 3)} to {format.number(against.interval.high, 3)}"
        )
        behind = f"{format.number(against.difference, 3)} ({reach})"
    return [
        Cell(str(standing.tier or place) if standing.tier or alone else format.MISSING, place),
        Cell(verdict(analysis, standing)),
        _trials(group),
        *(_cell(name, group.row[name], format.number) for name in analysis.searched),
        Cell(analysis.value(group.mean), group.mean),
        Cell(_interval(analysis, ends), ends.low if ends else ""),
        Cell(str(len(group.values)), len(group.values)),
        Cell(behind or format.MISSING, against.difference if against else ""),
        Cell(p_value(against.adjusted) if against else format.MISSING,
             against.adjusted if against else ""),
        Cell(format.seconds(group.device_seconds), group.device_seconds),
        _cell("", group.row["trainable_parameters"], format.count),
    ]  # fmt: skip


def front(analysis: StudyAnalysis, of: Front) -> Grid:
    """Configurations on the Pareto front."""
    heads = [
        Head("trials"),
        *(Head(short_name(n), _is_number(analysis.table, n)) for n in analysis.searched),
    ]
    heads += [Head(f"{goal.name} (mean)") for goal in of.goals]
    heads += [Head("runs"), Head("device time a run"), Head("", False)]
    best = [goal.board.leader for goal in of.goals]
    rows = []
    for member in of.members[:MOST_ROWS]:
        group = member.group
        names = [
            goal.name
            for goal, leader in zip(of.goals, best, strict=True)
            if leader is not None and leader.trials == group.trials
        ]
        texts = [f"best {' and '.join(names)}"] * bool(names)
        texts += ["most even"] * (member is of.compromise)
        rows.append([
            _trials(group),
            *(_cell(name, group.row[name], format.number) for name in analysis.searched),
            *(Cell(goal.text(value), value)
              for goal, value in zip(of.goals, member.values, strict=True)),
            Cell(str(len(group.values)), len(group.values)),
            Cell(format.seconds(group.device_seconds), group.device_seconds),
            Cell(", ".join(texts)),
        ])  # fmt: skip
    marked = frozenset(i for i, member in enumerate(of.members) if member is of.compromise)
    return Grid("front", "Pareto front: no configuration is better in one objective and as good "
                "in the others", heads, rows, marked)  # fmt: skip


def leaders(analysis: StudyAnalysis, of: Front) -> Grid:
    """Leader and ties of each objective."""
    heads = [
        Head("objective", False), Head("trials"), Head("leader", False), Head("mean"),
        Head("95% interval"), Head("runs"), Head("tied with it"), Head("noise of one run"),
    ]  # fmt: skip
    rows = []
    for goal in of.goals:
        leader = goal.board.leader
        if leader is None:
            continue
        ends, one = leader.interval, goal.board.noise
        rows.append([
            Cell(goal.name), _trials(leader),
            Cell(settings(leader.row, analysis.naming_parameters)),
            Cell(goal.text(leader.mean), leader.mean),
            Cell(f"{goal.text(ends.low)} to {goal.text(ends.high)}" if ends else format.MISSING,
                 ends.low if ends else ""),
            Cell(str(len(leader.values)), len(leader.values)),
            Cell(format.MISSING if one is None else str(max(0, len(goal.board.tied) - 1))),
            Cell(f"± {goal.noise}" if goal.noise else format.MISSING, one or ""),
        ])  # fmt: skip
    return Grid("leaders", "Best in each objective alone", heads, rows)


def _trials(group: Group) -> Cell:
    """The trials of a configuration, with a link to the first."""
    more = len(group.trials) - 3
    text = ", ".join(map(str, group.trials[:3])) + (f" + {more}" if more > 0 else "")
    return Cell(text, group.trials[0], f"../trials/{group.trials[0]:05d}/")


def p_value(p: float) -> str:
    """Formatted p value."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def verdict(analysis: StudyAnalysis, standing: Standing) -> str:
    """Verdict on a configuration in words."""
    board = analysis.board
    cheapest = standing.group is board.recommended
    if board.noise is None:
        return "best of single runs" if cheapest else "one run"
    if standing.tier == 1:
        alone = len(board.tied) == 1
        return "wins" if alone else "tied: take this" if cheapest else "tied"
    if standing.tier is not None:
        return "worse"
    return "one run, within noise" if standing.within_noise else "one run, worse"


def best_per(analysis: StudyAnalysis, name: str, rows: pd.DataFrame) -> Grid:
    """The best trial at each value of a parameter."""
    others = [other for other in analysis.searched if other != name]
    names = [name, "value", "runs", *others, "number", "trainable_parameters"]
    names += ["warm_device_seconds"]
    return grid_of(
        analysis, f"best_{name}", f"Best configuration at each {short_name(name)}", rows, names
    )


def spending(analysis: StudyAnalysis) -> Grid:
    """Device time by use, with its price."""
    total = sum(analysis.spent.values())
    heads = [Head("what", False), Head("device time"), Head("device hours"), Head("share")]
    heads += [Head("cost")] if analysis.price else []
    rows = [_amount(analysis, name, analysis.spent[name], total) for name in cost.USES]
    rows.append(_amount(analysis, "in all", total, total))
    return Grid(
        "spending", "Device time by what it bought", heads, rows, frozenset({len(rows) - 1})
    )


def _amount(analysis: StudyAnalysis, name: str, seconds: float, total: float) -> list[Cell]:
    cells = [
        Cell(name), Cell(format.seconds(seconds), seconds),
        Cell(f"{seconds / 3600:.3g}", seconds), Cell(format.percent(seconds, total), seconds),
    ]  # fmt: skip
    return cells + ([Cell(analysis.price.of(seconds), seconds)] if analysis.price else [])


def trial_spending(analysis: StudyAnalysis) -> Grid:
    """Device time of every trial by use, the costliest first."""
    spent = cost.seconds_by_use(analysis.table)
    order = spent.sum(axis=1).sort_values(ascending=False, kind="stable").index[:MOST_ROWS]
    kept = [name for name in cost.USES if spent[name].any()]
    heads = [Head("trial"), Head("state", False), *map(Head, kept), Head("in all")]
    heads += [Head("cost")] if analysis.price else []
    rows = []
    for index in order:
        number, total = int(analysis.table.loc[index, "number"]), float(spent.loc[index].sum())
        cells = [Cell(str(number), number, f"../trials/{number:05d}/")]
        cells.append(Cell(str(analysis.table.loc[index, "state"])))
        cells += [Cell(format.seconds(v), v) for v in (float(spent.loc[index, n]) for n in kept)]
        cells.append(Cell(format.seconds(total), total))
        rows.append(cells + ([Cell(analysis.price.of(total), total)] if analysis.price else []))
    return Grid("trial_spending", "Device time of each trial", heads, rows, brief=10)


def worker_names(workers: Sequence[Worker]) -> list[str]:
    """Workers by number, with their host where there are several."""
    several = len({worker.host for worker in workers}) > 1
    return [
        f"worker {n}" + (f" ({worker.host})" if several else "") for n, worker in enumerate(workers)
    ]


def workers(analysis: WorkerTimeBreakdown) -> Grid:
    """Time of each worker by use."""
    sums = {kind: sum(worker.seconds[kind] for worker in analysis.workers) for kind in KINDS}
    kinds = [kind for kind in KINDS if sums[kind] >= 0.05]
    names = worker_names(analysis.workers[:MOST_ROWS])
    rows = [
        _seconds(name, worker.seconds, kinds)
        for name, worker in zip(names, analysis.workers, strict=False)
    ]
    whole = sum(sums.values())
    share = [Cell(format.percent(sums[kind], whole), sums[kind]) for kind in kinds]
    rows += [
        _seconds("all workers", sums, kinds),
        [Cell("share"), *share, Cell(format.percent(whole, whole), whole)],
    ]
    note = (
        f"The study ran for {format.seconds(analysis.makespan)}; each row adds up to the time in "
        "which its worker was part of that."
    )
    if analysis.apart > 0:
        note += f" {format.seconds(analysis.apart)} between runs without any worker are left out."
    heads = [Head("worker", False), *map(Head, kinds), Head("in all")]
    return Grid("workers", "Where every worker's time went", heads, rows,
                frozenset({len(rows) - 2}), note=note)  # fmt: skip


def _seconds(name: str, seconds: Mapping[str, float], kinds: Sequence[str]) -> list[Cell]:
    whole = sum(seconds.values())
    return [
        Cell(name),
        *(Cell(format.seconds(seconds[kind]), seconds[kind]) for kind in kinds),
        Cell(format.seconds(whole), whole),
    ]


def stages(analysis: StudyAnalysis) -> Grid:
    """Time and memory of each ZeRO stage."""
    heads = [Head("stage", False), Head("trials"), Head("s per step"), Head("tokens/s"),
             Head("peak memory"), Head("eval loss")]  # fmt: skip
    rows = [
        [
            Cell(str(row["stage"])), Cell(str(row["trials"]), row["trials"]),
            _cell("", row["seconds_per_step"], format.number),
            _cell("", row["tokens_per_second"], format.number),
            _cell("", row["peak_memory_bytes"], format.size),
            _cell("", row["eval_loss"], format.loss),
        ]
        for row in zero_stages.stages(analysis.table).to_dict("records")
    ]  # fmt: skip
    return Grid("stages", "ZeRO stages, medians over complete trials", heads, rows)


def parity(analysis: StudyAnalysis) -> Grid:
    """Loss-parity audit, one row per pair."""
    heads = [Head("stages", False), Head("trials", False), Head("evaluations compared"),
             Head("largest relative difference"), Head("at step"), Head("allowed"),
             Head("verdict", False)]  # fmt: skip
    rows = [
        [
            Cell(f"{pair.stages[1]} against {pair.stages[0]}"),
            Cell(f"{pair.other}, {pair.reference}"), Cell(str(pair.steps), pair.steps),
            Cell(f"{pair.worst:.2g}", pair.worst), Cell(str(pair.at_step), pair.at_step),
            Cell(f"{pair.allowed:.0e}", pair.allowed),
            Cell("agree" if pair.agrees else "disagree"),
        ]
        for pair in analysis.parity[:MOST_ROWS]
    ]  # fmt: skip
    return Grid("parity", "Loss parity between stages", heads, rows)


def failures(analysis: StudyAnalysis) -> tuple[Grid, Grid]:
    """Failures by kind, and each with its settings, cause and log."""
    rows = analysis.table[analysis.table["state"].isin(["failed", "unreadable"])]
    kinds = rows["cause_kind"].fillna("unreadable folder")
    counted = [[Cell(str(kind)), Cell(str(n), n)] for kind, n in kinds.value_counts().items()]
    by_kind = Grid("failure_kinds", "Failures by kind", [Head("kind", False), Head("trials")],
                   sorted(counted, key=lambda row: row[0].text))  # fmt: skip
    heads = [Head("trial"), Head("kind", False), Head("settings", False),
             Head("first line of the cause", False), Head("log", False)]  # fmt: skip
    listed = [
        _failure({str(name): value for name, value in row.items()}, analysis.searched)
        for row in rows.head(MOST_ROWS).to_dict("records")
    ]
    return by_kind, Grid("failures", "Every failure", heads, listed)


def _failure(row: Mapping[str, Any], searched: Sequence[str]) -> list[Cell]:
    number = int(row["number"])
    log = f"trials/{number:05d}/train.log"
    known = [row[name] for name in ("cause", "problem") if not format.is_missing(row[name])]
    kind = row["cause_kind"]
    return [
        Cell(str(number), number, f"../trials/{number:05d}/"),
        Cell("unreadable" if format.is_missing(kind) else str(kind)),
        Cell(settings(row, searched)), Cell(str(known[0]) if known else format.MISSING),
        Cell(log, log, f"../{log}"),
    ]  # fmt: skip
