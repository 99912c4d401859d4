"""All quantities that a report or comparison shows, computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from results.analysis import cost, zero_stages
from results.analysis.importance import Importance, importance
from results.analysis.leaderboard import Leaderboard, Standing, leaderboard
from results.analysis.pareto import Front, front_of
from results.analysis.worker_time import WorkerTimeBreakdown, worker_time_breakdown
from results.data import format
from results.data.folders import StudyRead
from results.data.measured import MeasuredGroup, best_of_groups, measured_alike
from results.data.naming import (
    first_objective,
    format_noise,
    lower_is_better,
    metric_name,
    ranked_trials,
    short_name,
    value_formatter,
)
from results.data.trials_table import SEEDS, metric_column, table_of

RANK = "lora.r"
RATE = "training.learning_rate"
MOST_TOLD = 3
CPU_MEMORY = (
    "on the CPU it is that of the worker's process, which keeps what earlier trials have left in it"
)


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """Options of a report."""

    price_per_device_hour: float | None = None
    """Overrides the sweep file's price."""
    currency: str = ""
    """Currency name or sign."""
    made: str = ""
    """Time stamp to print; none by default, so that equal folders give equal bytes."""


@dataclass(frozen=True, slots=True)
class StudyAnalysis:
    """A study's content and the results computed from it."""

    study: StudyRead
    table: pd.DataFrame
    """All trials."""
    alike: pd.DataFrame
    """The trials of the largest group that was measured on the same things: what is ranked."""
    board: Leaderboard
    configurations: pd.DataFrame
    """Result of `configurations`."""
    importance: Importance | None
    spent: Mapping[str, float]
    price: cost.Price | None
    parity: Sequence[zero_stages.Parity]
    front: Front | None
    """Pareto front; None with a single objective."""
    worker_time: WorkerTimeBreakdown | None
    """Use of each worker's time."""
    options: ReportOptions

    @property
    def spec(self) -> Mapping[str, Any]:
        """The resolved sweep file."""
        return self.study.spec

    @property
    def searched(self) -> list[str]:
        """Searched keys by dotted path, without seeds."""
        return [name for name in self.table.attrs["searched"] if name not in SEEDS]

    @property
    def metric(self) -> str:
        """Display name of the objective."""
        return metric_name(first_objective(self.table)[0])

    @property
    def objectives(self) -> list[tuple[str, str]]:
        """Every objective's metric and the column that holds it."""
        return [(metric, metric_column(metric)) for metric, _ in self.table.attrs["objectives"]]

    @property
    def metric_axis(self) -> str:
        """Axis title of the objective, with its unit."""
        return axis_title(first_objective(self.table)[0])

    @property
    def sign(self) -> int:
        """1 for minimise, -1 for maximise."""
        return 1 if lower_is_better(self.table) else -1

    @property
    def naming_parameters(self) -> list[str]:
        """At most three searched parameters that name a configuration in sentences."""
        ranking = self.importance.names if self.importance else ()
        first = [name for name in (RANK, RATE, *ranking, *self.searched) if name in self.searched]
        return list(dict.fromkeys(first))[:MOST_TOLD]

    @property
    def systems(self) -> bool:
        """Whether only system settings (ZeRO stage, DeepSpeed) were searched."""
        names = self.searched
        return bool(names) and all(
            n == zero_stages.STAGE or n.startswith("deepspeed.") for n in names
        )

    @property
    def complete(self) -> pd.DataFrame:
        """Complete trials with a value that were measured on the same things, best first."""
        return ranked_trials(self.alike).dropna(subset="value")

    @property
    def measured(self) -> list[MeasuredGroup]:
        """The groups of trials that were measured on the same things, the largest first."""
        return best_of_groups(self.table)

    @property
    def noise(self) -> str:
        """Standard deviation of one run, formatted; empty when nothing was repeated."""
        known = self.board.noise
        return "" if known is None else format_noise(first_objective(self.table)[0], known)

    @property
    def on_cpu(self) -> bool:
        """Whether the complete trials ran on the CPU: their peak memory is their process's."""
        devices = self.complete["device"].dropna()
        return bool(len(devices)) and bool((devices == "cpu").all())

    @property
    def same_work(self) -> bool:
        """Whether the configurations differ only in settings that do not change cost."""
        works = {standing.group.work for standing in self.board.standings}
        return len(works) == 1 and None not in works

    def value(self, number: float | None) -> str:
        """Formatted value of the objective."""
        return value_formatter(self.table)(number)

    def gap(self, number: float) -> str:
        """Formatted difference of two values, with the digits that are significant."""
        return format.number(number, 2) if 0 < abs(number) < 1e-3 else self.value(number)

    def hover(self, rows: pd.DataFrame) -> list[str]:
        """Hover label of each row's trial."""
        return hover(rows, self.searched, self.metric, value_formatter(self.table))


