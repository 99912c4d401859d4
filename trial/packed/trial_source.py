"""Where a packed job gets its trials and reports their ends. Torch-free."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trial.config.trial_config import TrialConfig
from trial.store.control import Control
from trial.store.folders import TrialFolder
from trial.store.records import Result


@dataclass(frozen=True, slots=True)
class PackedTrial:
    """A trial to train in a packed job: its folder, and the control that it reports to.

    Of several ranks only the first one's control counts.
    """

    folder: TrialFolder
    control: Control
    config: TrialConfig | None = None
    """The folder's configuration; None if it has not been read yet."""


class TrialSource(Protocol):
    """Hands out the trials of a packed job and is told how each of them leaves it.

    Of several ranks, each reports to a source of its own; only the first asks for trials.
    """

    def next(self, wait: bool) -> PackedTrial | None:
        """The next trial to train.

        With `wait`, blocks until there is one; None then means that there will be none. Without,
        None means that there is none now.
        """

    def ended(self, trial: PackedTrial, result: Result | None) -> None:
        """The trial has a result, on disk; without one it was interrupted at a checkpoint."""

    def evicted(self, trial: PackedTrial, *, alone: bool) -> None:
        """The trial has left its slot, to go on later; in a job of its own if `alone`."""

    def abandoned(self, trial: PackedTrial, error: Exception) -> None:
        """The job has dropped the trial without a result.

        Another process has taken it over, or the disk is full.
        """

    def sized(self, slots: int) -> None:
        """The job trains `slots` trials at once from now on."""


class ListTrialSource:
    """A fixed list of trials; those that are evicted come back at its end."""

    def __init__(self, trials: Iterable[PackedTrial]) -> None:
        self.waiting = deque(trials)
        self.results: dict[Path, Result | None] = {}
        """By the trial's folder; None for an interrupted trial."""
        self.evicted_alone: list[PackedTrial] = []
        """Trials that only a trainer of their own can train."""
        self.slots = 0
        """How many trials the job trains at once; 0 until it says so."""

    def next(self, wait: bool) -> PackedTrial | None:
        """The next trial of the list."""
        return self.waiting.popleft() if self.waiting else None

    def ended(self, trial: PackedTrial, result: Result | None) -> None:
        """Keep the result."""
        self.results[trial.folder.path] = result

    def evicted(self, trial: PackedTrial, *, alone: bool) -> None:
        """Put the trial back at the end, unless it can only be trained alone."""
        (self.evicted_alone if alone else self.waiting).append(trial)

    def abandoned(self, trial: PackedTrial, error: Exception) -> None:
        """Raise the error."""
        raise error

    def sized(self, slots: int) -> None:
        """Keep the number of slots."""
        self.slots = slots
