"""Wall seconds of a trial by phase."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from trial.store.records import Seconds


class PhaseTimer:
    """A stopwatch that always runs for exactly one phase, a field of `Seconds`.

    Args:
        before: Seconds that earlier attempts spent.
        now: The clock, in seconds.
    """

    def __init__(
        self, before: Seconds | None = None, now: Callable[[], float] = time.perf_counter
    ) -> None:
        self._spent: dict[str, float] = (before or Seconds()).model_dump()
        self._now = now
        self._phase = "load"
        self._since = now()

    def switch(self, phase: str) -> str:
        """Count the time from now on as `phase`; returns the phase until now."""
        now = self._now()
        self._spent[self._phase] += now - self._since
        self._since = now
        before, self._phase = self._phase, phase
        return before

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Count the block as `phase`, then go on with the phase before it."""
        before = self.switch(phase)
        try:
            yield
        finally:
            self.switch(before)

    def restore(self, before: Seconds) -> None:
        """Add the seconds of an earlier attempt."""
        for phase, seconds in before.model_dump().items():
            self._spent[phase] += seconds

    def read(self) -> Seconds:
        """The seconds of every phase until now."""
        self.switch(self._phase)
        return Seconds(**self._spent)


class SharedPhaseTimer(PhaseTimer):
    """The seconds of one trial of a packed job: its own, and its share of what all spent together.

    It runs only within `during`; shares are added by `charge`.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        super().__init__(now=now)
        self._running = False

    def charge(self, phase: str, seconds: float) -> None:
        """Add this trial's share of seconds that several trials spent together."""
        self._spent[phase] += seconds

    def switch(self, phase: str) -> str:
        """Count the time from now on as `phase`, if within `during`."""
        if not self._running:
            self._since = self._now()
        return super().switch(phase)

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Count the block as `phase`; outside of such blocks nothing is counted."""
        before, running = self.switch(phase), self._running
        self._running = True
        try:
            yield
        finally:
            self.switch(before)
            self._running = running
