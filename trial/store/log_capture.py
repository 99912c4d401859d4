"""Redirects everything that a trial's process prints to the trial's own log.

    with capture(folder, echo=False) as terminal:
        train(folder)

File descriptors are redirected, not `sys.stdout` alone: what C libraries and child processes print
is in the log too, and stays there when the process dies of a signal.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from trial.store.folders import TrialFolder

STREAMS = (1, 2)


@contextmanager
def capture(folder: TrialFolder, echo: bool = False) -> Iterator[TextIO]:
    """Append what the process prints to the trial's log; yields the standard output of before.

    With `echo` it is copied to the terminal as well, by a thread: lines on their way when the
    process is killed are lost then.
    """
    _flush()
    kept = [os.dup(stream) for stream in STREAMS]
    log = os.open(folder.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    tee = _Tee(log, kept[0]) if echo else None
    terminal = _opened(os.dup(kept[0]), closefd=True)
    python_streams = sys.stdout, sys.stderr
    try:
        for stream in STREAMS:
            os.dup2(tee.write_end if tee else log, stream)
        # The caller may have replaced them by objects that write elsewhere.
        sys.stdout, sys.stderr = (_opened(stream) for stream in STREAMS)
        with _logged():
            yield terminal
    finally:
        _flush()
        sys.stdout, sys.stderr = python_streams
        for stream, original in zip(STREAMS, kept, strict=True):
            os.dup2(original, stream)
        if tee:
            tee.close()
        terminal.close()
        for descriptor in (*kept, log):
            os.close(descriptor)


@contextmanager
def _logged() -> Iterator[None]:
    """Print the records of the logger `trial`, with the time, to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("trial")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _Tee:
    """A pipe; a thread copies what is written to it to several descriptors."""

    def __init__(self, *targets: int) -> None:
        self._targets = targets
        self._read_end, self.write_end = os.pipe()
        self._thread = threading.Thread(target=self._copy, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close the pipe once everything has been copied."""
        os.close(self.write_end)
        self._thread.join()
        os.close(self._read_end)

    def _copy(self) -> None:
        while block := os.read(self._read_end, 1 << 16):
            for target in self._targets:
                os.write(target, block)


def _opened(descriptor: int, closefd: bool = False) -> TextIO:
    return open(descriptor, "w", encoding="utf-8", buffering=1, closefd=closefd)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
