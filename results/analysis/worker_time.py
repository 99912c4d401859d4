"""Breakdown of every worker's time, computed from the trial folders.

A worker's time is divided at the starts and ends of its trials' attempts, and inside an attempt by
the phases in the trial's result. The parts of one worker add up to the makespan, those of all
workers to the makespan times their number.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from results.data.folders import StudyRead, TrialRead
from trial.store.records import Attempt

START, WAIT, OTHER, LOST, OPEN, IDLE = (
    "start-up", "waiting for a trial", "other", "lost and done again", "no result yet",
    "no trial left",
)  # fmt: skip
_PHASES = {
    "load": "model and data", "first_step": "first step", "train": "train", "eval": "eval",
    "save": "save",
}  # fmt: skip
KINDS = (START, WAIT, *_PHASES.values(), OTHER, LOST, OPEN, IDLE)
"""Uses of a worker's time. `start-up` is the time before its first trial, `other` is not covered by
any phase of a trial, `no trial left` is the wait for the other workers at the end."""

STARTS_WITHIN = 900.0
"""Seconds between a study's creation and its first trial that still count as start-up."""


@dataclass(frozen=True, slots=True)
class Span:
    """One attempt at a trial: from its start to its end."""

    start: float
    end: float
    attempt: Attempt
    trial: TrialRead

    @property
    def begin(self) -> float:
        """Start of the attempt, or of its process where the attempt includes the imports."""
        result = self.trial.result
        cold = sum(attempt.cold for attempt in self.trial.attempts)
        startup = result.seconds.startup / cold if result and cold else 0.0
        return self.start - (startup if self.attempt.cold else 0.0)


@dataclass(slots=True)
class Worker:
    """A worker: one process, or several that replaced each other."""

    host: str
    processes: list[list[Span]] = field(default_factory=list)
    """Attempts of each process, in order."""
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    """Seconds by use."""

    @property
    def spans(self) -> list[Span]:
        """All attempts of the worker, in order."""
        return [span for own in self.processes for span in own]


@dataclass(frozen=True, slots=True)
class WorkerTimeBreakdown:
    """Breakdown of the time of all workers of a study."""

    workers: tuple[Worker, ...]
    makespan: float
    """Seconds during which some worker was running."""
    apart: float
    """Seconds between the study's runs, when no worker was running; not part of `makespan`."""


def spans(trials: Sequence[TrialRead]) -> list[Span]:
    """All attempts by start time; an attempt without a recorded end ends at its last evaluation."""
    found = []
    for trial in trials:
        starts = [attempt.started for attempt in trial.attempts]
        for index, attempt in enumerate(trial.attempts):
            until = starts[index + 1] if index + 1 < len(starts) else np.inf
            end = max(_end(trial, attempt.started, until), attempt.started)
            found.append(Span(attempt.started, end, attempt, trial))
    return sorted(found, key=lambda span: (span.start, span.trial.number))


def _end(trial: TrialRead, start: float, until: float) -> float:
    if trial.result and np.isinf(until):
        return trial.result.finished
    times = trial.curve.time
    seen = times[(times >= start) & (times <= until)] if len(times) else times
    return float(seen.max()) if len(seen) else start


def processes_of(every: Sequence[Span]) -> list[list[Span]]:
    """Attempts of each process, processes sorted by their first attempt."""
    found: list[list[Span]] = []
    last: dict[tuple[str, int], list[Span]] = {}
    for span in every:
        key = (span.attempt.host, span.attempt.pid)
        own = last.get(key)
        # Process ids are reused, in containers soon: a later cold start is a new process.
        if own is None or (span.attempt.cold and span.start >= _until(own)):
            own = last[key] = []
            found.append(own)
        own.append(span)
    return sorted(found, key=lambda own: own[0].begin)


def _until(own: Sequence[Span]) -> float:
    return max(span.end for span in own)


def workers_of(processes: Sequence[Sequence[Span]]) -> list[Worker]:
    """The fewest workers that hold all processes: a new process continues an ended one's worker."""
    free: dict[str, list[tuple[float, int]]] = {}
    found: list[Worker] = []
    for own in processes:
        host = own[0].attempt.host
        heap = free.setdefault(host, [])
        if heap and heap[0][0] <= own[0].start:
            place = heapq.heappop(heap)[1]
        else:
            place = len(found)
            found.append(Worker(host))
        found[place].processes.append(list(own))
        heapq.heappush(heap, (_until(own), place))
    return found


