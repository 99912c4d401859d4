"""The kind of a failure, from an exception or a log, and the cause that is recorded."""

from __future__ import annotations

import math
import os
import traceback
from pathlib import Path

from trial.store.records import Cause, CauseKind

KIND_BY_TEXT: tuple[tuple[str, CauseKind], ...] = (
    # No device at all, as without a driver or container runtime: waiting does not help.
    ("[device not found]", "error"),
    ("device already acquired", "device_busy"),
    ("device acquire failed", "device_busy"),
    ("all cuda-capable devices are busy", "device_busy"),
    ("cuda out of memory", "out_of_memory"),
    ("out of memory", "out_of_memory"),
    ("outofmemoryerror", "out_of_memory"),
    ("module:pt_devmem", "out_of_memory"),
    ("pt_devmem allocation failed", "out_of_memory"),
    ("defaultcpuallocator: can't allocate memory", "out_of_memory"),
    ("cannot allocate memory", "out_of_memory"),
    ("std::bad_alloc", "out_of_memory"),
)
"""Text of an error, lower case, and the kind it means; the first row that occurs decides."""
RETRY_MARK = "tried again after"
"""Beginning of the line that separates two attempts in a trial's log."""
LOG_TAIL_BYTES = 64_000
"""How much of the end of a log is searched for the text of an error."""


class Diverged(ArithmeticError):  # noqa: N818 (what happened, as Cause names it)
    """A loss that is not a finite number, or above what the trial allows."""

    def __init__(self, what: str, value: float, step: int) -> None:
        super().__init__(f"{what} is {value} at step {step}")
        self.step = step


class PeerFailed(RuntimeError):  # noqa: N818 (it is another rank that did)
    """Another rank of the job has failed; every rank raises this at the same message."""

    def __init__(self, rank: int, name: str, kind: CauseKind, message: str) -> None:
        super().__init__(f"rank {rank}: {message}")
        self.name = name
        """The class of the other rank's exception."""
        self.kind = kind


def check_loss(what: str, value: float, step: int, above: float | None) -> None:
    """Check that training has not diverged.

    Raises:
        Diverged: `value` is not finite, or above the bound `above`.
    """
    if not math.isfinite(value) or (above is not None and value > above):
        raise Diverged(what, value, step)


def kind_of_text(text: str) -> CauseKind:
    """The kind of failure that an error message or a log reports."""
    lowered = text.lower()
    return next((kind for sign, kind in KIND_BY_TEXT if sign in lowered), "error")


def kind_of_log(log: Path) -> CauseKind:
    """The kind of failure in the log of a worker that died without raising.

    A Gaudi that runs out of memory may kill its process. Only the last attempt's lines count.
    """
    try:
        with open(log, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return "error"
    return kind_of_text(
        text.rpartition(RETRY_MARK)[2].partition("\n")[2] if RETRY_MARK in text else text
    )


def note_retry(log: Path, kind: CauseKind, message: str) -> None:
    """Append the line that separates a failed attempt from the next one in a trial's log."""
    with open(log, "a", encoding="utf-8") as file:
        file.write(f"\n{RETRY_MARK} {kind}: {message.splitlines()[0] if message else ''}\n")


def classify(error: BaseException) -> CauseKind:
    """The kind of failure an exception is, itself or through its causes."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, PeerFailed):
            return seen.kind
        if isinstance(seen, Diverged):
            return "diverged"
        if isinstance(seen, MemoryError) or type(seen).__name__ == "OutOfMemoryError":
            return "out_of_memory"
        if (
            isinstance(seen, RuntimeError | OSError)
            and (found := kind_of_text(str(seen))) != "error"
        ):
            return found
        seen = seen.__cause__ or seen.__context__
    return "error"


def cause_of(error: BaseException, step: int | None) -> Cause:
    """The cause that is recorded for an exception at an optimizer step, where one is known."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    name = type(error).__name__
    plain = isinstance(error, Diverged | ValueError | PeerFailed)
    message = first if plain and first else f"{name}: {first}"
    step = getattr(error, "step", step)
    return Cause(kind=classify(error), message=message.removesuffix(": "), step=step)


def traceback_text(error: BaseException) -> str:
    """The traceback as Python prints it."""
    return "".join(traceback.format_exception(error))
