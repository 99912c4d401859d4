"""Several objectives: the configurations that none beats in all, and who leads in each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from results.analysis.leaderboard import Leaderboard, leaderboard
from results.analysis.significance import Group
from results.data.naming import noise_text, value_text, words
from results.data.trials_table import metric_column
from trial.store import metrics


@dataclass(frozen=True, slots=True)
class Goal:
    """One objective of several."""

    metric: str
    column: str
    sign: int
    """1 when low values win, else -1."""
    table: pd.DataFrame
    """The study's table as if this were its only objective."""
    board: Leaderboard
    """The configurations ranked by it alone."""

    @property
    def name(self) -> str:
        """The objective in words."""
        return words(self.metric)

    def text(self, value: float | None) -> str:
        """A value of it as text."""
        return value_text(self.table)(value)

    @property
    def noise(self) -> str:
        """How far one run of it varies, as text; empty when nobody knows."""
        return "" if self.board.noise is None else noise_text(self.metric, self.board.noise)


@dataclass(frozen=True, slots=True)
class Member:
    """A configuration on the front."""

    group: Group
    values: tuple[float, ...]
    """Its mean of each objective, in their order."""


@dataclass(frozen=True, slots=True)
class Front:
    """What several objectives leave to choose from."""

    goals: tuple[Goal, ...]
    members: tuple[Member, ...]
    """From the best of the first objective to the worst."""
    among: int
    """Configurations with a value of every objective."""

    @property
    def compromise(self) -> Member | None:
        """The member nearest to the best of every objective, each scaled to the front's range."""
        if len(self.members) < 3:
            return None
        signs = np.array([goal.sign for goal in self.goals])
        values = signs * np.array([member.values for member in self.members])
        span = np.ptp(values, axis=0)
        scaled = (values - values.min(axis=0)) / np.where(span > 0, span, 1.0)
        return self.members[int(np.argmin(np.linalg.norm(scaled, axis=1)))]


def front_of(table: pd.DataFrame, board: Leaderboard) -> Front | None:
    """The front of a study's configurations; None with one objective or nothing complete."""
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
    members = tuple(known[place] for place in metrics.front(points))
    return Front(goals, members, len(known))


def goal_of(table: pd.DataFrame, metric: str, direction: str) -> Goal:
    """One metric as if it were the study's only objective."""
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
