"""An executor that replays recorded learning curves in simulated time: whole sweeps in seconds.

For tests, and to compare samplers and pruners. The driver, the study and the trial folders are
real. Curves come from a finished grid; between its points they are interpolated.
"""

from __future__ import annotations

import csv
import heapq
import itertools
from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from sweep.driver.executor import Evaluated, Event, Finished, Interrupted, Job, Started, TrialRef
from trial.config.trial_config import TrialConfig
from trial.store.control import StopReason
from trial.store.folders import TrialFolder
from trial.store.records import Evaluation, Result, Seconds

PHASES: tuple[str, ...] = tuple(Seconds.model_fields)
SEED = "training.seed"


@dataclass(frozen=True, slots=True)
class RecordedCurve:
    """The evaluations of a trial of a given length, and what it takes in seconds."""

    steps: tuple[int, ...]
    """Optimizer steps at which it is evaluated."""
    losses: tuple[float, ...]
    """Eval loss at each of them."""
    step_seconds: float = 1.0
    eval_seconds: float = 0.0
    load_seconds: float = 0.0
    """Of every trial; what a worker takes once is the executor's `startup_seconds`."""

    def at(self, steps: Collection[int]) -> RecordedCurve:
        """The same trial evaluated only at those of its steps that are in `steps`."""
        kept = [pair for pair in zip(self.steps, self.losses, strict=True) if pair[0] in steps]
        return replace(
            self, steps=tuple(step for step, _ in kept), losses=tuple(loss for _, loss in kept)
        )


@dataclass(frozen=True, slots=True)
class RecordedCosts:
    """Seconds of one trial of a recorded grid: the medians over its trials."""

    startup: float
    """Imports and loading of the base model, which only a worker's first trial pays."""
    load: float
    step: float
    evaluation: float
    """Includes what is written then: a checkpoint, and the adapter where it is the best so far."""


@dataclass(frozen=True, slots=True)
class RecordedGrid:
    """The learning curves of a full grid over numeric parameters, with several seeds a point."""

    axes: Mapping[str, tuple[float, ...]]
    """Values by dotted path, ascending."""
    seeds: tuple[int, ...]
    steps: tuple[int, ...]
    losses: Any
    """Eval losses, array [axis 1, ..., axis n, seeds, steps]."""
    costs: RecordedCosts

    @classmethod
    def read(cls, path: Path, costs: RecordedCosts | None = None) -> RecordedGrid:
        """The grid of a file that `tests/bench/replay/record.py` wrote.

        A file of losses alone takes the `costs` of another grid, which was timed.

        Raises:
            ValueError: a point of the grid is missing or there twice, or no seconds are known.
        """
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        names = [n for n in rows[0] if n not in PHASES and not n.isdecimal() and n != SEED]
        steps = tuple(int(name) for name in rows[0] if name.isdecimal())
        axes = {name: tuple(sorted({float(row[name]) for row in rows})) for name in names}
        seeds = tuple(sorted({int(row[SEED]) for row in rows}))
        shape = (*(len(values) for values in axes.values()), len(seeds), len(steps))
        losses = np.full(shape, np.nan)
        for row in rows:
            cell = [axes[name].index(float(row[name])) for name in names]
            losses[(*cell, seeds.index(int(row[SEED])))] = [float(row[str(s)]) for s in steps]
        if len(rows) * len(steps) != losses.size or np.isnan(losses).any():
            raise ValueError(f"{path}: {len(rows)} rows do not fill a grid of {shape[:-1]} once")
        if costs is None and not set(PHASES) <= rows[0].keys():
            raise ValueError(f"{path}: it holds no seconds; give the costs of a timed grid")
        return cls(axes, seeds, steps, losses, costs or _costs(rows, steps))

    def at(self, point: Mapping[str, float], seed: int | None = None) -> tuple[float, ...]:
        """Losses by step at a point: multilinear interpolation in the logarithm of every axis.

        An axis that begins at 0 is interpolated in the value itself. A point outside the grid gets
        the losses of the nearest point of its border. Without a seed: the mean over seeds.
        """
        table = self.losses.mean(axis=-2) if seed is None else self.losses[..., seed, :]
        for name, values in self.axes.items():
            below, share = _between(values, point[name])
            above = min(below + 1, len(values) - 1)
            table = (1 - share) * table[below] + share * table[above]
        return tuple(float(loss) for loss in table)

    def curve(self, point: Mapping[str, float], seed: int) -> RecordedCurve:
        """The curve of one trial, with the recorded seed `seed` modulo their number."""
        losses = self.at(point, seed % len(self.seeds))
        costs = self.costs
        return RecordedCurve(self.steps, losses, costs.step, costs.evaluation, costs.load)


