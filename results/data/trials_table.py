"""Table of a study's trials (pandas): one row per trial folder, in every state."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from results.data.folders import StudyRead, TrialRead, read_study
from trial.config.sections import LoraSection
from trial.store import metrics
from trial.store.folders import StudyFolder
from trial.store.records import Result, Seconds

PHASES: tuple[str, ...] = tuple(Seconds.model_fields)
"""Phases of a trial's wall time, in the order they happen."""

_INTEGERS = (
    "number", "best_step", "steps", "max_steps", "tokens", "trainable_parameters",
    "total_parameters", "peak_memory_bytes", "devices", "attempts", "duplicate_of", "seed",
    "confirms",
)  # fmt: skip
_TEXTS = ("state", "device", "cause_kind", "cause", "problem", "data_hash", "model_hash", "group",
          "measured_on")  # fmt: skip
_FLOATS = (
    "value", "eval_loss", "initial_eval_loss", "scale", "repeated_seconds", "finished",
    "seconds_per_step", "tokens_per_second", "seconds_total", "device_seconds",
    "warm_device_seconds",
    *(f"seconds_{name}" for name in PHASES),
)  # fmt: skip

_OWN_COLUMN = {"seconds": "seconds_total"}
"""Metrics whose column has another name."""
_FURTHER_METRICS = tuple(
    name for name in metrics.METRICS if name not in (*_INTEGERS, *_FLOATS, *_OWN_COLUMN)
)
"""Metrics that the lists above do not name: floats."""

_RESERVED_COLUMNS = frozenset((*_INTEGERS, *_TEXTS, *_FLOATS, *_FURTHER_METRICS))

MEASURED_ON = "measured_on"
"""Column of what the objectives were measured on (`metrics.measured_on`)."""
SEEDS = ("training.seed", "training.data_seed")
"""Keys in which repeats of one configuration may differ."""


@dataclass(frozen=True, slots=True)
class MetricGoal:
    """One objective: a metric and its direction."""

    metric: str = "eval_loss"
    direction: str = "minimize"

    @property
    def lower_is_better(self) -> bool:
        """Whether small values win."""
        return self.direction != "maximize"

    def of(self, result: Result) -> float | None:
        """The objective of a finished trial; None when its result does not have it."""
        return metrics.of_result(result, self.metric)


def trials_table(study: StudyFolder) -> pd.DataFrame:
    """One row per trial folder, in number order.

    Every configuration value that differs between trials is a column by its dotted path.
    `table.attrs` holds `study`, `varied` (those columns), `searched` (the ones that the sampler
    drew) and `objectives` (each a metric and a direction). Columns have the same types for every
    study; numbers that are not known are missing, never zero.
    """
    return table_of(read_study(study, curves=False))


def table_of(study: StudyRead) -> pd.DataFrame:
    """The table of a study that has been read."""
    objectives = objectives_of(study.spec)
    keys = varied_keys(study.trials)
    varied = [column_of(key) for key in keys]
    rows = [_row(trial, keys, objectives[0]) for trial in study.trials]
    results = {trial.number: trial.result for trial in study.trials if trial.result}
    measured = metrics.measured_on(results, [item.metric for item in objectives])
    for row in rows:
        row[MEASURED_ON] = measured.get(row["number"])
    columns = [*_leading(varied), *_trailing(), *_further(study.trials)]
    table = pd.DataFrame(rows, columns=columns, dtype=object)
    for name in table.columns:
        table[name] = _typed(table[name], name)
    drawn = {column_of(name) for trial in study.trials for name in trial.params}
    table.attrs = {
        "study": study.name,
        "searched": [name for name in varied if name in drawn] or _unseeded(varied),
        "varied": varied,
        "objectives": [[item.metric, item.direction] for item in objectives],
    }
    return table


def objectives_of(spec: Mapping[str, Any]) -> list[MetricGoal]:
    """The objectives of a sweep file; eval loss when it names none that can be read."""
    listed = spec.get("objectives")
    found = [
        MetricGoal(str(item["metric"]), str(item.get("direction", "minimize")))
        for item in (listed if isinstance(listed, list) else [])
        if isinstance(item, dict) and "metric" in item
    ]
    return found or [MetricGoal()]


def varied_keys(trials: Sequence[TrialRead]) -> list[str]:
    """Searched keys first, then other keys that differ between the trials' configurations."""
    drawn: dict[str, None] = {}
    seen: dict[str, set[Any]] = {}
    readable = [trial for trial in trials if trial.config]
    for trial in readable:
        drawn |= dict.fromkeys(trial.params)
        for key, value in trial.config.items():
            seen.setdefault(key, set()).add((type(value) is bool, value))
    absent = {key for trial in readable for key in seen.keys() - trial.config.keys()}
    differs = [key for key in seen if len(seen[key]) > 1 or key in absent]
    return list(drawn | dict.fromkeys(differs))


def _unseeded(names: Sequence[str]) -> list[str]:
    return [name for name in names if name not in SEEDS]


def column_of(key: str) -> str:
    """The column of a configuration's key or of a variable: its own name unless that is taken."""
    return f"config.{key}" if key in _RESERVED_COLUMNS else key


