"""Progress of a sweep: counts, best trial, device time, estimates. Written by the driver alone."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from results.data.best_trials import BestTrial, BestTrials
from trial.store import metrics
from trial.store.records import CauseKind, Evaluation, Result

CAUSED_BY_PARAMETERS: tuple[CauseKind, ...] = ("diverged", "out_of_memory")
"""Failures that a trial's parameters cause and the sampler learns from: once a trial is complete,
they do not show that the whole sweep is broken."""

NUMBERS = re.compile(r"\b(?=\w*\d)[0-9a-fA-F]+\b|\d+")
"""Numbers and ids in a failure's message (steps, losses, process and actor ids): ignored when two
failures are compared."""


@dataclass(slots=True)
class RunningTrial:
    """A trial that the executor has and that has not ended."""

    since: float
    """When it was submitted, by the clock of its `SweepProgress`."""
    device: str = ""
    last: Evaluation | None = None
    max_steps: int = 0
    stopping: str = ""
    """Why it was told to stop; empty as long as it was not."""


@dataclass(slots=True)
class SweepProgress:
    """The state of a sweep as its driver has seen it."""

    metric: str = "eval_loss"
    maximize: bool = False
    further_metrics: tuple[str, ...] = ()
    """The sweep's other objectives: what they depend on decides too which trials are compared."""
    planned: int | None = None
    """Trials to run in all; None when another condition ends the sweep."""
    at_most: int | None = None
    """Upper bound of the number of trials (the size of a grid); used for the estimate alone."""
    capacity: int = 1
    """Trials that can run at once."""
    clock: Callable[[], float] = time.monotonic
    started_at: float = 0.0
    states: Counter[str] = field(default_factory=Counter)
    """Number of ended trials by state."""
    running: dict[int, RunningTrial] = field(default_factory=dict)
    waiting: set[int] = field(default_factory=set)
    """Trials with a number that wait for a device, for the first time or to be retried."""
    repeats: set[int] = field(default_factory=set)
    """Trials that repeat another one with a new seed: no part of the search."""
    params: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    """What the sampler drew, by trial."""
    best: BestTrial | None = None
    """The best trial; of trials that were measured on unlike things, that of the largest group."""
    since_best: int = 0
    """Trials finished since one was better than an earlier one that was measured alike."""
    devices_per_trial: int = 1
    device_seconds_done: float = 0.0
    """Device-seconds of ended trials, all their attempts."""
    unfinished_seconds: dict[int, float] = field(default_factory=dict)
    """Device-seconds of earlier attempts of trials that have no result yet, by trial."""
    timed: int = 0
    """Trials that ended in this run of the driver."""
    seconds_of_timed: float = 0.0
    """Their wall seconds, summed."""
    same_failure_limit: int = 3
    """So many trials in a row that fail in the same way end the sweep."""
    same_failure: tuple[str, int] = ("", 0)
    """The failure that the last trials share, and how many trials in a row have it."""
    base_models: int = 1
    """Base models that the search may draw."""
    failed_base_models: set[str] = field(default_factory=set)
    """The different base models of the trials that share `same_failure`."""
    base_model_of: dict[int, str] = field(default_factory=dict)
    """The base model of each trial, by its number."""
    with_value: int = 0
    """Trials that have a finite value of every objective, or were pruned by one."""
    without_value: Counter[str] = field(default_factory=Counter)
    """Why the other ended trials have none, and how many of them."""

    measured: BestTrials = field(init=False)
    """The best trials by what they were measured on."""

    def __post_init__(self) -> None:
        self.started_at = self.clock()
        self.measured = BestTrials((self.metric, *self.further_metrics), self.maximize)

    @property
    def ended(self) -> int:
        """Trials that have a result; duplicates are not trials."""
        return sum(count for state, count in self.states.items() if state != "duplicate")

    @property
    def begun(self) -> int:
        """Trials of the search that have a result, run, or wait for a device."""
        return self.ended + len(self.running) + len(self.waiting) - len(self.repeats)

    @property
    def total(self) -> int | None:
        """Trials to run in all, repeats included; None when unknown."""
        known = self.planned if self.at_most is None else self.at_most
        return None if known is None else known + len(self.repeats)

    @property
    def elapsed(self) -> float:
        """Wall seconds of this run."""
        return self.clock() - self.started_at

    @property
    def device_seconds(self) -> float:
        """Device-seconds of all trials; a running one counts from the moment it was submitted."""
        now = self.clock()
        running = sum(now - row.since for row in self.running.values()) * self.devices_per_trial
        return self.device_seconds_done + sum(self.unfinished_seconds.values()) + running

    @property
    def mean_seconds(self) -> float | None:
        """Mean wall seconds of a trial in this run; None before one has ended."""
        return self.seconds_of_timed / self.timed if self.timed else None

    @property
    def remaining_seconds(self) -> float | None:
        """Estimate of the wall seconds left; None before a trial has ended."""
        mean = self.mean_seconds
        if self.total is None or mean is None:
            return None
        now = self.clock()
        begun = sum(min(mean, now - row.since) for row in self.running.values())
        left = max(0.0, (self.total - self.ended) * mean - begun)
        return left / max(1, self.capacity)

    def add_trial(
        self, number: int, params: Mapping[str, Any], repeat: bool = False, base_model: str = ""
    ) -> None:
        """Note what the sampler drew for a trial, and whether it repeats another one."""
        self.params[number] = params
        self.base_model_of[number] = base_model
        if repeat:
            self.repeats.add(number)

    def set_running(self, number: int) -> None:
        """Count a trial as running: it was handed to the executor."""
        self.waiting.discard(number)
        self.running[number] = RunningTrial(self.clock())

    def set_waiting(self, number: int) -> None:
        """Count a trial as waiting for a device."""
        self.remove_running(number)
        self.waiting.add(number)

    def remove_running(self, number: int) -> None:
        """Count a trial as no longer running, without a result."""
        row = self.running.pop(number, None)
        if row:
            seconds = (self.clock() - row.since) * self.devices_per_trial
            self.unfinished_seconds[number] = self.unfinished_seconds.get(number, 0.0) + seconds

    def add_result(self, number: int, result: Result) -> None:
        """Count the result of a trial that ended now or in an earlier run."""
        row = self.running.pop(number, None)
        # The result counts the seconds of all attempts.
        self.unfinished_seconds.pop(number, None)
        self.states[result.state] += 1
        if result.state == "duplicate":
            return
        self.device_seconds_done += result.seconds.total * result.devices
        if row:
            self.timed += 1
            self.seconds_of_timed += self.clock() - row.since
        self._compare_failure(number, result)
        self._count_value(result)
        repeat = number in self.repeats
        self.measured.add(number, result, self.params.get(number, {}), repeat)
        self.best, self.since_best = self.measured.largest.best, self.measured.since_best

    def _count_value(self, result: Result) -> None:
        names = (self.metric, *self.further_metrics)
        missing = [name for name in names if metrics.of_result(result, name) is None]
        if result.state == "pruned" or (result.state == "complete" and not missing):
            self.with_value += 1
        elif result.cause:
            self.without_value[f"{result.cause.kind}: {result.cause.message}"] += 1
        else:
            self.without_value[f"no finite {' or '.join(missing) or self.metric}"] += 1

    def forget_failures(self) -> None:
        """Count equal failures in a row from zero."""
        self.same_failure = ("", 0)
        self.failed_base_models.clear()

    def _compare_failure(self, number: int, result: Result) -> None:
        expected = self.best and result.cause and result.cause.kind in CAUSED_BY_PARAMETERS
        if result.state == "failed" and result.cause and not expected:
            failure = NUMBERS.sub("#", f"{result.cause.kind}: {result.cause.message}")
            if failure != self.same_failure[0]:
                self.forget_failures()
            self.same_failure = (failure, self.same_failure[1] + 1)
            self.failed_base_models.add(self.base_model_of.get(number, ""))
        else:
            self.forget_failures()
