"""What Ctrl-C and SIGTERM do to a sweep."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from sweep.driver.driver import Driver
from sweep.driver.interfaces import View


def raise_keyboard_interrupt(number: int, frame: object) -> None:
    """Signal handler: end the sweep at once, as Ctrl-C does.

    Raises:
        KeyboardInterrupt: always.
    """
    raise KeyboardInterrupt


@contextmanager
def graceful_interrupt(driver: Driver, view: View) -> Iterator[None]:
    """Let the first SIGINT or SIGTERM write checkpoints and leave, and the second stop at once."""

    def first(number: int, frame: object) -> None:
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, raise_keyboard_interrupt)
        view.note("stopping: running trials write a checkpoint; once more stops at once")
        driver.interrupt()

    before = {name: signal.signal(name, first) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