def write_table(table: pd.DataFrame, folder: Path) -> tuple[Path, Path]:
    """Write `trials.csv` and `trials.parquet` into `folder`; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    csv, parquet = folder / "trials.csv", folder / "trials.parquet"
    table.to_csv(csv, index=False)
    table.to_parquet(parquet, index=False)
    return csv, parquet


def _leading(varied: Sequence[str]) -> list[str]:
    return ["number", "state", "value", *varied, "scale"]


def _trailing() -> list[str]:
    listed = (*_INTEGERS, *_FLOATS, *_FURTHER_METRICS, *_TEXTS)
    return [name for name in listed if name not in ("number", "state", "value", "scale")]


def _further(trials: Sequence[TrialRead]) -> list[str]:
    """Columns of metrics other than the eval loss."""
    names = {name for trial in trials if trial.result for name in trial.result.metrics}
    return [f"metrics.{name}" for name in sorted(names)]


def metric_column(metric: str) -> str:
    """Name of the column that holds a metric."""
    return _OWN_COLUMN.get(metric, metric if metric in metrics.METRICS else f"metrics.{metric}")


def _row(trial: TrialRead, keys: Sequence[str], objective: MetricGoal) -> dict[str, Any]:
    row: dict[str, Any] = {
        column_of(key): trial.config.get(key, trial.params.get(key)) for key in keys
    }
    row |= {
        "number": trial.number,
        "state": trial.state,
        "scale": _scale(trial.config),
        "attempts": len(trial.attempts),
        "problem": trial.problem or None,
        "repeated_seconds": trial.curve.repeated_seconds,
        "group": group_of(trial.config),
        "seed": trial.config.get("training.seed"),
        "confirms": trial.confirms,
    }
    if trial.attempts:
        row |= {"device": trial.attempts[-1].device, "devices": trial.attempts[-1].devices}
    return row | (_outcome(trial.result, objective) if trial.result else {})


def _outcome(result: Result, objective: MetricGoal) -> dict[str, Any]:
    ran = result.state != "duplicate"
    return {
        "value": objective.of(result),
        "eval_loss": result.eval_loss,
        "best_step": result.best_step,
        "steps": result.steps,
        "max_steps": result.max_steps or None,
        "initial_eval_loss": result.initial_eval_loss,
        "tokens": result.tokens or None,
        "trainable_parameters": result.trainable_parameters or None,
        "total_parameters": result.total_parameters or None,
        "peak_memory_bytes": result.peak_memory_bytes or None,
        **{f"seconds_{name}": getattr(result.seconds, name) for name in PHASES if ran},
        "seconds_per_step": metrics.seconds_per_step(result) if result.steps > 1 else None,
        "tokens_per_second": metrics.tokens_per_second(result) if result.tokens else None,
        "seconds_total": result.seconds.total if ran else None,
        "device_seconds": result.seconds.total * result.devices if ran else None,
        "warm_device_seconds": _warm(result) if ran else None,
        **({"device": result.device} if result.device else {}),
        "devices": result.devices,
        "data_hash": result.data_hash or None,
        "model_hash": result.model_hash or None,
        "cause_kind": result.cause.kind if result.cause else None,
        "cause": _first_line(result.cause.message) if result.cause else None,
        "duplicate_of": result.duplicate_of,
        "finished": result.finished,
        **{name: metrics.of_result(result, name) for name in _FURTHER_METRICS},
        **{f"metrics.{name}": value for name, value in result.metrics.items()},
    }


def _warm(result: Result) -> float:
    """Device seconds without start-up: only a worker's first trial has a start-up."""
    return (result.seconds.total - result.seconds.startup) * result.devices


def group_of(config: Mapping[str, Any]) -> str | None:
    """Key that is equal for repeats of one configuration over seeds, and for nothing else."""
    if not config:
        return None
    items = sorted((key, str(value)) for key, value in config.items() if key not in SEEDS)
    return format(hash_of(items), "016x")


def hash_of(items: Sequence[tuple[str, str]]) -> int:
    """A stable 64-bit hash."""
    text = "\x1e".join(f"{key}\x1f{value}" for key, value in items)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _scale(config: Mapping[str, Any]) -> float | None:
    given = {name: config.get(f"lora.{name}") for name in ("r", "lora_alpha", "use_rslora")}
    if given["r"] is None:
        return None
    try:
        return LoraSection(**{k: v for k, v in given.items() if v is not None}).scale
    except ValueError:
        return None


def _first_line(message: str) -> str:
    return (message.strip().splitlines() or [""])[0][:300]


def _storable(value: object) -> bool:
    """Whether an integer column can hold the value; damaged files may contain anything."""
    return not isinstance(value, int) or -(2**63) <= value < 2**63


def _typed(column: pd.Series, name: str) -> pd.Series:
    if name in (*_INTEGERS, *_FLOATS, *_FURTHER_METRICS) or name.startswith("metrics."):
        column = column.map(lambda value: value if _storable(value) else None)
    if name in _INTEGERS:
        return pd.to_numeric(column, errors="coerce").astype("Int64")
    if name in (*_FLOATS, *_FURTHER_METRICS) or name.startswith("metrics."):
        return pd.to_numeric(column, errors="coerce").astype("float64")
    if name in _TEXTS:
        return column.astype("string")
    return _searched(column)


def _searched(column: pd.Series) -> pd.Series:
    """Column of a searched parameter as Int64, Float64, boolean or string."""
    kinds = {type(value) if _storable(value) else str for value in column.dropna()}
    if kinds == {bool}:
        return column.astype("boolean")
    if kinds and kinds <= {int}:
        return column.astype("Int64")
    if kinds and kinds <= {int, float}:
        return column.astype("float64")
    return column.map(lambda value: None if value is None else str(value)).astype("string")