def _costs(rows: Sequence[Mapping[str, str]], steps: Sequence[int]) -> RecordedCosts:
    """Medians over trials: a busy machine has outliers. The first trial started the worker."""
    first, later = rows[0], rows[1:]
    median = {name: float(np.median([float(row[name]) for row in later])) for name in PHASES}
    return RecordedCosts(
        startup=float(first["startup"]) + float(first["load"]) - median["load"],
        load=median["load"],
        step=(median["first_step"] + median["train"]) / steps[-1],
        evaluation=(median["eval"] + median["save"]) / len(steps),
    )


def _between(values: Sequence[float], value: float) -> tuple[int, float]:
    """Where a value lies among ascending ones.

    Returns:
        The index of the value below, and the share of the way to the next one (0 to 1): in
        logarithms when all values are positive.
    """
    value = min(max(value, values[0]), values[-1])
    below = min(max(bisect_right(values, value) - 1, 0), len(values) - 1)
    if below == len(values) - 1:
        return below, 0.0
    scale = np.log if values[0] > 0 else float
    low, high = scale(values[below]), scale(values[below + 1])
    return below, float((scale(value) - low) / (high - low))


@dataclass(slots=True)
class _SimulatedTrial:
    """One trial on a simulated device."""

    folder: TrialFolder
    slot: int
    curve: RecordedCurve
    began: float
    setup_seconds: float
    """Start-up of its worker, and load."""
    last: Evaluation | None = None
    stop: StopReason | None = None


