"""What the driver is built from: interfaces of a decider and a view, its states and outcome."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from sweep.driver.executor import Event
from sweep.driver.progress import SweepProgress
from trial.config.trial_config import TrialConfig
from trial.store.records import Evaluation, Result


@dataclass(frozen=True, slots=True)
class Proposal:
    """One trial to run: its number, what the sampler drew, the configuration to train with.

    `duplicate_of` is the number of the trial that already has this configuration; `problem` says
    why the drawn values make no valid configuration (then `config` is None).
    """

    number: int
    params: Mapping[str, Any]
    config: TrialConfig | None
    duplicate_of: int | None = None
    problem: str = ""

    @property
    def trainable(self) -> bool:
        """Whether there is a configuration to train that no other trial has."""
        return self.config is not None and self.duplicate_of is None


class Decider(Protocol):
    """Proposes trials and prunes them: a study.

    `ask` runs in a thread of its own while the driver's thread calls `report` and `tell`.
    """

    ask_seconds: float
    """Seconds that one `ask` is known to take at least; 0 when nothing is known."""

    def ask(self) -> Proposal | None:
        """The next trial; None when there is nothing left to try."""

    def requeue(self, number: int) -> None:
        """Put back a proposal that was never started: the next `ask` may return it again."""

    def confirmations(self) -> Iterable[Proposal]:
        """Repeats of the best trials with other seeds that are still to be run; often none."""

    def pending(self) -> list[Proposal]:
        """Trials that were in flight when the study was last left."""

    def finished(self) -> list[int]:
        """Numbers of the trials whose result the study has."""

    def again(self, number: int) -> Proposal | Result:
        """A finished trial whose result is lost: what to train anew, or its result if known."""

    def report(self, number: int, evaluation: Evaluation) -> bool:
        """Report an evaluation; True to prune the trial. A step counts once."""

    def tell(self, number: int, result: Result) -> None:
        """Tell the study the result of a trial."""


class View(Protocol):
    """Shows a running sweep to people."""

    def update(self, progress: SweepProgress) -> None:
        """Called at every turn of the driver's loop."""

    def on_event(self, event: Event, progress: SweepProgress) -> None:
        """Called once for every event, after the driver has handled it."""

    def note(self, text: str) -> None:
        """Show one line of text."""


class SweepState(Enum):
    """What the driver may still start. It only ever moves on to a later state."""

    SEARCHING = "searching"
    """New proposals are drawn and started."""
    CLOSING = "closing"
    """No new proposal is started; trials that have begun, and retries, go on to their end."""
    STOPPING = "stopping"
    """No trial is started; the running ones were asked to write a checkpoint and leave."""


class OutcomeKind(Enum):
    """How a run of the driver ended."""

    DONE = "done"
    """A stop condition holds that the sweep file names, or nothing is left to try."""
    FAILED = "failed"
    """Something would have made every further trial fail."""
    INTERRUPTED = "interrupted"
    """Somebody asked it to stop; the same command goes on."""


@dataclass(frozen=True, slots=True)
class SweepOutcome:
    """Why a run of the driver ended, in words and by kind."""

    reason: str
    kind: OutcomeKind = OutcomeKind.DONE
    resumable: bool = False
    """Whether a failed sweep goes on with the same command, and no change."""
