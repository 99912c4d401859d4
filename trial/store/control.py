"""How a training trial reports to its runner, and is stopped by it. Torch-free."""

from __future__ import annotations

import signal
from typing import Literal, Protocol

from trial.store.folders import TrialFolder
from trial.store.records import Evaluation

StopReason = Literal["prune", "interrupt"]
"""`prune` ends the trial for good; `interrupt` checkpoints it, to go on later."""


def stop_signals() -> tuple[signal.Signals, ...]:
    """The signals that ask for a checkpoint and an end.

    Without SIGHUP, which a lost terminal sends, where this process ignores it: `nohup` set that.
    """
    hang_up = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
    return (signal.SIGINT, signal.SIGTERM, *hang_up)


class Control(Protocol):
    """Callbacks of a running trial. Every rank has its own; rank 0's decides when to stop."""

    def started(self, folder: TrialFolder, device: str, max_steps: int) -> None:
        """Called when all is loaded; `max_steps` optimizer steps are planned on `device`."""

    def evaluated(self, folder: TrialFolder, evaluation: Evaluation) -> None:
        """Called when an evaluation is on disk."""

    def alive(self, folder: TrialFolder) -> None:
        """Called before each batch of an evaluation, which may take long between two steps."""

    def stop_reason(self, folder: TrialFolder) -> StopReason | None:
        """Why the trial is to stop before its next optimizer step; None to go on."""


class NullControl:
    """Reports to nobody and never stops the trial: the default of `trial.train.train`."""

    def started(self, folder: TrialFolder, device: str, max_steps: int) -> None:
        """Does nothing."""

    def evaluated(self, folder: TrialFolder, evaluation: Evaluation) -> None:
        """Does nothing."""

    def alive(self, folder: TrialFolder) -> None:
        """Does nothing."""

    def stop_reason(self, folder: TrialFolder) -> StopReason | None:
        """Never stops the trial."""
        return None
