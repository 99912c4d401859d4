"""The seam between deciding and running: jobs go in, events come out.

An executor knows nothing of Optuna, a driver nothing of Ray. `ray_executor` is the real one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trial.store.control import StopReason
from trial.store.records import CauseKind, Evaluation, Result


@dataclass(frozen=True, slots=True)
class Placed:
    """One trial of a job: its number and where its folder is."""

    number: int
    folder: Path


@dataclass(frozen=True, slots=True)
class Job:
    """Trials that run together in one process; an ordinary job has one."""

    trials: tuple[Placed, ...]
    key: str | None = None
    """Jobs with equal keys may run in one process (`trial.config.packing_rules`); None: alone."""


@dataclass(frozen=True, slots=True)
class Started:
    """A worker has taken the trial up."""

    number: int
    device: str
    max_steps: int = 0


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The trial has been evaluated; the line is already on disk."""

    number: int
    evaluation: Evaluation


@dataclass(frozen=True, slots=True)
class Finished:
    """The trial has ended; its result is already on disk."""

    number: int
    result: Result


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The trial has stopped at a checkpoint, as it was told."""

    number: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The trial's worker, or one of its ranks, ended without a result."""

    number: int
    kind: CauseKind
    message: str


Event = Started | Evaluated | Finished | Interrupted | Lost


@dataclass(frozen=True, slots=True)
class Sized:
    """A worker holds so many trials at once; between a worker and its executor."""

    slots: int


@dataclass(frozen=True, slots=True)
class Evicted:
    """A trial had to leave its slot, at a checkpoint; between a worker and its executor."""

    number: int
    alone: bool
    """Whether it is to go on by itself."""


Said = Event | Sized | Evicted
"""What a worker says."""


class Executor(Protocol):
    """Places jobs on devices."""

    def start(self) -> None:
        """Connect; blocks until jobs can be placed."""

    def slots(self) -> int:
        """How many jobs can run at once now (a cluster may grow)."""

    def describe(self) -> str:
        """The devices in words, for people."""

    def submit(self, job: Job) -> None:
        """Start a job; never blocks on its training."""

    def events(self, timeout: float) -> list[Event]:
        """What has happened, oldest first; waits at most `timeout` seconds for the first."""

    def stop(self, number: int, reason: StopReason) -> None:
        """Ask a trial to stop before its next optimizer step."""

    def close(self, *, wait: bool = True) -> None:
        """Free every device and end every process this executor started.

        Without `wait` this may go on in the background; the process does not end before.
        """
