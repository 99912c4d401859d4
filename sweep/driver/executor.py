"""The interface of an executor: jobs go in, events come out.

An executor knows nothing of Optuna, a driver nothing of Ray. `sweep.ray_backend.executor` trains,
`sweep.driver.simulated_executor` replays recorded learning curves.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trial.store.control import StopReason
from trial.store.records import CauseKind, Evaluation, Result


@dataclass(frozen=True, slots=True)
class TrialRef:
    """A trial of a job: its number and the path of its folder."""

    number: int
    folder: Path


@dataclass(frozen=True, slots=True)
class Job:
    """Trials that run together in one process; an ordinary job has one."""

    trials: tuple[TrialRef, ...]
    key: str | None = None
    """Trials with equal keys may share a packed job (`trial.config.packing_rules`); None: alone."""


@dataclass(frozen=True, slots=True)
class Started:
    """A worker has started the trial, or resumed it."""

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
    """The trial has stopped at a checkpoint, as it was asked to."""

    number: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The trial's worker, or one of its ranks, ended without a result."""

    number: int
    kind: CauseKind
    message: str
    again: bool = False
    """Whether the trial has no part in it and goes on as if nothing had been: Ray itself ended."""


Event = Started | Evaluated | Finished | Interrupted | Lost


@dataclass(frozen=True, slots=True)
class SlotsChanged:
    """A packed job has this many slots from now on; from a worker to its executor."""

    slots: int


@dataclass(frozen=True, slots=True)
class Evicted:
    """A trial had to leave a packed job, at a checkpoint; from a worker to its executor."""

    number: int
    alone: bool
    """Whether it is to go on in a job of its own."""


WorkerMessage = Event | SlotsChanged | Evicted
"""What a worker sends to its executor."""


class ExecutorLostError(RuntimeError):
    """Nothing can be placed any more; what is on disk is whole, and a later run goes on."""


class Executor(Protocol):
    """Places jobs on devices. Once started, a method may raise `ExecutorLostError`."""

    def start(self) -> None:
        """Connect; blocks until jobs can be placed."""

    def capacity(self) -> int:
        """How many trials can run at once now (a cluster may grow)."""

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