@dataclass(slots=True)
class SimulatedExecutor:
    """Replays trials on `nodes` with `devices` each; `events` advances its clock.

    Give `clock` to the driver's `SweepProgress`: then budgets and estimates use simulated time.
    """

    curve: Callable[[int, TrialConfig], RecordedCurve]
    """The curve of a trial, by its number and configuration."""
    nodes: int = 1
    devices: int = 1
    startup_seconds: float = 0.0
    """Of a worker's first trial; of every trial when workers are not `warm`."""
    warm: bool = True
    pack: int = 1
    """Trials that share a device."""
    share: float = 1.0
    """Device-seconds of a trial in a full pack over those of the same trial alone."""
    counts_driver: bool = False
    """Whether the clock includes the real time that the driver takes between calls."""
    now: float = 0.0
    busy_seconds: float = 0.0
    """Device-seconds of ended trials, start-up included."""
    _trials: dict[int, _SimulatedTrial] = field(default_factory=dict)
    _due: list[tuple[float, int, int, Event]] = field(default_factory=list)
    """Heap of time, tie-breaker, start number of the event's trial, event."""
    _starts: dict[int, int] = field(default_factory=dict)
    """Number of the last start of every trial: events of earlier starts are dropped."""
    _count: Any = field(default_factory=itertools.count)
    _idle: list[int] = field(default_factory=list)
    """Free slots; slot s is on device s % devices, so that packs fill evenly."""
    _ready_at: dict[int, float] = field(default_factory=dict)
    """When each worker has started."""
    _returned_at: float = 0.0
    """When the last call of the driver returned, by a real clock."""
    driver_seconds: float = 0.0
    """Real seconds that the driver took between its calls."""

    def start(self) -> None:
        """Free every device; the lowest is used first."""
        self._idle = list(range(self.capacity()))
        self._returned_at = perf_counter()

    def clock(self) -> float:
        """Simulated seconds since the start."""
        return self.now

    def capacity(self) -> int:
        """Trials that run at once."""
        return self._device_count() * self.pack

    @property
    def running(self) -> list[int]:
        """Numbers of the trials on devices."""
        return list(self._trials)

    def _device_count(self) -> int:
        return self.nodes * self.devices

    def describe(self) -> str:
        """The simulated machines in words."""
        return f"{self.nodes} simulated nodes of {self.devices} devices each"

    def submit(self, job: Job) -> None:
        """Start a job of one trial on a free device; it resumes after its last evaluation."""
        self._count_driver_time()
        (ref,) = job.trials
        slot = heapq.heappop(self._idle)
        worker = slot % self._device_count()
        folder = TrialFolder(ref.folder)
        config = folder.read_config()
        curve = self._slowed(self.curve(ref.number, config))
        if config.evaluation.steps is not None:
            curve = curve.at({*config.evaluation.steps, curve.steps[-1]})
        setup_seconds = curve.load_seconds + self._startup(worker)
        trial = _SimulatedTrial(folder, slot, curve, self.now, setup_seconds)
        self._trials[ref.number] = trial
        self._starts[ref.number] = next(self._count)
        self._schedule(ref, trial)

    def _startup(self, worker: int) -> float:
        """Seconds until a worker has started; trials that share it wait for the same start."""
        if not self.warm:
            return self.startup_seconds
        return max(
            0.0, self._ready_at.setdefault(worker, self.now + self.startup_seconds) - self.now
        )

    def _slowed(self, curve: RecordedCurve) -> RecordedCurve:
        """The curve in a full pack, where the trials of a device take turns."""
        factor = self.pack * self.share
        if factor == 1.0:
            return curve
        return replace(
            curve,
            step_seconds=curve.step_seconds * factor,
            eval_seconds=curve.eval_seconds * factor,
            load_seconds=curve.load_seconds * factor,
        )

    def _schedule(self, ref: TrialRef, trial: _SimulatedTrial) -> None:
        number, curve = ref.number, trial.curve
        evaluations = trial.folder.read_evaluations()
        step = evaluations[-1].step if evaluations else 0
        trial.last = evaluations[-1] if evaluations else None
        time = self.now + trial.setup_seconds
        self._push(time, number, Started(number, self._device_name(trial.slot), curve.steps[-1]))
        for at, loss in zip(curve.steps, curve.losses, strict=True):
            if at > step:
                time += (at - step) * curve.step_seconds + curve.eval_seconds
                step = at
                evaluation = Evaluation(step=at, eval_loss=loss, time=time)
                self._push(time, number, Evaluated(number, evaluation))
        self._push(time, number, Finished(number, self._result(trial, "complete", step, time)))

    def _device_name(self, slot: int) -> str:
        worker = slot % self._device_count()
        return f"node{worker // self.devices}:{worker % self.devices}"

    def _push(self, time: float, number: int, event: Event) -> None:
        heapq.heappush(self._due, (time, next(self._count), self._starts[number], event))

    def stop(self, number: int, reason: StopReason) -> None:
        """The trial leaves its device one optimizer step later."""
        self._count_driver_time()
        trial = self._trials.get(number)
        if trial is None or trial.stop is not None:
            return
        trial.stop = reason
        self._starts[number] = next(self._count)
        time = self.now + trial.curve.step_seconds
        step = trial.last.step if trial.last else 0
        result = self._result(trial, "pruned", step, time)
        prune = reason == "prune"
        self._push(time, number, Finished(number, result) if prune else Interrupted(number))

    def events(self, timeout: float) -> list[Event]:
        """The next events, all of one moment; the clock moves on to them, or by `timeout`."""
        self._count_driver_time()
        events = self._next(timeout)
        self._returned_at = perf_counter()
        return events

    def _count_driver_time(self) -> None:
        """Count the time that the driver took since its last call."""
        clock = perf_counter()
        taken, self._returned_at = clock - self._returned_at, clock
        self.driver_seconds += taken
        if self.counts_driver:
            self.now += taken

    def _next(self, timeout: float) -> list[Event]:
        while self._due and self._due[0][2] != self._starts[self._due[0][3].number]:
            heapq.heappop(self._due)
        until = self.now + timeout
        if not self._due or self._due[0][0] > until:
            self.now = until
            return []
        self.now = max(self.now, self._due[0][0])
        found: list[Event] = []
        while self._due and self._due[0][0] <= self.now:
            _, _, start, event = heapq.heappop(self._due)
            if start == self._starts[event.number]:
                found.append(event)
                self._apply(event)
        return found

    def _apply(self, event: Event) -> None:
        """Write what a worker would have written before it sent the event."""
        trial = self._trials[event.number]
        if isinstance(event, Evaluated):
            trial.last = event.evaluation
            trial.folder.append(event.evaluation)
        elif isinstance(event, Finished | Interrupted):
            if isinstance(event, Finished):
                trial.folder.write_result(event.result)
            del self._trials[event.number]
            self.busy_seconds += (self.now - trial.began) / self.pack
            heapq.heappush(self._idle, trial.slot)

    def _result(self, trial: _SimulatedTrial, state: Any, step: int, time: float) -> Result:
        curve = trial.curve
        losses = [loss for at, loss in zip(curve.steps, curve.losses, strict=True) if at <= step]
        train = max(0.0, time - trial.began - trial.setup_seconds)
        best = min(losses, default=None)
        return Result(
            state=state,
            eval_loss=best if state == "complete" else losses[-1] if losses else None,
            best_step=curve.steps[losses.index(best)] if best is not None else None,
            steps=step,
            max_steps=curve.steps[-1],
            seconds=Seconds(load=trial.setup_seconds, train=train),
            device="replayed",
            finished=time,
        )

    def close(self, *, wait: bool = True) -> None:
        """Nothing was started, so there is nothing to end."""
