"""Recognises errors of a full disk, which are no result of the trial."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
"""The `errno`s of an OSError that mean a full disk."""

FULL_TEXTS = ("no space left on device", "storagefull", "disk is full", "disk quota exceeded")
"""Text, lower case, of errors that libraries raise in place of an OSError for a full disk."""

WRITE_ERROR_TEXTS = ("iostream error", "pytorchstreamwriter", "unexpected pos")
"""Text of torch's errors for a file that it cannot write, whatever the cause."""

NOTHING_FREE = 1 << 20
"""A file system with fewer free bytes than this is full."""


class DiskFullError(OSError):
    """The trial could not write; it can resume from its newest checkpoint once there is space."""


def is_full(error: BaseException, folder: Path) -> bool:
    """Whether an exception, itself or through its causes, comes from a full disk."""
    seen: BaseException | None = error
    while seen is not None:
        text = str(seen).lower()
        if isinstance(seen, OSError) and seen.errno in FULL:
            return True
        if any(known in text for known in FULL_TEXTS):
            return True
        if any(known in text for known in WRITE_ERROR_TEXTS):
            return shutil.disk_usage(folder).free < NOTHING_FREE
        seen = seen.__cause__ or seen.__context__
    return False


def is_disk_full_message(message: str) -> bool:
    """Whether a message is that of a `DiskFullError`, perhaps one of another rank."""
    return "the disk of " in message and " is full" in message


def refuse_if_full(error: BaseException, folder: Path) -> None:
    """Raise a `DiskFullError` in place of an exception that a full disk has caused.

    Raises:
        DiskFullError: the disk is full.
    """
    if is_full(error, folder):
        raise DiskFullError(f"the disk of {folder} is full: {error}") from error
