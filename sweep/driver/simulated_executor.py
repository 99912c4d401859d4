"""An executor that trains nothing: whole sweeps in seconds, from learning curves recorded once.

For tests, and to choose samplers and pruners: time is simulated, everything else is real (the
driver, the study, the trial folders). Curves come from a finished grid; between its points they
are interpolated.
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
    """What a trial of a given length shows, and what it takes in seconds."""

    steps: tuple[int, ...]
    """Optimizer steps at which it is evaluated."""
    losses: tuple[float, ...]
    step_seconds: float = 1.0
    eval_seconds: float = 0.0
    load_seconds: float = 0.0
    """Paid by every trial; what a worker pays once is the executor's."""

    def at(self, steps: Collection[int]) -> RecordedCurve:
        """The same trial evaluated at these of its steps alone."""
        kept = [pair for pair in zip(self.steps, self.losses, strict=True) if pair[0] in steps]
        return replace(
            self, steps=tuple(step for step, _ in kept), losses=tuple(loss for _, loss in kept)
        )


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of one trial of a recorded grid: the medians over its trials."""

    startup: float
    """Imports and the base model, paid by a worker's first trial."""
    load: float
    step: float
    evaluation: float
    """With what is written then: the adapter where it is the best so far, a checkpoint."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """The learning curves of a full grid over numbers, each cell with several seeds."""

    axes: Mapping[str, tuple[float, ...]]
    """Values by dotted path, ascending."""
    seeds: tuple[int, ...]
    steps: tuple[int, ...]
    losses: Any
    """Array: axes in their order, then seeds, then steps."""
    costs: Costs

    @classmethod
    def read(cls, path: Path, costs: Costs | None = None) -> Recorded:
        """The grid of a file that `tests/bench/replay_record.py` wrote.

        A file of losses alone takes the `costs` of a grid that was timed.

        Raises:
            ValueError: a cell of the grid is missing, or there twice; no seconds are known.
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
        """Losses at a point, linear between the grid's in the logarithm of every axis.

        An axis that begins at 0 has no logarithm: there, linear in the value itself.
        Points outside stand for the nearest of the grid's border. Without a seed: the mean.
        """
        table = self.losses.mean(axis=-2) if seed is None else self.losses[..., seed, :]
        for name, values in self.axes.items():
            below, share = _between(values, point[name])
            above = min(below + 1, len(values) - 1)
            table = (1 - share) * table[below] + share * table[above]
        return tuple(float(loss) for loss in table)

    def curve(self, point: Mapping[str, float], seed: int) -> RecordedCurve:
        """The curve of one trial; `seed` counts the recorded seeds round and round."""
        losses = self.at(point, seed % len(self.seeds))
        costs = self.costs
        return RecordedCurve(self.steps, losses, costs.step, costs.evaluation, costs.load)


def _costs(rows: Sequence[Mapping[str, str]], steps: Sequence[int]) -> Costs:
    """Medians, for a busy machine has outliers; the first trial paid its worker's start."""
    first, later = rows[0], rows[1:]
    took = {name: float(np.median([float(row[name]) for row in later])) for name in PHASES}
    return Costs(
        startup=float(first["startup"]) + float(first["load"]) - took["load"],
        load=took["load"],
        step=(took["first_step"] + took["train"]) / steps[-1],
        evaluation=(took["eval"] + took["save"]) / len(steps),
    )


def _between(values: Sequence[float], value: float) -> tuple[int, float]:
    """The index below a value, and how far it is to the next one, in logarithms if all have one."""
    value = min(max(value, values[0]), values[-1])
    below = min(max(bisect_right(values, value) - 1, 0), len(values) - 1)
    if below == len(values) - 1:
        return below, 0.0
    scale = np.log if values[0] > 0 else float
    low, high = scale(values[below]), scale(values[below + 1])
    return below, float((scale(value) - low) / (high - low))


@dataclass(slots=True)
class _Play:
    """One trial on a simulated device."""

    folder: TrialFolder
    slot: int
    curve: RecordedCurve
    began: float
    paid: float
    """Seconds of start-up and load."""
    last: Evaluation | None = None
    stop: StopReason | None = None