def analyse(study: StudyRead, options: ReportOptions | None = None) -> StudyAnalysis:
    """Analyse a study for a report."""
    options = options or ReportOptions()
    table = table_of(study)
    alike = measured_alike(table)
    board = leaderboard(alike)
    return StudyAnalysis(
        study=study,
        table=table,
        alike=alike,
        board=board,
        configurations=configurations(alike, board),
        importance=importance(alike),
        spent=cost.total_by_use(table),
        price=cost.price_of(study.spec, options.price_per_device_hour, options.currency),
        parity=zero_stages.audit(study) if zero_stages.is_searched(table) else (),
        front=front_of(alike, board),
        worker_time=worker_time_breakdown(study),
        options=options,
    )


def configurations(table: pd.DataFrame, board: Leaderboard) -> pd.DataFrame:
    """One row per configuration in the leaderboard's order: its first trial's row and its means.

    Adds `runs`, and `low` and `high`: the leader's mean plus the 95% interval of the distance from
    it.
    """
    groups = [standing.group for standing in board.standings]
    places = {int(number): place for place, number in enumerate(table["number"])}
    rows = table.iloc[[places[group.trials[0]] for group in groups]].reset_index(drop=True)
    ends = [_reach(board, standing, lower_is_better(table)) for standing in board.standings]
    return rows.assign(
        value=[group.mean for group in groups],
        warm_device_seconds=[group.device_seconds for group in groups],
        runs=[len(group.values) for group in groups],
        low=[low for low, _ in ends],
        high=[high for _, high in ends],
    )


def _reach(board: Leaderboard, standing: Standing, lower: bool) -> tuple[float, float]:
    """Interval of a configuration's mean, relative to the leader's mean."""
    if standing.comparison is None or board.leader is None:
        return float("nan"), float("nan")
    ends, mean = standing.comparison.interval, board.leader.mean
    return (mean + ends.low, mean + ends.high) if lower else (mean - ends.high, mean - ends.low)


def best_of_each(found: StudyAnalysis, name: str) -> pd.DataFrame:
    """Best configuration at each value of `name`, sorted by that value.

    Configurations with repeats come before single runs, which may be luck.
    """
    rows = found.configurations
    if name not in rows:
        return rows.iloc[:0]
    rows = rows.dropna(subset=name).assign(single=rows["runs"] == 1, key=found.sign * rows["value"])
    return rows.sort_values(["single", "key", "number"]).drop_duplicates(name).sort_values(name)


def better_when_pruned(found: StudyAnalysis, name: str) -> pd.DataFrame:
    """Values of `name` at which a pruned trial was already better than every complete one.

    One row each: the pruned trial's. Only for objectives that evaluations report along the way.
    """
    best = best_of_each(found, name)
    if best.empty or found.objectives[0][0] not in ("eval_loss", "eval_loss_per_byte"):
        return found.table.iloc[:0]
    pruned = (
        ranked_trials(found.alike, "pruned").dropna(subset=["value", name]).drop_duplicates(name)
    )
    reached = pruned[name].map(dict(zip(best[name], best["value"], strict=True)))
    return pruned[(found.sign * (reached - pruned["value"]) > 0).fillna(False)].sort_values(name)


def axis_title(metric: str) -> str:
    """Axis title of a metric, with its unit."""
    known = {
        "eval_loss": "eval loss (nats per token)",
        "eval_loss_per_byte": "eval loss (nats per byte)",
        "seconds": "time (s)",
        "seconds_per_step": "seconds per step",
        "tokens_per_second": "tokens per second",
        "peak_memory_bytes": "peak memory (bytes)",
        "trainable_parameters": "trained parameters",
    }
    return known.get(metric, metric_name(metric))


def settings(row: Mapping[str, Any] | pd.Series, names: Sequence[str]) -> str:
    """Settings in words: `r 16, learning rate 0.001`; `the base` when there are none."""
    texts = [_setting(name, row[name]) for name in names if name in row]
    return ", ".join(text for text in texts if text) or "the base"


def _setting(name: str, value: Any) -> str:
    if format.is_missing(value):
        return zero_stages.stage_name(None) if name == zero_stages.STAGE else ""
    return f"{short_name(name)} {format.number(value, 3)}"


def hover(
    rows: pd.DataFrame, searched: Sequence[str], metric: str, text: Any = format.number
) -> list[str]:
    """Hover label of each trial."""
    labels = []
    kept = ["number", "value", *(name for name in searched if name in rows)]
    for row in rows[kept].to_dict("records"):
        line = settings({str(name): value for name, value in row.items()}, searched)
        labels.append(f"trial {row['number']}<br>{metric} {text(row['value'])}<br>{line}")
    return labels
