"""The table of a study on a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from results.analysis.worker_time import KINDS, WorkerTimeBreakdown, worker_time_breakdown
from results.data import format
from results.data.folders import read_study
from results.data.measured import best_of_groups, measured_alike, not_compared
from results.data.naming import (
    first_objective,
    metric_formatter,
    metric_name,
    ranked_trials,
    short_name,
    value_formatter,
)
from results.data.trials_table import metric_column, table_of
from trial.store.folders import StudyFolder

WIDTH = 100
TOP = 20
"""Largest number of complete trials printed."""

FOLDED = 24
"""Width reserved for a column whose text may wrap; it gets the remaining width."""

WIDEST = (40, 28, 20, 14, 11, 8)
"""Candidate maximum widths of a column: the first with which all searched columns fit is used."""


@dataclass(frozen=True, slots=True)
class _Column:
    name: str
    title: str
    text: Callable[[Any], str] = format.number
    is_objective: bool = False


_MEASURES = (
    _Column("scale", "scale"),
    _Column("best_step", "best step"),
    _Column("steps", "steps"),
    _Column("trainable_parameters", "trained", format.count),
    _Column("seconds_total", "time", format.seconds),
    _Column("peak_memory_bytes", "memory", format.size),
    _Column("device", "device", str),
)


def print_table(table: pd.DataFrame, console: Console) -> None:
    """Print a study's trials: complete ones best first, then pruned, failed and others.

    Complete ones are ranked among those that were measured on the same things only.
    """
    width = min(WIDTH, console.width)
    if words := not_compared(table):
        console.print(Text(words), width=width)
    for title, rows, columns in _parts(table):
        searched = table.attrs.get("searched", ())
        console.print(_drawn(title, rows, columns, searched, width), width=width)
    console.print(_counted(table), width=width)


def print_status(study: StudyFolder, console: Console) -> None:
    """Print a study's table and the breakdown of its workers' time."""
    read = read_study(study, curves=False)
    print_table(table_of(read), console)
    if found := worker_time_breakdown(read):
        console.print(_worker_time_line(found), width=min(WIDTH, console.width))


def _worker_time_line(found: WorkerTimeBreakdown) -> Text:
    sums = {kind: sum(worker.seconds[kind] for worker in found.workers) for kind in KINDS}
    whole = sum(sums.values())
    known = sorted(((part, kind) for kind, part in sums.items() if part > 0.005 * whole))
    shares = ", ".join(f"{kind} {format.percent(part, whole)}" for part, kind in reversed(known))
    count = f"{len(found.workers)} worker{'s' * (len(found.workers) != 1)}"
    return Text(f"{count}, {format.seconds(found.makespan)}: {shares}")


def _parts(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame, list[_Column]]]:
    settings = [_Column(name, short_name(name)) for name in table.attrs.get("varied", ())]
    value = _Column("value", metric_name(first_objective(table)[0]), value_formatter(table), True)
    others = [_Column(metric_column(metric), metric_name(metric), metric_formatter(metric), True)
              for metric, _ in table.attrs.get("objectives", ())[1:]]  # fmt: skip
    complete, pruned, failed = (ranked_trials(table, s) for s in ("complete", "pruned", "failed"))
    groups = best_of_groups(table)
    each = complete.iloc[:0]
    if len(groups) > 1:
        numbers = [item.row["number"] for item in groups]
        each = complete.set_index("number", drop=False).loc[numbers]
        complete = ranked_trials(measured_alike(table))
    best = f"Complete, best first{_of(len(complete))}"
    stopped = f"Pruned (value when stopped){_of(len(pruned))}"
    cause = [_Column("cause_kind", "cause", str), _Column("cause", "first line", _clip)]
    parts = [
        (best, complete, [value, *others, *settings, *_measures(others)]),
        (
            "Best of each group, the largest first: not to be compared",
            each,
            [value, *others, *settings, *_measures(others)],
        ),
        (stopped, pruned, [value, *settings, _Column("steps", "stopped at"), _MEASURES[4]]),
        (f"Failed{_of(len(failed))}", failed, [*settings, *cause]),
        ("Unreadable", ranked_trials(table, "unreadable"), [_Column("problem", "problem", str)]),
    ]
    return [(title, rows.head(TOP), columns) for title, rows, columns in parts if len(rows)]


def _measures(others: Sequence[_Column]) -> list[_Column]:
    """Standard columns, without those that are objectives."""
    named = {column.name for column in others}
    return [column for column in _MEASURES if column.name not in named]


def _of(count: int) -> str:
    return f" ({TOP} of {count}; all are in trials.csv)" if count > TOP else ""


def _drawn(
    title: str, rows: pd.DataFrame, columns: Sequence[_Column], searched: Sequence[str], width: int
) -> Table:
    drawn = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    drawn.add_column("trial", justify="right", no_wrap=True)
    shown, widest = _fitting(rows, columns, searched, width)
    for column in shown:
        style = "cyan" if column.name in searched else ""
        head = Text(column.title + ("*" if column.name in searched else ""), style=style)
        drawn.add_column(head, justify="left" if column.text in (str, _clip) else "right",
                         overflow="fold" if column.name in ("cause", "problem") else "ellipsis",
                         max_width=None if column.text is _clip else widest,
                         no_wrap=column.name not in ("cause", "problem"))  # fmt: skip
    for row in rows.to_dict("records"):
        cells = [Text(column.text(row[column.name])) for column in shown]
        drawn.add_row(str(row["number"]), *cells)
    return drawn


def _fitting(
    rows: pd.DataFrame, columns: Sequence[_Column], searched: Sequence[str], width: int
) -> tuple[list[_Column], int]:
    """Columns to print, as many as fit into the width, and the maximum width of one.

    Objectives and searched parameters have priority: long texts are cut before one is dropped.
    """
    shown = [column for column in columns if _tells(rows, column, searched)]
    room = width - 9
    needed = [c for c in shown if c.is_objective or c.name in ("cause", "problem", *searched)]
    widest = next((w for w in WIDEST if sum(_width(rows, c, w) for c in needed) <= room), WIDEST[0])
    first = sorted(shown, key=lambda c: (c not in needed, not c.is_objective))
    kept = set()
    for column in first:
        if (taken := _width(rows, column, widest)) <= room:
            kept.add(column.name)
            room -= taken
    return [column for column in shown if column.name in kept], widest


def _tells(rows: pd.DataFrame, column: _Column, searched: Sequence[str]) -> bool:
    if column.name not in rows:
        return False
    known = rows[column.name].notna()
    always = column.name in ("value", "cause", "cause_kind", "problem", "steps", *searched)
    return bool(known.any()) and (always or rows[column.name].nunique(dropna=False) > 1)


def _width(rows: pd.DataFrame, column: _Column, widest: int) -> int:
    widest = FOLDED if column.name in ("cause", "problem") else widest
    longest = max((len(column.text(value)) for value in rows[column.name]), default=0)
    return min(max(longest, len(column.title) + 1), widest) + 3


def _clip(text: Any) -> str:
    return format.MISSING if format.is_missing(text) else str(text)[:160]


def _counted(table: pd.DataFrame) -> Text:
    counts = Counter(table["state"])
    states = ", ".join(f"{counts[state]} {state}" for state in sorted(counts)) or "no trials"
    spent = format.seconds(float(table["device_seconds"].sum()))
    searched = ", ".join(table.attrs.get("searched", ())) or "nothing"
    return Text(f"{states}; {spent} of device time. * searched: {searched}")
