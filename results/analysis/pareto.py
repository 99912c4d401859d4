"""Several objectives: the Pareto front, and the leader of each objective."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from results.analysis.leaderboard import Leaderboard, leaderboard
from results.analysis.significance import Group
from results.data.naming import format_noise, metric_name, value_formatter
from results.data.trials_table import metric_column
from trial.store import metrics


@dataclass(frozen=True, slots=True)
class Goal:
    """One of several objectives."""

    metric: str
    column: str
    sign: int
    """1 for minimise, -1 for maximise."""
    table: pd.DataFrame
    """The study's table with this metric as its objective."""
    board: Leaderboard
    """The leaderboard by this objective alone."""

    @property
    def name(self) -> str:
        """Display name of the objective."""
        return metric_name(self.metric)

    def text(self, value: float | None) -> str:
        """A formatted value of the objective."""
        return value_formatter(self.table)(value)

    @property
    def noise(self) -> str:
        """Standard deviation of one run, formatted; empty when nothing was repeated."""
        return "" if self.board.noise is None else format_noise(self.metric, self.board.noise)


@dataclass(frozen=True, slots=True)
class Member:
    """A configuration on the Pareto front."""

    group: Group
    values: tuple[float, ...]
    """Mean of each objective, in the order of the goals."""


@dataclass(frozen=True, slots=True)
class Front:
    """The Pareto front of a study."""

    goals: tuple[Goal, ...]
    members: tuple[Member, ...]
    """Sorted by the first objective, best first."""
    among: int
    """Number of configurations that have a value of every objective."""

    @property
    def compromise(self) -> Member | None:
        """The member nearest to the ideal point, objectives scaled to the front's range.

        None with fewer than three members.
        """
        if len(self.members) < 3:
            return None
        signs = np.array([goal.sign for goal in self.goals])
        values = signs * np.array([member.values for member in self.members])
        span = np.ptp(values, axis=0)
        scaled = (values - values.min(axis=0)) / np.where(span > 0, span, 1.0)
        return self.members[int(np.argmin(np.linalg.norm(scaled, axis=1)))]


def front_of(table: pd.DataFrame, board: Leaderboard) -> Front | None:
    """Pareto front of the study; None with a single objective or without complete trials."""
    listed = table.attrs["objectives"]
    if len(listed) < 2 or not board.standings:
        return None
    goals = tuple(goal_of(table, metric, direction) for metric, direction in listed)
    columns = {goal.column: _by_number(table, goal.column) for goal in goals}
    known = [Member(item.group, _means(item.group, columns)) for item in board.standings]
    known = [member for member in known if all(map(math.isfinite, member.values))]
    points = [
        [goal.sign * value for goal, value in zip(goals, member.values, strict=True)]
        for member in known
    ]
    members = tuple(known[place] for place in metrics.pareto_front(points))
    return Front(goals, members, len(known))


def goal_of(table: pd.DataFrame, metric: str, direction: str) -> Goal:
    """A goal for one metric, with a leaderboard of its own."""
    column = metric_column(metric)
    values = table[column] if column in table else pd.Series(np.nan, index=table.index)
    alone = table.assign(value=values.astype(float))
    alone.attrs = {**table.attrs, "objectives": [[metric, direction]]}
    return Goal(metric, column, -1 if direction == "maximize" else 1, alone, leaderboard(alone))


def _by_number(table: pd.DataFrame, column: str) -> Mapping[int, float]:
    if column not in table:
        return {}
    numbers = table["number"].astype(int)
    return dict(zip(numbers, table[column].astype(float), strict=True))


def _means(group: Group, columns: Mapping[str, Mapping[int, float]]) -> tuple[float, ...]:
    return tuple(
        _mean([known.get(n, math.nan) for n in group.trials]) for known in columns.values()
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
