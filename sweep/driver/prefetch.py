"""Proposals drawn before they are needed, in a thread of their own: a sampler may take seconds.

Whoever takes them never waits longer than he says, so that evaluations are heard meanwhile.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")

WORTH = 0.01
"""Share of a trial's time that a round of asking may take before it is done ahead."""

UNKNOWN_TRIAL_SECONDS = 100.0
"""How long a trial is thought to take before any has ended."""


def how_far(ask_seconds: float, trial_seconds: float | None, slots: int) -> int:
    """How many proposals to have ready: none, or one for every slot.

    A proposal drawn early knows nothing of the trials that run meanwhile; it is drawn early only
    where devices would be kept waiting. All slots may fall free at once: the last one waits for
    as many draws as there are slots.
    """
    trial_seconds = UNKNOWN_TRIAL_SECONDS if trial_seconds is None else trial_seconds
    return slots if ask_seconds * slots > WORTH * trial_seconds else 0


class Prefetcher(Generic[T]):
    """Calls `draw` one time after another, as often as was ordered, and hands out what it gave."""

    def __init__(self, draw: Callable[[], T]) -> None:
        self._draw = draw
        self._ordered: deque[Future[T]] = deque()
        self._orders: queue.SimpleQueue[Future[T] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self.seconds = 0.0
        """What a draw takes: the longer of the last one and of half of what it was before."""

    @property
    def ordered(self) -> int:
        """Draws that were ordered and not handed out yet."""
        return len(self._ordered)

    def order(self, count: int) -> None:
        """See to it that `count` draws are ordered and not handed out."""
        if self._thread is None and count > 0:
            self._orders = queue.SimpleQueue()
            # A daemon: a second Ctrl-C does not wait for the sampler.
            self._thread = threading.Thread(target=self._work, args=(self._orders,), daemon=True)
            self._thread.start()
        for _ in range(count - self.ordered):
            self._ordered.append(Future())
            self._orders.put(self._ordered[-1])

    def arrived(self, wait: float | None = 0.0) -> list[T]:
        """What was drawn since, oldest first; waits at most `wait` seconds, None without end."""
        if self._ordered:
            with contextlib.suppress(TimeoutError):
                self._ordered[0].exception(wait)
        found: list[T] = []
        while self._ordered and self._ordered[0].done():
            found.append(self._ordered.popleft().result())
        return found

    def leave(self) -> None:
        """Cancel what is not begun; wait for nothing."""
        self._ordered = deque(future for future in self._ordered if not future.cancel())
        self._orders.put(None)
        self._thread = None

    def close(self) -> list[T]:
        """Cancel what is not begun, wait for what is; returns what nobody has taken."""
        self.leave()
        left: list[T] = []
        while self._ordered:
            left += self.arrived(None)
        return left

    def _work(self, orders: queue.SimpleQueue[Future[T] | None]) -> None:
        while (future := orders.get()) is not None:
            if not future.set_running_or_notify_cancel():
                continue
            begun = time.monotonic()
            try:
                drawn = self._draw()
            except Exception as error:  # Raised again where it is taken.
                future.set_exception(error)
                continue
            self.seconds = max(time.monotonic() - begun, self.seconds / 2)
            future.set_result(drawn)
