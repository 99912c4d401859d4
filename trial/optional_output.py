"""Output that is given up when nobody takes it: training goes on without its terminal.

    with optional_output():
        ...                     # prints

A pipe whose reader is gone (`| head -2`), a terminal that was closed and a full disk behind a
redirection would otherwise end a program at its next print.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

log = logging.getLogger(__name__)

_lost: list[str] = []
"""Which output of this process was given up, and why."""


class OptionalOutput(io.TextIOBase):
    """A text stream that writes to another one until that fails, and then nowhere."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream = stream
        self.name = name
        self.lost = ""
        """Why the output was given up; empty while it is written."""

    def write(self, text: str) -> int:
        """Write `text`, unless the output is lost."""
        if not self.lost:
            try:
                self._stream.write(text)
            except (OSError, ValueError) as error:
                self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Flush the stream, unless the output is lost."""
        if not self.lost:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self.lost = getattr(error, "strerror", None) or str(error)
        _lost.append(f"{self.name} is lost ({self.lost}); training goes on without it")
        # What is still buffered goes nowhere, also when Python ends and writes it.
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        report_lost()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of the other stream."""
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        """Of the other stream."""
        return self._stream.errors

    def fileno(self) -> int:
        """Of the other stream."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """Whether the other stream is a terminal; no longer once it is lost."""
        return not self.lost and self._stream.isatty()

    def writable(self) -> bool:
        """Always: what cannot be written is dropped."""
        return True


@contextlib.contextmanager
def optional_output() -> Iterator[None]:
    """Make standard output and error `OptionalOutput` inside."""
    before = sys.stdout, sys.stderr
    _lost.clear()
    sys.stdout = OptionalOutput(before[0], "standard output")
    sys.stderr = OptionalOutput(before[1], "standard error")
    try:
        yield
    finally:
        # Here, and not where nobody would see its errors.
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def report_lost() -> None:
    """Note in the log which output is lost; called again once there is another log."""
    for text in _lost:
        log.warning(text)
