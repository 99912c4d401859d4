"""Wall seconds of a trial by what they bought."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from trial.store.records import Seconds


class Clock:
    """One stopwatch that is always running for exactly one phase of `Seconds`."""

    def __init__(
        self, before: Seconds | None = None, now: Callable[[], float] = time.perf_counter
    ) -> None:
        self._spent: dict[str, float] = (before or Seconds()).model_dump()
        self._now = now
        self._phase = "load"
        self._since = now()

    def switch(self, phase: str) -> str:
        """Charge what follows to `phase`; returns the phase before."""
        now = self._now()
        self._spent[self._phase] += now - self._since
        self._since = now
        before, self._phase = self._phase, phase
        return before

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Charge the block to `phase`, then go on with the phase before it."""
        before = self.switch(phase)
        try:
            yield
        finally:
            self.switch(before)

    def restore(self, before: Seconds) -> None:
        """Add what an earlier attempt spent."""
        for phase, seconds in before.model_dump().items():
            self._spent[phase] += seconds

    def read(self) -> Seconds:
        """The seconds of every phase up to now."""
        self.switch(self._phase)
        return Seconds(**self._spent)


class ShareClock(Clock):
    """The seconds of one trial among several: those spent on it alone, and its share of others."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        super().__init__(now=now)
        self._busy = False

    def charge(self, phase: str, seconds: float) -> None:
        """Add a share of seconds that several trials spent together."""
        self._spent[phase] += seconds

    def switch(self, phase: str) -> str:
        """Charge what follows to `phase` where it is spent on this trial alone."""
        if not self._busy:
            self._since = self._now()
        return super().switch(phase)

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Charge the block to `phase`; outside of such blocks nothing is charged."""
        before, busy = self.switch(phase), self._busy
        self._busy = True
        try:
            yield
        finally:
            self.switch(before)
            self._busy = busy
