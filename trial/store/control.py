"""How a training trial speaks with whoever runs it. Torch-free."""

from __future__ import annotations

from typing import Literal, Protocol

from trial.store.folders import TrialFolder
from trial.store.records import Evaluation

StopReason = Literal["prune", "interrupt"]
"""`prune` ends the trial for good; `interrupt` checkpoints it, to go on later."""


class Control(Protocol):
    """Asked at every optimizer step, told of every evaluation; every rank has its own.

    What rank 0's says counts.
    """

    def started(self, folder: TrialFolder, device: str, max_steps: int) -> None:
        """Everything is loaded; `max_steps` optimizer steps are planned on `device`."""

    def evaluated(self, folder: TrialFolder, evaluation: Evaluation) -> None:
        """One evaluation is on disk."""

    def alive(self, folder: TrialFolder) -> None:
        """One batch has been evaluated: an evaluation may take long without an optimizer step."""

    def stop_reason(self, folder: TrialFolder) -> StopReason | None:
        """Why the trial is to stop before its next optimizer step; None to go on."""


class NullControl:
    """Nobody listens and nobody stops the trial: `python -m trial`."""

    def started(self, folder: TrialFolder, device: str, max_steps: int) -> None:
        """Nobody to tell."""

    def evaluated(self, folder: TrialFolder, evaluation: Evaluation) -> None:
        """Nobody to tell."""

    def alive(self, folder: TrialFolder) -> None:
        """Nobody watches."""

    def stop_reason(self, folder: TrialFolder) -> StopReason | None:
        """Never."""
        return None
