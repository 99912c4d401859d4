"""What Ctrl-C, SIGTERM and SIGHUP do to a sweep."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sweep.driver.driver import Driver
from sweep.driver.interfaces import View
from trial.store.control import stop_signals

STUCK_SECONDS = 25.0
"""After a signal that Python has had no chance to handle for so long, the process ends itself.
Batch systems and Kubernetes wait 30 s between SIGTERM and SIGKILL."""


SAME_SECONDS = 1.0
"""Signals but Ctrl-C that come within so many seconds are one."""


def raise_keyboard_interrupt(number: int, frame: object) -> None:
    """Signal handler: end the sweep at once, as Ctrl-C does.

    Raises:
        KeyboardInterrupt: always.
    """
    raise KeyboardInterrupt


@contextmanager
def handled_by(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Handle each of `stop_signals` so inside; the handlers before are set again."""
    before = {name: signal.signal(name, handler) for name in stop_signals()}
    try:
        yield
    finally:
        for name, earlier in before.items():
            signal.signal(name, earlier)


@contextmanager
def graceful_interrupt(driver: Driver, view: View) -> Iterator[None]:
    """Let the first of `stop_signals` write checkpoints and leave, and the second stop at once.

    `timeout` signals its child and then the group, and a terminal's end comes from the shell and
    from the kernel: other signals than Ctrl-C count once within `SAME_SECONDS`.
    """
    asked_at: float | None = None

    def handle(number: int, frame: object) -> None:
        nonlocal asked_at
        now = time.monotonic()
        if asked_at is None:
            asked_at = now
            driver.interrupt()
            with contextlib.suppress(RuntimeError):  # This may have interrupted a print.
                view.note("stopping: running trials write a checkpoint; once more stops at once")
        elif number == signal.SIGINT or now - asked_at > SAME_SECONDS:
            raise KeyboardInterrupt

    with handled_by(handle):
        yield


@contextmanager
def end_when_stuck(acted: Callable[[], bool], last_words: Callable[[], str]) -> Iterator[None]:
    """End this process with 130 when a signal has had no effect for `STUCK_SECONDS`.

    Python handles a signal between two of its own instructions. While a library's call does not
    return, none is handled; the file descriptor that is used here is written at once.

    Args:
        acted: Whether the signal has had its effect.
        last_words: What is then printed to standard error.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    over = threading.Event()
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    thread = threading.Thread(
        target=_wait_for_signal, args=(reading, over, acted, last_words), daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        over.set()
        os.close(writing)
        thread.join()
        os.close(reading)


def _wait_for_signal(
    reading: int,
    over: threading.Event,
    acted: Callable[[], bool],
    last_words: Callable[[], str],
) -> None:
    while sent := os.read(reading, 1):
        if sent[0] not in stop_signals() or over.wait(STUCK_SECONDS) or acted():
            continue
        with contextlib.suppress(Exception):
            print(last_words(), file=sys.stderr, flush=True)
        os._exit(130)
