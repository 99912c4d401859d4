"""Jobs that wait for a place, oldest first; a later one may pass a few times, not for ever.

A worker whose packed job has room takes only trials that may share it. Were the oldest job always
first, devices would idle; were it never, a job of another kind would wait for the study's end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from sweep.driver.executor import Job

PASSES = 32
"""So many later jobs may be placed before the oldest one; then all wait for it."""


@dataclass(slots=True)
class _Waiting:
    job: Job
    passed: int = 0


@dataclass(slots=True)
class JobQueue:
    """Jobs in the order in which they came."""

    _jobs: list[_Waiting] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: Job) -> None:
        """Let a job wait."""
        self._jobs.append(_Waiting(job))

    def drop(self, number: int) -> bool:
        """Forget the job of a trial; False when it does not wait here."""
        kept = [w for w in self._jobs if all(p.number != number for p in w.job.trials)]
        found = len(kept) < len(self._jobs)
        self._jobs = kept
        return found

    def dispatch(self, place: Callable[[Job], bool]) -> None:
        """Place what can be placed."""
        still: list[_Waiting] = []
        for waiting in self._jobs:
            held = any(other.passed >= PASSES for other in still)
            if held or not place(waiting.job):
                still.append(waiting)
                continue
            for other in still:
                other.passed += 1
        self._jobs = still
