"""What the driver loop talks to: a decider, a view; and what it returns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from sweep.driver.executor import (
    Event,
)
from sweep.driver.progress import SweepProgress
from trial.config.trial_config import TrialConfig
from trial.store.records import Evaluation, Result


@dataclass(frozen=True, slots=True)
class Proposal:
    """One trial to run: its number, what the sampler drew, what it trains with.

    `duplicate_of` names the trial that already has this configuration; `problem` says why the
    drawn values make no valid configuration (then `config` is None).
    """

    number: int
    params: Mapping[str, Any]
    config: TrialConfig | None
    duplicate_of: int | None = None
    problem: str = ""


class Decider(Protocol):
    """Says what to try and what to give up: a study.

    `ask` is called in a thread of its own while evaluations are reported and ends are told.
    """

    ask_seconds: float
    """What one `ask` is known to take at least; 0 when nothing is known."""

    def ask(self) -> Proposal | None:
        """The next trial; None when there is nothing left to try."""

    def give_back(self, number: int) -> None:
        """Take a proposal back that was never started: the next `ask` may make it again."""

    def confirmations(self) -> Iterable[Proposal]:
        """Repeats of the best trials over seeds that are still to be run; often none."""

    def pending(self) -> list[Proposal]:
        """Trials that were in flight when the study was last left."""

    def finished(self) -> list[int]:
        """Numbers of the trials it has been told the end of."""

    def report(self, number: int, evaluation: Evaluation) -> bool:
        """Take an evaluation in; True to prune the trial. A step counts once."""

    def tell(self, number: int, result: Result) -> None:
        """Take the end of a trial in."""


class View(Protocol):
    """Where people look while a sweep runs."""

    def update(self, progress: SweepProgress) -> None:
        """Called at every turn of the loop."""

    def happened(self, event: Event, progress: SweepProgress) -> None:
        """Called once for every event, after it was taken in."""

    def note(self, text: str) -> None:
        """One line of news."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run of the driver ended."""

    reason: str
    interrupted: bool = False
    failed: bool = False