@dataclass(slots=True)
class SimulatedExecutor:
    """Plays trials on `nodes` of `devices` each; `events` moves its clock on.

    Give `clock` to the driver's `Progress`: then budgets and estimates count simulated time.
    """

    curve: Callable[[int, TrialConfig], RecordedCurve]
    """The curve of a trial, by its number and configuration."""
    nodes: int = 1
    devices: int = 1
    startup_seconds: float = 0.0
    """Paid by a worker's first trial; by every trial when workers are not `warm`."""
    warm: bool = True
    pack: int = 1
    """Trials that share a device."""
    share: float = 1.0
    """Device-seconds of a trial in a full pack over those of the same trial alone."""
    counts_driver: bool = False
    """Whether the clock goes on while the driver thinks, as it does for real devices."""
    now: float = 0.0
    busy_seconds: float = 0.0
    """Device-seconds that ended trials held, start-up included."""
    _plays: dict[int, _Play] = field(default_factory=dict)
    _due: list[tuple[float, int, int, Event]] = field(default_factory=list)
    """Time, tie-breaker, start of the trial that it belongs to, event."""
    _starts: dict[int, int] = field(default_factory=dict)
    """The last start of every trial: events of earlier ones are void."""
    _count: Any = field(default_factory=itertools.count)
    _idle: list[int] = field(default_factory=list)
    """Free slots; slot s is on device s % devices, so that packs fill evenly."""
    _up: dict[int, float] = field(default_factory=dict)
    """When each worker is up."""
    _left: float = 0.0
    """When the driver was last given something to think about, by a real clock."""
    driver_seconds: float = 0.0
    """What the driver took to think, in real seconds."""

    def start(self) -> None:
        """Every device is free; the lowest is taken first."""
        self._idle = list(range(self.capacity()))
        self._left = perf_counter()

    def clock(self) -> float:
        """Simulated seconds since the start."""
        return self.now

    def capacity(self) -> int:
        """Trials that run at once."""
        return self._devices() * self.pack

    def _devices(self) -> int:
        return self.nodes * self.devices

    def describe(self) -> str:
        """The simulated machines in words."""
        return f"{self.nodes} simulated nodes of {self.devices} devices each"

    def submit(self, job: Job) -> None:
        """Put a job of one trial on a free device; it goes on where its folder ends."""
        self._note_driver()
        (placed,) = job.trials
        slot = heapq.heappop(self._idle)
        worker = slot % self._devices()
        folder = TrialFolder(placed.folder)
        config = folder.read_config()
        curve = self._slowed(self.curve(placed.number, config))
        if config.evaluation.steps is not None:
            curve = curve.at({*config.evaluation.steps, curve.steps[-1]})
        paid = curve.load_seconds + self._startup(worker)
        play = _Play(folder, slot, curve, self.now, paid)
        self._plays[placed.number] = play
        self._starts[placed.number] = next(self._count)
        self._schedule(placed, play)

    def _startup(self, worker: int) -> float:
        """Seconds until a worker is up; those that share it wait for the same start."""
        if not self.warm:
            return self.startup_seconds
        return max(0.0, self._up.setdefault(worker, self.now + self.startup_seconds) - self.now)

    def _slowed(self, curve: RecordedCurve) -> RecordedCurve:
        """The curve in a full pack: each trial waits for the others'."""
        times = self.pack * self.share
        if times == 1.0:
            return curve
        return replace(
            curve,
            step_seconds=curve.step_seconds * times,
            eval_seconds=curve.eval_seconds * times,
            load_seconds=curve.load_seconds * times,
        )

    def _schedule(self, placed: TrialRef, play: _Play) -> None:
        number, curve = placed.number, play.curve
        evaluations = play.folder.read_evaluations()
        step = evaluations[-1].step if evaluations else 0
        play.last = evaluations[-1] if evaluations else None
        time = self.now + play.paid
        self._push(time, number, Started(number, self._place(play.slot), curve.steps[-1]))
        for at, loss in zip(curve.steps, curve.losses, strict=True):
            if at > step:
                time += (at - step) * curve.step_seconds + curve.eval_seconds
                step = at
                evaluation = Evaluation(step=at, eval_loss=loss, time=time)
                self._push(time, number, Evaluated(number, evaluation))
        self._push(time, number, Finished(number, self._result(play, "complete", step, time)))

    def _place(self, slot: int) -> str:
        worker = slot % self._devices()
        return f"node{worker // self.devices}:{worker % self.devices}"

    def _push(self, time: float, number: int, event: Event) -> None:
        heapq.heappush(self._due, (time, next(self._count), self._starts[number], event))

    def stop(self, number: int, reason: StopReason) -> None:
        """The trial leaves its device one optimizer step later."""
        self._note_driver()
        play = self._plays.get(number)
        if play is None or play.stop is not None:
            return
        play.stop = reason
        self._starts[number] = next(self._count)
        time = self.now + play.curve.step_seconds
        step = play.last.step if play.last else 0
        result = self._result(play, "pruned", step, time)
        prune = reason == "prune"
        self._push(time, number, Finished(number, result) if prune else Interrupted(number))

    def events(self, timeout: float) -> list[Event]:
        """The next events, all of one moment; the clock moves on to them, or by `timeout`."""
        self._note_driver()
        found = self._next(timeout)
        self._left = perf_counter()
        return found

    def _note_driver(self) -> None:
        """Count what the driver took since it was last here."""
        clock = perf_counter()
        thought, self._left = clock - self._left, clock
        self.driver_seconds += thought
        if self.counts_driver:
            self.now += thought

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
        """Write what a worker would have written before it spoke."""
        play = self._plays[event.number]
        if isinstance(event, Evaluated):
            play.last = event.evaluation
            play.folder.append(event.evaluation)
        elif isinstance(event, Finished | Interrupted):
            if isinstance(event, Finished):
                play.folder.write_result(event.result)
            del self._plays[event.number]
            self.busy_seconds += (self.now - play.began) / self.pack
            heapq.heappush(self._idle, play.slot)

    def _result(self, play: _Play, state: Any, step: int, time: float) -> Result:
        curve = play.curve
        shown = [loss for at, loss in zip(curve.steps, curve.losses, strict=True) if at <= step]
        train = max(0.0, time - play.began - play.paid)
        best = min(shown, default=None)
        return Result(
            state=state,
            value=best if state == "complete" else shown[-1] if shown else None,
            best_step=curve.steps[shown.index(best)] if best is not None else None,
            steps=step,
            max_steps=curve.steps[-1],
            seconds=Seconds(load=play.paid, train=train),
            device="replayed",
            finished=time,
        )

    def close(self, *, wait: bool = True) -> None:
        """Nothing was started."""
