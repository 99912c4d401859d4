"""What a sweep can optimise: numbers of one result or of one evaluation. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Callable

from trial.folder import Evaluation, Result


def seconds_per_step(result: Result) -> float:
    """Wall seconds of a step, the first one with its compilation left out."""
    return result.seconds.train / max(1, result.steps - 1)


def tokens_per_second(result: Result) -> float:
    """Training tokens, padding left out, over the seconds of all steps."""
    busy = result.seconds.train + result.seconds.first_step
    return result.tokens / busy if busy else math.nan


METRICS: dict[str, Callable[[Result], float | None]] = {
    "eval_loss": lambda result: result.value,
    "seconds": lambda result: result.seconds.total,
    "seconds_per_step": seconds_per_step,
    "tokens_per_second": tokens_per_second,
    "peak_memory_bytes": lambda result: float(result.peak_memory_bytes),
    "trainable_parameters": lambda result: float(result.trainable_parameters),
}
"""Metrics every trial has; any further name is looked up in `Result.metrics`."""


def of_result(result: Result, metric: str) -> float | None:
    """The metric of a finished trial; None when it has none or it is not a finite number."""
    read = METRICS.get(metric)
    value = read(result) if read else result.metrics.get(metric)
    return value if value is not None and math.isfinite(value) else None


def of_evaluation(evaluation: Evaluation, metric: str) -> float | None:
    """The metric at one evaluation; None when it is known only at the end, or not finite."""
    value = evaluation.eval_loss if metric == "eval_loss" else evaluation.metrics.get(metric)
    return value if value is not None and math.isfinite(value) else None
