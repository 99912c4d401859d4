"""How far a sweep is: counts, the best so far, the cost. Pure bookkeeping for driver and view."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from trial.store import metrics
from trial.store.records import CauseKind, Evaluation, Result

OF_THE_SPACE: tuple[CauseKind, ...] = ("diverged", "out_of_memory")
"""Failures that the sampler learns from; they say nothing against the sweep once a trial is
complete."""

NUMBERS = re.compile(r"\b(?=\w*\d)[0-9a-fA-F]+\b|\d+")
"""What tells two failures of one kind apart: steps, losses, process and actor ids."""


@dataclass(slots=True)
class Running:
    """One trial on a device."""

    params: Mapping[str, Any]
    since: float
    device: str = ""
    last: Evaluation | None = None
    max_steps: int = 0
    stopping: str = ""


@dataclass(frozen=True, slots=True)
class Best:
    """The best finished trial by the first objective."""

    number: int
    value: float
    params: Mapping[str, Any]


@dataclass(slots=True)
class SweepProgress:
    """The state of a sweep as its driver has seen it."""

    metric: str = "eval_loss"
    maximize: bool = False
    planned: int | None = None
    """Trials to run in all; None when something else ends the sweep."""
    at_most: int | None = None
    """Trials that there can be: a grid has an end of its own. For the estimate alone."""
    slots: int = 1
    clock: Callable[[], float] = time.monotonic
    started_at: float = 0.0
    states: Counter[str] = field(default_factory=Counter)
    running: dict[int, Running] = field(default_factory=dict)
    parked: set[int] = field(default_factory=set)
    """Trials of this study that wait for a device, to be started or tried again."""
    repeats: set[int] = field(default_factory=set)
    """Trials that repeat another one with a new seed: no part of the search."""
    params: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    """What the sampler drew, by trial."""
    best: Best | None = None
    since_best: int = 0
    """Trials finished since the best one."""
    device_seconds_done: float = 0.0
    timed: int = 0
    """Trials that ended in this run."""
    seconds_of_timed: float = 0.0
    """Wall seconds of these."""
    alike_limit: int = 3
    """So many trials in a row that fail in the same way end the sweep."""
    alike: tuple[str, int] = ("", 0)
    """The failure that the last trials share, and how many in a row."""

    def __post_init__(self) -> None:
        self.started_at = self.clock()

    @property
    def ended(self) -> int:
        """Trials that have a result; duplicates are not trials."""
        return sum(count for state, count in self.states.items() if state != "duplicate")

    @property
    def taken(self) -> int:
        """Trials of the search that have a result, are running, or wait to."""
        return self.ended + len(self.running) + len(self.parked) - len(self.repeats)

    @property
    def total(self) -> int | None:
        """Trials to run in all, repeats included."""
        known = self.planned if self.at_most is None else self.at_most
        return None if known is None else known + len(self.repeats)

    @property
    def elapsed(self) -> float:
        """Wall seconds of this run."""
        return self.clock() - self.started_at

    @property
    def device_seconds(self) -> float:
        """Device-seconds of ended trials and of those running now."""
        now = self.clock()
        return self.device_seconds_done + sum(now - row.since for row in self.running.values())

    @property
    def mean_seconds(self) -> float | None:
        """What a trial has taken in this run on average; None before one has ended."""
        return self.seconds_of_timed / self.timed if self.timed else None

    @property
    def remaining_seconds(self) -> float | None:
        """Estimate of the wall seconds left; None before there is anything to go by."""
        mean = self.mean_seconds
        if self.total is None or mean is None:
            return None
        now = self.clock()
        begun = sum(min(mean, now - row.since) for row in self.running.values())
        left = max(0.0, (self.total - self.ended) * mean - begun)
        return left / max(1, self.slots)

    def start(self, number: int, params: Mapping[str, Any], max_steps: int = 0) -> None:
        """A trial has been handed to the executor."""
        self.params[number] = params
        self.parked.discard(number)
        self.running[number] = Running(params, self.clock(), max_steps=max_steps)

    def park(self, number: int) -> None:
        """A trial waits to be started or tried again."""
        self.leave(number)
        self.parked.add(number)

    def leave(self, number: int) -> None:
        """A trial has left its device without a result."""
        row = self.running.pop(number, None)
        if row:
            self.device_seconds_done += self.clock() - row.since

    def end(self, number: int, result: Result, params: Mapping[str, Any]) -> None:
        """A trial has its result, now or in an earlier run."""
        self.params[number] = params
        row = self.running.pop(number, None)
        self.states[result.state] += 1
        if result.state == "duplicate":
            return
        self.device_seconds_done += result.seconds.total * result.devices
        if row:
            self.timed += 1
            self.seconds_of_timed += self.clock() - row.since
        self._note_failure(result)
        if number not in self.repeats:
            self._note_value(number, result, params)

    def _note_value(self, number: int, result: Result, params: Mapping[str, Any]) -> None:
        self.since_best += 1
        value = metrics.of_result(result, self.metric)
        if result.state != "complete" or value is None:
            return
        sign = -1.0 if self.maximize else 1.0
        if self.best is None or sign * value < sign * self.best.value:
            self.best = Best(number, value, params)
            self.since_best = 0

    def _note_failure(self, result: Result) -> None:
        learnt = self.best and result.cause and result.cause.kind in OF_THE_SPACE
        if result.state == "failed" and result.cause and not learnt:
            kind = f"{result.cause.kind}: {result.cause.message}"
            alike = NUMBERS.sub("#", kind)
            self.alike = (alike, self.alike[1] + 1 if alike == self.alike[0] else 1)
        else:
            self.alike = ("", 0)
