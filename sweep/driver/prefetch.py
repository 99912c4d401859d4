"""Calls a slow function ahead of need, in a thread of its own: a sampler may take seconds.

`Prefetcher.take` waits no longer than its timeout, so that the driver can handle evaluations
meanwhile.
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

MAX_ASK_SHARE = 0.01
"""Proposals are drawn ahead when a draw for each device takes more than this share of a trial."""

DEFAULT_TRIAL_SECONDS = 100.0
"""Assumed length of a trial before any has ended."""


def prefetch_count(ask_seconds: float, trial_seconds: float | None, capacity: int) -> int:
    """How many proposals to have ready: none, or as many as trials can run at once.

    A proposal drawn early knows nothing of the trials that run meanwhile; it is drawn early only
    where devices would be kept waiting. All trials may end together: the last device to get a new
    one waits for as many draws as there are trials.
    """
    trial_seconds = DEFAULT_TRIAL_SECONDS if trial_seconds is None else trial_seconds
    return capacity if ask_seconds * capacity > MAX_ASK_SHARE * trial_seconds else 0


class Prefetcher(Generic[T]):
    """Calls `draw` one time after another, as often as requested, and keeps what it returned."""

    def __init__(self, draw: Callable[[], T]) -> None:
        self._draw = draw
        self._futures: deque[Future[T]] = deque()
        """Requested draws that were not taken yet, oldest first."""
        self._to_draw: queue.SimpleQueue[Future[T] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self.ask_seconds = 0.0
        """Estimate of a draw's seconds: the longer of the last draw and half the estimate before
        it."""

    @property
    def requested(self) -> int:
        """Draws that were requested and not taken yet."""
        return len(self._futures)

    def request(self, count: int) -> None:
        """Request draws until `count` of them are requested and not taken."""
        if self._thread is None and count > 0:
            self._to_draw = queue.SimpleQueue()
            # A daemon: a second Ctrl-C does not wait for the sampler.
            self._thread = threading.Thread(target=self._work, args=(self._to_draw,), daemon=True)
            self._thread.start()
        for _ in range(count - self.requested):
            self._futures.append(Future())
            self._to_draw.put(self._futures[-1])

    def take(self, timeout: float | None = 0.0) -> list[T]:
        """What was drawn since, oldest first; waits at most `timeout` seconds (None: no limit).

        Raises:
            Exception: what `draw` raised.
        """
        if self._futures:
            with contextlib.suppress(TimeoutError):
                self._futures[0].exception(timeout)
        drawn: list[T] = []
        while self._futures and self._futures[0].done():
            drawn.append(self._futures.popleft().result())
        return drawn

    def cancel(self) -> None:
        """Cancel the draws that have not begun; waits for nothing."""
        self._futures = deque(future for future in self._futures if not future.cancel())
        self._to_draw.put(None)
        self._thread = None

    def close(self) -> list[T]:
        """Cancel the draws that have not begun, wait for the one that has; returns those left."""
        self.cancel()
        left: list[T] = []
        while self._futures:
            left += self.take(None)
        return left

    def _work(self, to_draw: queue.SimpleQueue[Future[T] | None]) -> None:
        while (future := to_draw.get()) is not None:
            if not future.set_running_or_notify_cancel():
                continue
            begun = time.monotonic()
            try:
                drawn = self._draw()
            except Exception as error:  # Raised again by `take`.
                future.set_exception(error)
                continue
            self.ask_seconds = max(time.monotonic() - begun, self.ask_seconds / 2)
            future.set_result(drawn)