def worker_time_breakdown(study: StudyRead) -> WorkerTimeBreakdown | None:
    """Breakdown of a study's worker time; None when no trial was started."""
    processes = processes_of(spans(study.trials))
    if not processes:
        return None
    workers = workers_of(processes)
    runs = list(_runs(processes, study.record.created))
    for worker in workers:
        for begin, end in runs:
            inside = [own for own in worker.processes if begin <= own[0].start <= end]
            if inside:
                _divide(worker.seconds, inside, begin, end)
    makespan = sum(end - begin for begin, end in runs)
    return WorkerTimeBreakdown(tuple(workers), makespan, runs[-1][1] - runs[0][0] - makespan)


def _runs(processes: Sequence[Sequence[Span]], created: float) -> Iterator[tuple[float, float]]:
    """Intervals in which some worker was running."""
    first = processes[0][0].begin
    begin = end = created if 0 <= first - created <= STARTS_WITHIN else first
    for index, own in enumerate(processes):
        if index and own[0].begin > end:
            yield begin, end
            begin = own[0].begin
        end = max(end, _until(own))
    yield begin, end


def _divide(
    into: dict[str, float], processes: Sequence[Sequence[Span]], begin: float, end: float
) -> None:
    """Add one worker's time in one run of the study."""
    at = begin
    for own in processes:
        kind = START
        for group in _overlapping(own):
            start = max(at, group[0].start)
            until = max(start, _until(group))
            into[kind] += start - at
            kind, at = WAIT, until
            _share(into, group, until - start)
    into[IDLE] += end - at


def lanes(spans_of: Sequence[Span]) -> list[int]:
    """Row of each span so that overlaps are below 0.1 s; all 0 unless trials were packed."""
    ends: list[float] = []
    rows = []
    for span in spans_of:
        row = next((row for row, end in enumerate(ends) if end <= span.start + 0.1), len(ends))
        ends[row : row + 1] = [span.end]
        rows.append(row)
    return rows


def covered_seconds(spans_of: Sequence[Span]) -> float:
    """Seconds covered by at least one span."""
    groups = _overlapping(sorted(spans_of, key=lambda span: span.start))
    return sum(_until(group) - group[0].start for group in groups)


def _share(into: dict[str, float], group: Sequence[Span], seconds: float) -> None:
    """Divide seconds among the trials that ran on the worker in them, one or several at once.

    Phases of packed trials are already shares of wall time; the rest of their attempts ran
    concurrently.
    """
    known = dict.fromkeys(KINDS, 0.0)
    for span in group:
        for kind, part in _parts(span).items():
            known[kind] += part / (len(group) if kind in (OPEN, LOST) else 1)
    known[OTHER] = 0.0
    recorded = sum(known.values())
    scale = min(1.0, seconds / recorded) if recorded else 0.0
    for kind, part in known.items():
        into[kind] += part * scale
    into[OTHER] += max(0.0, seconds - recorded * scale)


def _overlapping(inside: Sequence[Span]) -> Iterator[list[Span]]:
    """Merge overlapping spans."""
    group: list[Span] = []
    until = -np.inf
    for span in inside:
        if group and span.start >= until:
            yield group
            group, until = [], -np.inf
        group.append(span)
        until = max(until, span.end)
    if group:
        yield group


def _parts(span: Span) -> Mapping[str, float]:
    """Time of an attempt by phase, in proportion to its share of the trial's time."""
    trial, length = span.trial, span.end - span.start
    if trial.result is None:
        return {OPEN: length}
    phases = {kind: getattr(trial.result.seconds, name) for name, kind in _PHASES.items()}
    worked = sum(phases.values())
    several = len(trial.attempts) > 1
    whole = sum(one.end - one.start for one in spans([trial])) if several else length
    # The clocks are read separately: phases may exceed the time between two stamps slightly.
    scale = min(1.0, whole / worked) if worked else 0.0
    parts = {kind: seconds * scale for kind, seconds in phases.items()}
    parts[LOST if several else OTHER] = max(0.0, whole - worked)
    return {kind: seconds * length / whole if whole else 0.0 for kind, seconds in parts.items()}
