"""Metrics that a sweep can optimise, of a result or of an evaluation. Torch-free."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from trial.config.objective_registry import METRICS as EVALUATED
from trial.store.records import DataSummary, Evaluation, Result


def seconds_per_step(result: Result) -> float:
    """Mean wall seconds of an optimizer step, without the first and its compilation."""
    return result.seconds.train / max(1, result.steps - 1)


def tokens_per_second(result: Result) -> float:
    """Training tokens without padding per second of all optimizer steps."""
    busy = result.seconds.train + result.seconds.first_step
    return result.tokens / busy if busy else math.nan


def eval_loss_per_byte(result: Result) -> float | None:
    """Nats of the eval set per UTF-8 byte of the text that counts, special tokens left out.

    Equal models have equal values whatever their tokenizers and `max_length`, as long as no answer
    of the eval set was cut.
    """
    share = result.data.tokens_per_byte if result.data else None
    return None if share is None or result.eval_loss is None else result.eval_loss * share


class Metric(NamedTuple):
    """A metric that every trial has."""

    read: Callable[[Result], float | None]
    """From a trial's result; None where it has none."""
    direction: Literal["minimize", "maximize"] = "minimize"
    at: Callable[[Evaluation], float | None] | None = None
    """From an evaluation; None where the metric is known only at the end."""
    of: Literal["tokens", "text", ""] = ""
    """What has to be equal for two values to be comparable: tokens and labels of what is evaluated,
    the text that counts, or nothing."""


METRICS: dict[str, Metric] = {
    "eval_loss": Metric(lambda result: result.eval_loss, at=lambda row: row.eval_loss, of="tokens"),
    "eval_loss_per_byte": Metric(
        eval_loss_per_byte, at=lambda row: row.eval_loss_per_byte, of="text"
    ),
    "seconds": Metric(lambda result: result.seconds.total),
    "seconds_per_step": Metric(seconds_per_step),
    "tokens_per_second": Metric(tokens_per_second, "maximize"),
    "peak_memory_bytes": Metric(lambda result: float(result.peak_memory_bytes)),
    "trainable_parameters": Metric(lambda result: float(result.trainable_parameters)),
}
"""Metrics that every trial has, each a column of the table; other names are keys of
`Result.metrics`."""

MAXIMIZED = frozenset(
    [name for name, metric in METRICS.items() if metric.direction == "maximize"]
    + [name for name, direction in EVALUATED.items() if direction == "maximize"]
)
"""Metrics that are maximised; `EVALUATED` holds those of unlearning with their directions."""


def of_result(result: Result, metric: str) -> float | None:
    """The metric of a finished trial; None when it has none or it is not a finite number."""
    known = METRICS.get(metric)
    value = known.read(result) if known else result.metrics.get(metric)
    return value if value is not None and math.isfinite(value) else None


def of_evaluation(evaluation: Evaluation, metric: str) -> float | None:
    """The metric at one evaluation; None when it is known only at the end, or not finite."""
    at = METRICS[metric].at if metric in METRICS else None
    value = at(evaluation) if at else evaluation.metrics.get(metric)
    return value if value is not None and math.isfinite(value) else None


def has_curve(metric: str) -> bool:
    """Whether the metric is known at every evaluation, and not only at the end."""
    return metric not in METRICS or METRICS[metric].at is not None


def depends_on(metrics: Iterable[str]) -> Literal["tokens", "text", ""]:
    """What has to be equal for values of all these metrics to be comparable, see `Metric.of`."""
    kinds = {METRICS[name].of if name in METRICS else "tokens" for name in metrics}
    return "tokens" if "tokens" in kinds else "text" if "text" in kinds else ""


def measured_on(results: Mapping[int, Result], metrics: Iterable[str]) -> dict[int, str]:
    """What each trial was measured on, by its number: values are compared where it is equal.

    A hash; empty where nothing is known, and for all where no metric depends on the eval set.
    Results of earlier versions have the hash of all data instead, which stands for the eval set
    of the other trials that share it.
    """
    kind = depends_on(metrics)
    if not kind:
        return dict.fromkeys(results, "")
    own = {number: _eval_hash(result, kind) for number, result in results.items()}
    alike = {results[number].data_hash: found for number, found in own.items() if found}
    return {
        number: found or alike.get(results[number].data_hash, results[number].data_hash)
        for number, found in own.items()
    }


def evaluation_measured_on(evaluation: Evaluation, metrics: Iterable[str]) -> str:
    """What an evaluation was measured on: as `measured_on` says of its trial's result.

    Empty where nothing is known, and where no metric depends on the eval set.
    """
    kind = depends_on(metrics)
    return _hash_of(evaluation, kind) if kind else ""


def _eval_hash(result: Result, kind: str) -> str:
    return "" if result.data is None else _hash_of(result.data, kind)


def _hash_of(measured: DataSummary | Evaluation, kind: str) -> str:
    return measured.eval_text_hash if kind == "text" else measured.eval_hash


def by_size(groups: Iterable[str]) -> list[str]:
    """Different groups, those with the most members first; equally large ones as they come."""
    return [group for group, _ in Counter(groups).most_common()]


def pareto_front(points: Sequence[Sequence[float]]) -> list[int]:
    """Indices of the Pareto-optimal points, all objectives minimised.

    In order of the first objective; equal points are all Pareto-optimal.
    """
    kept: list[int] = []
    # In this order a point can be dominated only by an earlier one.
    for index in sorted(range(len(points)), key=lambda index: (tuple(points[index]), index)):
        point = points[index]
        if not any(_dominates(points[other], point) for other in kept):
            kept.append(index)
    return kept


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def best_of(points: Sequence[Sequence[float]], count: int) -> list[int]:
    """Indices of the best `count` points, all objectives minimised.

    Pareto front by Pareto front; from a front that does not fit, points spread evenly along it.
    """
    chosen: list[int] = []
    left = list(range(len(points)))
    while left and len(chosen) < count:
        best = [left[index] for index in pareto_front([points[index] for index in left])]
        chosen += _spread(best, count - len(chosen))
        left = sorted(set(left).difference(best))
    return chosen


def _spread(items: list[int], count: int) -> list[int]:
    """`count` items, evenly spaced and with both ends; the first alone when `count` is 1."""
    if count >= len(items):
        return items
    steps = max(1, count - 1)
    return [items[round(step * (len(items) - 1) / steps)] for step in range(count)]
