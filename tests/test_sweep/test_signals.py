"""What signals do to a sweep, sent to real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from sweep import signals
from sweep.signals import SAME_SECONDS, graceful_interrupt

STUCK = """
import ctypes, sys
from sweep import signals
signals.STUCK_SECONDS = 0.2
with signals.handled_by(lambda number, frame: None):
    with signals.end_when_stuck(lambda: sys.argv[1] == "acted", lambda: "go on with: x"):
        print("ready", flush=True)
        # A call in C that no signal ends: no Python code runs in this thread meanwhile.
        mutex = ctypes.create_string_buffer(256)
        if sys.argv[1] == "stuck":
            libc = ctypes.CDLL(None)
            libc.pthread_mutex_lock(mutex)
            libc.pthread_mutex_lock(mutex)
        sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def hang_up_is_not_ignored():
    """The tests themselves may run under `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


class Recorder:
    """A driver and a view that note what they are told."""

    def __init__(self) -> None:
        self.interrupts = 0
        self.notes: list[str] = []

    def interrupt(self) -> None:
        self.interrupts += 1

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_asks_the_driver_and_the_second_stops_at_once(number):
    names = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {name: signal.getsignal(name) for name in names}
    recorder = Recorder()
    with graceful_interrupt(recorder, recorder):
        signal.raise_signal(number)
        assert recorder.interrupts == 1
        assert "once more stops at once" in recorder.notes[0]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert recorder.interrupts == 1
    assert {name: signal.getsignal(name) for name in before} == before


def later(seconds: float):
    """The time of day on `time.monotonic`, this much later."""
    now = time.monotonic()
    return lambda: now + seconds


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_one_request_may_come_as_two_signals(number, monkeypatch):
    """As `timeout` sends them, to its child and to the group."""
    recorder = Recorder()
    with graceful_interrupt(recorder, recorder):
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)
        assert (recorder.interrupts, len(recorder.notes)) == (1, 1)
        monkeypatch.setattr(signals.time, "monotonic", later(SAME_SECONDS + 0.1))
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)


def test_a_hang_up_that_is_ignored_stays_ignored():
    """As `nohup` sets it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        recorder = Recorder()
        with graceful_interrupt(recorder, recorder):
            signal.raise_signal(signal.SIGHUP)
        assert recorder.interrupts == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("state", "expected"), [("stuck", (130, "go on with: x")), ("acted", (0, ""))]
)
def test_a_process_that_cannot_handle_a_signal_ends_all_the_same(state, expected):
    words = [sys.executable, "-c", STUCK, state]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(words, text=True, **pipes)
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.SIGTERM)
    if state == "stuck":
        process.wait(30)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors.strip()) == expected
