"""What a sweep can optimise: numbers of one result or of one evaluation. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from trial.config.objective_registry import METRICS as EVALUATED
from trial.store.records import Evaluation, Result


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

MAXIMIZED = frozenset(
    {"tokens_per_second"} | {name for name, better in EVALUATED.items() if better == "maximize"}
)
"""Metrics of which more is better; `EVALUATED` are those of a trial that forgets, by direction."""


def of_result(result: Result, metric: str) -> float | None:
    """The metric of a finished trial; None when it has none or it is not a finite number."""
    read = METRICS.get(metric)
    value = read(result) if read else result.metrics.get(metric)
    return value if value is not None and math.isfinite(value) else None


def of_evaluation(evaluation: Evaluation, metric: str) -> float | None:
    """The metric at one evaluation; None when it is known only at the end, or not finite."""
    value = evaluation.eval_loss if metric == "eval_loss" else evaluation.metrics.get(metric)
    return value if value is not None and math.isfinite(value) else None


def front(points: Sequence[Sequence[float]]) -> list[int]:
    """Places of the points that no other is at least as good as in all and better in one.

    Small is good. In order of the first figure; equal points all belong to the front.
    """
    kept: list[int] = []
    # In this order a point can only be beaten by one that came before it.
    for place in sorted(range(len(points)), key=lambda place: (tuple(points[place]), place)):
        point = points[place]
        if not any(_beats(points[other], point) for other in kept):
            kept.append(place)
    return kept


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def best_of(points: Sequence[Sequence[float]], count: int) -> list[int]:
    """Places of the best points, small being good: front by front, spread along the last one."""
    chosen: list[int] = []
    left = list(range(len(points)))
    while left and len(chosen) < count:
        best = [left[place] for place in front([points[place] for place in left])]
        chosen += _spread(best, count - len(chosen))
        left = sorted(set(left).difference(best))
    return chosen


def _spread(places: list[int], count: int) -> list[int]:
    """So many of some places, both ends first of all; the first alone when it is one."""
    if count >= len(places):
        return places
    steps = max(1, count - 1)
    return [places[round(step * (len(places) - 1) / steps)] for step in range(count)]
