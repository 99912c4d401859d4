"""Wall seconds of a trial by what they bought."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from trial.folder import Seconds


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
